"""The ``substitute`` step: activations that a chip runs faster, in the place of those that were trained."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.replace_activation import activations, replace_activations
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
    known = [name for names in activations(graph, section.from_) for name in sorted(names)]
    others = [str(node.name) for node in graph.nodes]
    for pattern in section.nodes:
        if not any(fnmatchcase(name, pattern) for name in others):
            raise UsageError(f"no node is called '{pattern}'", where="substitute, nodes")
    found = [name for name in known if any(fnmatchcase(name, pattern) for pattern in section.nodes)]
    if known and not found:
        text = ", ".join(f"'{pattern}'" for pattern in section.nodes)
        raise UsageError(f"no {section.from_} is called {text}", where="substitute, nodes", valid=known)
    return found
