"""Give every node a name of its own; names that are unique already stay."""

from __future__ import annotations

from edgekit.graph import Change, Graph


def name_nodes(graph: Graph) -> Graph:
    """Name the nodes without a name after their output, and tell apart those that share one."""
    result = graph.copy()
    reserved = {node.name for node in result.nodes if node.name}
    seen: set[str] = set()
    named = 0
    for node in result.nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        base = node.name or f"{node.op_type}_{node.outputs[0].name}"
        name, count = base, 0
        while name in seen or name in reserved:
            count += 1
            name = f"{base}.{count}"
        node.name = name
        seen.add(name)
        named += 1
    return result.with_change(Change("name_nodes", f"named {named} nodes", details={"named": named}))
