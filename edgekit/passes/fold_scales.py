"""Move the product with a number into the weights of the layer before it.

    c (x W + b)            = x (c W) + c b
    c T(y)                 = T(c y)                 for T that only moves values: Reshape, Transpose …
    c (Q K)                = (c Q) K                a product of two computed tensors
    c (y gamma)            = y (c gamma)

Attention scales its scores by ``1 / sqrt(d)`` (or queries and keys by its root, each). Weights have scales of
their own, so there the factor costs nothing; on a computed tensor it is an operator and a rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import bypass, can_bypass, is_constant, set_constant, static_shape
from edgekit.passes.subgraph import Rewriter, scalar, sole_reader

_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity"}

#: Positions of the constants of a layer that its result is proportional to.
_LAYERS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "Mul": (1,)}

_Place = tuple[ir.Node, int]


def fold_scales(graph: Graph) -> Graph:
    """Fold every product with a constant of one element that has a layer before it."""
    result = graph.copy()
    rewriter = Rewriter(result.model)
    folded: list[str] = []
    refused: list[Refusal] = []
    for node in [n for n in result.model.graph if n.op_type == "Mul" and not n.domain]:
        index = next((i for i in (0, 1) if scalar(node.inputs[i]) is not None), None)
        if index is None:
            continue
        factor, source, out = node.inputs[index], node.inputs[1 - index], node.outputs[0]
        number = scalar(factor)
        if source is None or factor is None or number is None:
            continue
        places = _places(source) if static_shape(source) == static_shape(out) else None
        if not places or not can_bypass(source, out):
            refused.append(Refusal(str(node.name), "no layer before it has the weights to take its factor"))
            continue
        for layer, position in places:
            _multiply(rewriter, layer, position, number)
        folded.append(str(out.name))
        bypass(source, out)
        if not factor.uses():
            rewriter.graph.initializers.pop(str(factor.name), None)
    summary = f"moved {len(folded)} factors into weights"
    return result.with_change(Change("fold_scales", summary, tuple(refused), {"folded": folded}))


def _places(value: ir.Value) -> list[_Place] | None:
    """The constants to multiply so that ``value`` is multiplied; None when there are none."""
    node = value.producer()
    if node is None or node.domain or sole_reader(value) is None:
        return None
    first = node.inputs[0]
    if node.op_type in _MOVES and first is not None:
        return _places(first)
    stored = [i for i, v in enumerate(node.inputs) if is_constant(v)]
    if node.op_type in _LAYERS and (1 in stored or (node.op_type == "Mul" and stored)):
        positions = (
            stored if node.op_type == "Mul" else [i for i in _LAYERS[node.op_type] if i < len(node.inputs)]
        )
        positions = [i for i in positions if node.inputs[i] is not None]
        return [(node, i) for i in positions] if all(i in stored for i in positions) else None
    if node.op_type == "Add" and len(stored) == 1:
        other = node.inputs[1 - stored[0]]
        before = _places(other) if other is not None else None
        return [*before, (node, stored[0])] if before else None
    if node.op_type == "MatMul" and not stored:
        return next((p for v in node.inputs if v is not None and (p := _places(v))), None)
    return None


def _multiply(rewriter: Rewriter, node: ir.Node, position: int, number: float) -> None:
    """Multiply a constant of a node; one that others read is left to them."""
    value = node.inputs[position]
    held = array(value)
    if value is None or held is None:
        raise ValueError(f"input {position} of {node.name} is no constant")
    scaled = (held.astype(np.float64) * number).astype(held.dtype)
    if len(value.uses()) == 1 and not value.is_graph_output():
        set_constant(value, scaled)
        return
    node.replace_input_with(position, rewriter.constant(f"{value.name}.scaled", scaled))
