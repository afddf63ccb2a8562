"""Write powers with a small constant exponent as products and roots.

    Pow(x, 2) = x x,   Pow(x, 3) = x (x x),   Pow(x, 4) = (x x)(x x) …   up to 8
    Pow(x, 1/2) = Sqrt(x)  Pow(x, -1) = Reciprocal(x)

A power kernel computes a logarithm: Qualcomm's HTP is wrong by a third of the range for ``x^3`` in 16 bits.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder, scalar

_HIGHEST = 8


def unroll_powers(graph: Graph) -> Graph:
    """Replace every Pow that has such a form; the others are named with the reason."""
    return rewrite_nodes(
        graph, "unroll_powers", "wrote {} powers as products and roots", ("Pow",), _judge, _rewrite
    )


def _judge(node: ir.Node) -> Verdict:
    if not is_float(node.inputs[0]):
        return "it computes in integers"
    exponent = scalar(node.inputs[1])
    if exponent is None or not (exponent in (0.5, -1.0) or exponent in range(2, _HIGHEST + 1)):
        return f"its exponent is not one of -1, 0.5 and 2 to {_HIGHEST}"
    if static_shape(node.inputs[0]) != static_shape(node.outputs[0]):
        return "its exponent changes the shape"
    return ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x, exponent = given(node, 0), scalar(node.inputs[1]) or 0.0
    if exponent == 0.5:
        y = build.node("Sqrt", "root", x)
    elif exponent == -1.0:
        y = build.node("Reciprocal", "inverse", x)
    else:
        y = _product(build, x, int(exponent))
    build.take(node.outputs[0], y)


def _product(build: Builder, x: ir.Value, exponent: int) -> ir.Value:
    if exponent == 1:
        return x
    half = _product(build, x, exponent // 2)
    square = build.node("Mul", "squared", half, half)
    return build.node("Mul", "product", x, square) if exponent % 2 else square
