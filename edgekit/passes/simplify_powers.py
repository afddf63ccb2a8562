"""Write powers and divisions with the operators that integer targets have.

    1. Pow(x, 2) = x x;  Pow(x, 3) = x (x x);  Pow(x, 1/2) = Sqrt(x);  Pow(x, -1) = Reciprocal(x);
       Pow(x, -1/2) = Reciprocal(Sqrt(x))
    2. x / c           = x (1 / c)                       for a constant c
    3. x / Sqrt(v)     = x Reciprocal(Sqrt(v));  1 / Sqrt(v) = Reciprocal(Sqrt(v))

TFLite has no 8-bit POW and DIV, but MUL and, for ``Reciprocal`` right behind ``Sqrt``, RSQRT. Divisions by
the same root share its reciprocal. Only floats: an integer division cuts its result.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import is_constant, static_shape
from edgekit.passes.rewrite import given, rewrite_nodes
from edgekit.passes.subgraph import Builder, maker, scalar

_POWERS = (2.0, 3.0, 0.5, -0.5, -1.0)


def simplify_powers(graph: Graph) -> Graph:
    """Replace every Pow and Div that has such a form; the others are named with the reason."""
    words = "wrote {} powers and divisions as products and roots"
    return rewrite_nodes(graph, "simplify_powers", words, ("Pow", "Div"), _obstacle, _rewrite)


def _rewrite(build: Builder, node: ir.Node) -> None:
    build.take(node.outputs[0], (_power if node.op_type == "Pow" else _quotient)(build, node))


def _obstacle(node: ir.Node) -> str:
    """Why this node has to stay; empty if it need not."""
    first, second = node.inputs
    if first is None or first.dtype != ir.DataType.FLOAT:
        return "it computes in integers"
    if node.op_type == "Pow":
        if scalar(second) not in _POWERS:
            return f"its exponent is not one of {', '.join(f'{p:g}' for p in _POWERS)}"
        if static_shape(first) != static_shape(node.outputs[0]):
            return "its exponent changes the shape"
        return ""
    if is_constant(second):
        divisor = array(second)
        return "it divides by zero" if divisor is None or not divisor.all() else ""
    if maker(second, "Sqrt") is None:
        return "it divides by a computed tensor that is no square root"
    return ""


def _power(build: Builder, node: ir.Node) -> ir.Value:
    x, exponent = given(node, 0), scalar(node.inputs[1])
    if exponent in (2.0, 3.0):
        square = build.node("Mul", "squared", x, x)
        return square if exponent == 2.0 else build.node("Mul", "cubed", x, square)
    root = x if exponent == -1.0 else build.node("Sqrt", "root", x)
    return root if exponent == 0.5 else build.node("Reciprocal", "inverse", root)


def _quotient(build: Builder, node: ir.Node) -> ir.Value:
    x, divisor = given(node, 0), given(node, 1)
    held = array(divisor) if is_constant(divisor) else None
    if held is not None:
        factor = build.constant("factor", 1 / held.astype(np.float64))
        return build.node("Mul", "product", x, factor)
    inverse = _shared_inverse(divisor, node) or build.node("Reciprocal", "inverse", divisor)
    if scalar(x) == 1.0 and static_shape(inverse) == static_shape(node.outputs[0]):
        # ``take`` renames what it is given, which a shared reciprocal must not be.
        return build.node("Reciprocal", "inverse", divisor)
    return build.node("Mul", "product", x, inverse)


def _shared_inverse(root: ir.Value, node: ir.Node) -> ir.Value | None:
    """The reciprocal that an earlier division by the same root has left; nodes are visited in order."""
    for use in root.uses():
        if use.node.op_type == "Reciprocal" and not use.node.domain and use.node is not node:
            return use.node.outputs[0]
    return None
