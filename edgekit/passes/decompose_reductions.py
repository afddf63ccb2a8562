"""Write the rarer reductions and poolings with sums, squares, roots and means.

ReduceL1(x) = ReduceSum(Abs(x))                  ReduceSumSquare(x) = ReduceSum(x x)
ReduceL2(x) = Sqrt(ReduceSum(x x))               ReduceLogSum(x)    = Log(ReduceSum(x))
ReduceLogSumExp(x) = m + Log(ReduceSum(Exp(x - m))),  m = ReduceMax(x)
LpPool(x) = (K AveragePool(|x|^p))^(1/p)         K places in a window, p = 1 or 2
GlobalLpPool(x) = (ReduceSum(|x|^p))^(1/p)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder

_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
_POOLS = ("LpPool", "GlobalLpPool")


def decompose_reductions(graph: Graph) -> Graph:
    """Replace every such node; outputs keep their names."""
    words = "wrote {} reductions as sums, squares and roots"
    return rewrite_nodes(graph, "decompose_reductions", words, (*_REDUCTIONS, *_POOLS), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    if not is_float(node.inputs[0]):
        return "it does not compute in float32"
    if node.op_type in _POOLS:
        if int_attribute(node, "p", 2) not in (1, 2):
            return "its p is neither 1 nor 2"
        if static_shape(node.inputs[0]) is None:
            return "the shape of its input is not known"
        return "its last window may be cut off" if int_attribute(node, "ceil_mode", 0) else ""
    if int_attribute(node, "noop_with_empty_axes", 0):
        return "it may reduce nothing"
    return ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x = given(node, 0)
    if node.op_type in _POOLS:
        result = _pool(build, node, x)
    elif node.op_type == "ReduceLogSumExp":
        result = _log_sum_exp(build, node, x)
    else:
        result = _reduction(build, node, x)
    build.take(node.outputs[0], result)


def _reduction(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    kind = node.op_type
    if kind == "ReduceL1":
        x = build.node("Abs", "sizes", x)
    elif kind in ("ReduceL2", "ReduceSumSquare"):
        x = build.node("Mul", "squares", x, x)
    result = _reduce(build, node, "ReduceSum", "sum", x, int_attribute(node, "keepdims", 1))
    last = {"ReduceL2": "Sqrt", "ReduceLogSum": "Log"}.get(kind)
    return build.node(last, "result", result) if last else result


def _log_sum_exp(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    highest = _reduce(build, node, "ReduceMax", "highest", x, 1)
    powers = build.node("Exp", "powers", build.node("Sub", "lowered", x, highest))
    logarithm = build.node("Log", "logarithm", _reduce(build, node, "ReduceSum", "sum", powers, 1))
    result = build.node("Add", "result", logarithm, highest)
    if int_attribute(node, "keepdims", 1):
        return result
    shape = build.constant("shape", static_shape(node.outputs[0]) or (), np.int64)
    return build.node("Reshape", "flat", result, shape)


def _reduce(build: Builder, node: ir.Node, op: str, label: str, x: ir.Value, keepdims: int) -> ir.Value:
    axes = [v for v in node.inputs[1:2] if v is not None]
    return build.node(op, label, x, *axes, keepdims=keepdims)


def _pool(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    squared = int_attribute(node, "p", 2) == 2
    powers = build.node("Mul", "powers", x, x) if squared else build.node("Abs", "powers", x)
    if node.op_type == "GlobalLpPool":
        axes = build.constant("axes", range(2, len(static_shape(x) or ())), np.int64)
        total = build.node("ReduceSum", "sum", powers, axes, keepdims=1)
    else:
        kept: dict[str, Any] = {
            name: node.attributes[name].value
            for name in ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
            if name in node.attributes
        }
        mean = build.node("AveragePool", "mean", powers, count_include_pad=1, **kept)
        count = math.prod(node.attributes["kernel_shape"].as_ints())
        total = build.node("Mul", "sum", mean, build.constant("count", count))
    return build.node("Sqrt", "root", total) if squared else total
