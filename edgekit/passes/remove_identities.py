"""Remove nodes whose output is their input.

- ``Identity``; ``Dropout`` (at inference).
- ``Cast`` to the type the tensor has.
- ``Reshape``, ``Flatten``, ``Expand``, ``Squeeze``, ``Unsqueeze`` to the shape the tensor has.
- ``Concat``, ``Sum``, ``Max``, ``Min``, ``Mean`` of one tensor.
- ``Transpose`` that keeps the order; ``Pad`` by nothing.

A node between an input (or a weight) and an output of the model stays, as an ``Identity``: an output must be
made by a node.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import bypass, can_bypass, is_false, static_shape

_RESHAPES = {"Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze"}
_GATHERS_MANY = {"Concat", "Sum", "Max", "Min", "Mean"}


def remove_identities(graph: Graph) -> Graph:
    """Remove nodes that change nothing."""
    result = graph.copy()
    removed: dict[str, int] = {}
    refused = []
    for node in list(result.model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or not _changes_nothing(node, source):
            continue
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            refused.append(Refusal(str(node.name), "its second output is used"))
        elif not can_bypass(source, node.outputs[0]):
            refused.append(Refusal(str(node.name), "stands between an input and an output of the model"))
            _make_identity(node)
        else:
            bypass(source, node.outputs[0])
            removed[node.op_type] = removed.get(node.op_type, 0) + 1
    return result.with_change(
        Change(
            "remove_identities",
            f"removed {sum(removed.values())} nodes",
            tuple(refused),
            {"removed": removed},
        )
    )


def _make_identity(node: ir.Node) -> None:
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    node.resize_outputs(1)


def _changes_nothing(node: ir.Node, source: ir.Value) -> bool:
    if node.domain:
        return False
    out, op = node.outputs[0], node.op_type
    if op == "Identity":
        return True
    if op == "Dropout":
        return len(node.inputs) < 3 or node.inputs[2] is None or is_false(array(node.inputs[2]))
    if op == "Cast":
        return source.dtype is not None and node.attributes["to"].as_int() == int(source.dtype)
    if op in _RESHAPES:
        return static_shape(source) is not None and static_shape(source) == static_shape(out)
    if op in _GATHERS_MANY:
        return len(node.inputs) == 1
    if op == "Transpose":
        perm = node.attributes.get("perm")
        return perm is not None and list(perm.as_ints()) == list(range(len(perm.as_ints())))
    return op == "Pad" and is_false(array(node.inputs[1]))
