"""Write a division by the root of a sum of squares as one ``LpNormalization``.

    1.  x / max(|x|, e)                 = LpNormalization(x)                      over one axis
    2.  x / Sqrt(ReduceMean(x x) + e)   = sqrt(N) LpNormalization(x, sqrt(N e))   without the last place

``|x|`` is ReduceL2(x) or Sqrt(ReduceSum(x x)); ``max`` is Max or Clip, or missing, e at most 1e-6. The second
is RMS normalization (Zhang and Sennrich 2019, arXiv:1910.07467) over N elements: ``N e`` is the square of one
more element, so nothing is neglected. An NPU that has the norm as one kernel rounds once, and never a square.

In 1. the result differs where ``|x| < e``, which is where a network divides by nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder, maker, scalar

_TINY = 1e-6


@dataclass(frozen=True)
class _Norm:
    """``source`` over its norm along ``axis``; ``epsilon`` is None in the first form."""

    source: ir.Value
    axis: int
    epsilon: float | None


def fuse_l2norm(graph: Graph) -> Graph:
    """Replace every such division, and product with the reciprocal; results keep their names."""
    words = "wrote {} divisions by a norm as one operator each"
    return rewrite_nodes(graph, "fuse_l2norm", words, ("Div", "Mul"), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    return None if _find(node) is None else ""


def _find(node: ir.Node) -> _Norm | None:
    for index in (1,) if node.op_type == "Div" else (0, 1):
        divisor, source = node.inputs[index], node.inputs[1 - index]
        if node.op_type == "Mul":
            inverse = maker(divisor, "Reciprocal", "Div")
            if inverse is None or (inverse.op_type == "Div" and scalar(inverse.inputs[0]) != 1.0):
                continue
            divisor = inverse.inputs[-1]
        if source is None or not is_float(source) or static_shape(source) is None:
            continue
        found = _over(divisor, source)
        if found is not None and static_shape(node.outputs[0]) == static_shape(source):
            return found
    return None


def _over(divisor: ir.Value | None, source: ir.Value) -> _Norm | None:
    expand = maker(divisor, "Expand")
    if expand is not None:
        divisor = expand.inputs[0]
    bound = maker(divisor, "Clip", "Max")
    if bound is not None:
        numbers = [n for v in bound.inputs if (n := scalar(v)) is not None]
        others = [v for v in bound.inputs if v is not None and scalar(v) is None]
        if len(numbers) != 1 or len(others) != 1 or not 0 <= numbers[0] <= _TINY:
            return None
        # ``Clip(x, , high)`` has one number too.
        if bound.op_type == "Clip" and scalar(bound.inputs[1]) is None:
            return None
        divisor = others[0]
    whole = maker(divisor, "ReduceL2")
    if whole is not None:
        return _reduced(whole, source, None) if whole.inputs[0] is source else None
    root = maker(divisor, "Sqrt")
    if root is None:
        return None
    plain = maker(root.inputs[0], "ReduceSum", "ReduceSumSquare")
    if plain is not None:
        return _reduced(plain, source, None) if _is_square(plain, source) else None
    raised = maker(root.inputs[0], "Add")
    if raised is None or bound is not None:
        return None
    epsilon = next((n for v in raised.inputs if (n := scalar(v)) is not None), None)
    mean = next((m for v in raised.inputs if (m := maker(v, "ReduceMean")) is not None), None)
    if epsilon is None or epsilon < 0 or mean is None or not _is_square(mean, source):
        return None
    return _reduced(mean, source, epsilon)


def _is_square(reduction: ir.Node, source: ir.Value) -> bool:
    if reduction.op_type == "ReduceSumSquare":
        return reduction.inputs[0] is source
    square = maker(reduction.inputs[0], "Mul", "Pow")
    if square is None or square.inputs[0] is not source:
        return False
    return scalar(square.inputs[1]) == 2 if square.op_type == "Pow" else square.inputs[1] is source


def _reduced(reduction: ir.Node, source: ir.Value, epsilon: float | None) -> _Norm | None:
    axes = array(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    rank = len(static_shape(source) or ())
    if axes is None or axes.size != 1 or int_attribute(reduction, "keepdims", 1) != 1:
        return None
    return _Norm(source, int(axes.ravel()[0]) % rank, epsilon)


def _rewrite(build: Builder, node: ir.Node) -> None:
    found = _find(node)
    if found is None:
        raise ValueError(f"{node.name} divides by no norm")
    if found.epsilon is None:
        y = build.node("LpNormalization", "unit", found.source, axis=found.axis, p=2)
    else:
        y = _rms(build, found.source, found.axis, found.epsilon)
    build.take(node.outputs[0], y)


def _rms(build: Builder, x: ir.Value, axis: int, epsilon: float) -> ir.Value:
    shape = static_shape(x) or ()
    size = shape[axis]
    more = [*shape[:axis], 1, *shape[axis + 1 :]]
    if epsilon:
        last = build.constant("epsilon", np.full(more, math.sqrt(size * epsilon)))
        x = build.node("Concat", "longer", x, last, axis=axis)
    unit = build.node("LpNormalization", "unit", x, axis=axis, p=2)
    if epsilon:
        bounds = [build.constant(n, [v], np.int64) for n, v in (("first", 0), ("end", size), ("axis", axis))]
        unit = build.node("Slice", "elements", unit, *bounds)
    return build.node("Mul", "standard", unit, build.constant("root", math.sqrt(size)))
