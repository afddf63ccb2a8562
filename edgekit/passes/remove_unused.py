"""Remove nodes that no output depends on, and weights that no node uses.

Inputs of the model stay, used or not: they are its interface.
"""

from __future__ import annotations

from edgekit.graph import Change, Graph, Refusal
from edgekit.passes.edit import remove_nodes


def remove_unused(graph: Graph) -> Graph:
    """Remove dead nodes, unused initializers and opset imports."""
    result = graph.copy()
    model, main = result.model, result.model.graph
    nodes = weights = 0
    for node in reversed(list(main)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            remove_nodes(main, [node])
            nodes += 1
    for name, value in list(main.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del main.initializers[name]
            weights += 1
    domains = {node.domain for node in main.all_nodes()} | {""}
    for domain in [d for d in model.opset_imports if d not in domains]:
        del model.opset_imports[domain]
    idle = tuple(
        Refusal(str(v.name), "an input that nothing uses; it stays in the interface")
        for v in main.inputs
        if not v.uses() and not v.is_graph_output()
    )
    summary = f"removed {nodes} nodes and {weights} weights that nothing uses"
    return result.with_change(Change("remove_unused", summary, idle, {"nodes": nodes, "weights": weights}))
