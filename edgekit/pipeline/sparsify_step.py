"""The ``sparsify`` step: single weights set to zero, and what that buys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekit.graph import Graph
from edgekit.pipeline.material import Json, Material, refit_json, sizes
from edgekit.recipe import SparsifySection

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan
    from edgekit.prune.refit import RefitResult


def sparsify_graph(
    material: Material, section: SparsifySection, graph: Graph, earlier: PruningPlan | None = None
) -> tuple[Graph, tuple[str, ...], Json]:
    """Set single weights to zero, and refit those that are left.

    Returns:
        The graph, the names of the weights whose zeros have to stay, and the step's part of the report.

    Raises:
        UsageError: The pattern or the share cannot be had.
    """
    from edgekit.prune.compressed import benefit, compressed_bytes
    from edgekit.prune.refit import refit
    from edgekit.prune.sparsity import SparsifyOptions, sparsify

    start = time.monotonic()
    options = SparsifyOptions(
        sparsity=section.sparsity, pattern=section.pattern, scope=section.scope, exclude=section.exclude
    )
    result = sparsify(graph, options)
    found, distances = result.graph, {"pruned": material.distance(result.graph)}
    refits: list[RefitResult] = []
    if section.recover == "refit":
        refits.append(
            refit(
                found,
                material.original,
                earlier,
                material.feeds(section.samples),
                masks=result.masks,
                progress=material.reporter.update,
            )
        )
        found = refits[-1].graph
        distances["recovered"] = material.distance(found)
    step = {
        "pass": "sparsify",
        **sizes(graph, found),
        "pattern": section.pattern,
        "sparsity": result.sparsity,
        "layers": [{"name": name, "sparsity": share} for name, share in result.layers.items()],
        "refused": [{"where": r.where, "reason": r.reason} for r in result.refused],
        "bytes": compressed_bytes(found),
        "benefit": [] if material.target is None else [benefit(found, material.target)],
        "distance": distances,
        "notes": [],
    }
    if refits:
        step["refit"] = refit_json(refits)
    step["seconds"] = time.monotonic() - start
    step["summary"] = f"{result.sparsity:.1%} of the weights are zero ({section.pattern})"
    return found, tuple(result.masks), step
