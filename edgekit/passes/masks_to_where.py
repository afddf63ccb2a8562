"""Write an attention mask that is computed from integers as a choice between two numbers.

For a mask m of 0 and 1, or booleans:

    1.  (1 - Cast(m)) M                              = Where(m, 0, M)
    2.  Cast(m) M                                    = Where(m, M, 0)
    3.  Where(Cast(1 - Cast(m)), M, 1 - Cast(m))     = Where(m, 0, M)      as torch writes masked_fill

An NPU has the left side in float alone, as it starts with a conversion to float; the right side chooses
between two codes. An integer mask that holds other numbers than 0 and 1 would be read as 1, as tokenizers
never make it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, rewrite_nodes
from edgekit.passes.subgraph import Builder, maker, scalar

_FLOAT, _BOOL = int(ir.DataType.FLOAT), int(ir.DataType.BOOL)


def masks_to_where(graph: Graph) -> Graph:
    """Replace every such mask; results keep their names."""
    words = "wrote {} masks as a choice between two numbers"
    return rewrite_nodes(graph, "masks_to_where", words, ("Mul", "Where"), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    found = _find(node)
    if found is None:
        return None
    return "" if static_shape(node.outputs[0]) == static_shape(found[0]) else "its factor changes the shape"


def _find(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """The mask, and the numbers where it is 1 and where it is 0."""
    if node.op_type == "Mul":
        for index in (0, 1):
            number, mask = scalar(node.inputs[index]), _mask(node.inputs[1 - index])
            if number is not None and mask is not None:
                return (mask[0], 0.0, number) if mask[1] else (mask[0], number, 0.0)
        return None
    test, number, mask = maker(node.inputs[0], "Cast"), scalar(node.inputs[1]), _mask(node.inputs[2])
    if test is None or number is None or mask is None or test.inputs[0] is not node.inputs[2]:
        return None
    return (mask[0], 0.0, number) if mask[1] else None


def _mask(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """Integers or booleans that ``value`` is as float, and whether it is 1 less them."""
    minus = maker(value, "Sub")
    if minus is not None and scalar(minus.inputs[0]) != 1.0:
        return None
    cast = maker(value if minus is None else minus.inputs[1], "Cast")
    source = cast.inputs[0] if cast is not None else None
    if cast is None or source is None or source.dtype is None or int_attribute(cast, "to", 0) != _FLOAT:
        return None
    return None if source.dtype.is_floating_point() else (source, minus is not None)


def _rewrite(build: Builder, node: ir.Node) -> None:
    found = _find(node)
    if found is None:
        raise ValueError(f"{node.name} is no mask")
    mask, kept, masked = found
    if mask.dtype != ir.DataType.BOOL:
        mask = build.node("Cast", "kept", mask, to=_BOOL)
    y = build.node(
        "Where", "mask", mask, build.constant("where_kept", kept), build.constant("where_masked", masked)
    )
    build.take(node.outputs[0], y)
