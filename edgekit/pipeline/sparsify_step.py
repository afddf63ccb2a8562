"""The ``sparsify`` step: single weights set to zero, and what that buys."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph
from edgekit.pipeline.material import Json, Material, refit_json, sizes
from edgekit.recipe import SparsifySection

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan
    from edgekit.prune.refit import RefitResult

Array = np.ndarray[Any, Any]


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
    from edgekit.prune.sparsity import SparsifyOptions, sparsify

    start = time.monotonic()
    refits: list[RefitResult] = []
    recover = _refitter(material, section, earlier, refits) if section.recover == "refit" else None
    options = SparsifyOptions(
        sparsity=section.sparsity,
        pattern=section.pattern,
        scope=section.scope,
        criterion=section.criterion,
        exclude=section.exclude,
        steps=section.steps,
    )
    feeds = material.feeds(section.samples) if section.criterion == "activation" else ()
    result = sparsify(graph, options, feeds, recover=recover)
    found, distances = result.graph, {"pruned": material.distance(result.graph)}
    if recover is not None:
        found = recover(found, result.masks)
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
    step["summary"] = (
        f"{result.sparsity:.1%} of the weights in {len(result.layers)} layers are zero ({section.pattern})"
        + (f"; {len(result.refused)} layers stay whole" if result.refused else "")
    )
    return found, tuple(result.masks), step


def _refitter(
    material: Material, section: SparsifySection, earlier: PruningPlan | None, found: list[RefitResult]
) -> Callable[[Graph, Mapping[str, Array]], Graph]:
    from edgekit.prune.refit import refit

    feeds = material.feeds(section.samples)

    def recover(sparse: Graph, masks: Mapping[str, Array]) -> Graph:
        material.reporter.status("least-squares refit")
        progress = material.reporter.update
        found.append(refit(sparse, material.original, earlier, feeds, masks=masks, progress=progress))
        return found[-1].graph

    return recover
