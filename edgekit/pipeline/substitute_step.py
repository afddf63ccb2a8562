"""The ``substitute`` step: activations that a chip runs faster, in the place of those that were trained."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.replace_activation import replace_activations
from edgekit.pipeline.material import Json, Material, sizes
from edgekit.recipe import SubstituteSection


def substitute_graph(material: Material, section: SubstituteSection, graph: Graph) -> tuple[Graph, Json]:
    """Replace activations.

    Returns:
        The graph and the step's part of the report.

    Raises:
        UsageError: There is no such pair of activations, or no such node.
    """
    start = time.monotonic()
    before = fuse_hard_swish(fuse_gelu(graph))
    found = replace_activations(before, section.from_, section.to, _named(before, section))
    change = found.history[-1]
    replaced = change.details["replaced"]
    if not replaced:
        raise UsageError(f"the network has no {section.from_}", where="substitute, from")
    step: Json = {
        "pass": "substitute",
        **sizes(graph, found),
        "from": section.from_,
        "to": section.to,
        "replaced": [entry["node"] for entry in replaced],
        "distance": {"before": material.distance(graph), "after": material.distance(found)},
        "notes": [],
        "seconds": time.monotonic() - start,
        "summary": f"{len(replaced)} {section.from_} became {section.to}",
    }
    return found, step


def _named(graph: Graph, section: SubstituteSection) -> list[str] | None:
    """Nodes that the patterns mean; None for all."""
    if not section.nodes:
        return None
    names = [str(node.name) for node in graph.nodes]
    found = []
    for pattern in section.nodes:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"no node is called '{pattern}'", where="substitute, nodes")
        found += matching
    # A pattern may also meet nodes of other kinds; only the activations among them are meant.
    probe = replace_activations(graph, section.from_, section.to)
    kind = {entry["node"] for entry in probe.history[-1].details["replaced"]}
    return [name for name in found if name in kind]
