"""Tensors of which only a part matters, because all that reads them is flat outside of it.

1. Sigmoid: beyond ±``REACH`` it is within 1e-5 of 0 or 1.
2. Softmax: what lies ``DEPTH`` below the largest value that the tensor takes gets a share of 1e-7 at most,
   and below that of its own row little more. A detector's box bins reach far lower. The scores of an
   attention do too, but they are left alone: the largest score of a row can lie far below that of another.

Ranges cut there spend their steps where they are seen. SiLU has its own way, since its input is multiplied
too (:func:`edgekit.quantize.observe.silu_inputs`).
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Range

REACH = 12.0
DEPTH = 16.0
#: What scales and masks the scores of an attention, and how many nodes that may be.
_MASKS = frozenset(("Add", "Sub", "Mul", "Div", "Where"))
_FAR = 8
#: Nodes behind which the reader is looked for: they only move values.
_MOVES = frozenset(
    ("Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split")
)


def flat_readers(graph: Graph) -> dict[str, str]:
    """Tensors that Sigmoid or Softmax alone read, directly or moved, and which of the two."""
    found: dict[str, str] = {}
    for node in reversed(list(graph.nodes)):
        for value in node.outputs:
            kinds = {_kind(use.node, use.idx, found) for use in value.uses()}
            if len(kinds) == 1 and not value.is_graph_output() and (kind := kinds.pop()):
                found[str(value.name)] = kind
    return found


def _kind(node: ir.Node, index: int, found: dict[str, str]) -> str:
    if node.op_type == "Sigmoid" or (node.op_type == "Softmax" and not _attends(node.inputs[0])):
        return node.op_type
    if node.op_type not in _MOVES or (index > 0 and node.op_type != "Concat"):
        return ""
    kinds = {found.get(str(value.name), "") for value in node.outputs}
    return kinds.pop() if len(kinds) == 1 else ""


def _attends(value: ir.Value | None) -> bool:
    """Whether a tensor is made of products of computed tensors, scaled and masked at most."""
    for _ in range(_FAR):
        node = None if value is None else value.producer()
        if node is None:
            return False
        if node.op_type == "MatMul":
            return all(v is not None and not v.is_initializer() for v in node.inputs)
        if node.op_type not in _MOVES and node.op_type not in _MASKS:
            return False
        value = next((v for v in node.inputs if v is not None and _leads_to_product(v)), node.inputs[0])
    return False


def _leads_to_product(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (node.op_type == "MatMul" or node.op_type in _MASKS)


def seen_part(low: float, high: float, reader: str) -> Range:
    """The part of a range that its reader tells apart."""
    if reader == "Softmax":
        return max(low, high - DEPTH), high
    return max(low, -REACH), min(high, REACH)
