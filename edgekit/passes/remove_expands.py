"""Leave broadcasting to the operators that do it themselves.

    f(Expand(x, shape), y) = f(x, y)        for elementwise f, where y brings the shape

Exporters expand masks and norms to the full shape before they use them. Without that they stay as small as
they are, and no operator is needed for it. An Expand goes when every path behind it comes to a tensor that
has the same shape without it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import bypass, can_bypass, int_attribute, static_shape
from edgekit.passes.infer_shapes import infer_node

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Cast", "Clip", "Sqrt", "Reciprocal", "Neg",
    "Abs", "Exp", "Log", "Not", "And", "Or", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
    "Relu", "Sigmoid", "Tanh",
}  # fmt: skip

_REDUCTIONS = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"}

_Shape = tuple[int, ...]


def remove_expands(graph: Graph) -> Graph:
    """Remove every Expand whose readers broadcast; the shapes behind it are inferred anew."""
    result = graph.copy()
    main = result.model.graph
    refused: list[Refusal] = []
    removed = 0
    for node in [n for n in main if n.op_type == "Expand" and not n.domain]:
        source, out = node.inputs[0], node.outputs[0]
        before = static_shape(source)
        if source is None or before is None or out.is_graph_output() or not can_bypass(source, out):
            refused.append(Refusal(str(node.name), "it makes an output of the graph"))
            continue
        narrower: dict[ir.Value, _Shape] = {out: before}
        reason = _follow(main, narrower)
        if reason:
            refused.append(Refusal(str(node.name), reason))
            continue
        target = node.inputs[1]
        bypass(source, out)
        if target is not None and not target.uses():
            main.initializers.pop(str(target.name), None)
        for value in list(narrower)[1:]:
            infer_node(value.producer() or node, result.model.opset_imports)
        removed += 1
    summary = f"left {removed} expansions to the operators behind them"
    return result.with_change(Change("remove_expands", summary, tuple(refused), {"removed": removed}))


def _follow(main: ir.Graph, narrower: dict[ir.Value, _Shape]) -> str:
    """Add the shapes of all tensors that get smaller, in execution order; returns what forbids it."""
    for node in main:
        if not any(v in narrower for v in node.inputs if v is not None):
            continue
        out = node.outputs[0]
        shape = _shape(node, narrower)
        if isinstance(shape, str):
            return shape
        if shape == static_shape(out):
            continue
        if out.is_graph_output():
            return f"the output '{out.name}' would change its shape"
        narrower[out] = shape
    return ""


def _shape(node: ir.Node, narrower: dict[ir.Value, _Shape]) -> _Shape | str:
    """Shape of a node's output when some inputs are smaller; words where that is not known."""
    shapes = [narrower[v] if v in narrower else static_shape(v) for v in node.inputs if v is not None]
    if node.domain or None in shapes:
        return f"{node.op_type} '{node.name}' reads it"
    if node.op_type in _ELEMENTWISE:
        return tuple(int(d) for d in np.broadcast_shapes(*(s for s in shapes if s is not None)))
    source = node.inputs[0]
    old, new = static_shape(source), narrower.get(source) if source is not None else None
    axes = array(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type in _REDUCTIONS and old is not None and new is not None and axes is not None:
        chosen = {int(a) % len(old) for a in axes.ravel()}
        # A sum over an expanded axis counts its element more than once.
        if len(new) == len(old) and all(new[a] == old[a] for a in chosen):
            keep = int_attribute(node, "keepdims", 1)
            return tuple(1 if i in chosen else d for i, d in enumerate(new) if keep or i not in chosen)
    return f"{node.op_type} '{node.name}' reads it, which does not broadcast"
