"""Write HardSigmoid with the operators that TFLite has.

    HardSigmoid(x) = clip(alpha x + beta, 0, 1)
    1.  alpha = 1/6, beta = 1/2    = clip(x + 3, 0, 6) (1/6)      ADD with RELU6, MUL
    2.  otherwise                  = clip(x alpha + beta, 0, 1)   MUL, ADD with RELU_0_TO_1

Run ``fuse_hard_swish`` before it, which wants the operator whole.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import float_attribute
from edgekit.passes.rewrite import given, rewrite_nodes
from edgekit.passes.subgraph import Builder


def decompose_hard_sigmoid(graph: Graph) -> Graph:
    """Replace every HardSigmoid; its output keeps its name."""
    words = "wrote {} HardSigmoids as sums, bounds and products"
    return rewrite_nodes(graph, "decompose_hard_sigmoid", words, ("HardSigmoid",), lambda _: "", _rewrite)


def _rewrite(build: Builder, node: ir.Node) -> None:
    x = given(node, 0)
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    result = _sixth(build, x) if _is_sixth(alpha, beta) else _general(build, x, alpha, beta)
    build.take(node.outputs[0], result)


def _is_sixth(alpha: float, beta: float) -> bool:
    return abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6


def _sixth(build: Builder, x: ir.Value) -> ir.Value:
    raised = build.node("Add", "raised", x, build.constant("three", 3))
    bound = build.node("Clip", "bound", raised, build.constant("zero", 0), build.constant("six", 6))
    return build.node("Mul", "sixth", bound, build.constant("factor", 1 / 6))


def _general(build: Builder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    steep = build.node("Mul", "steep", x, build.constant("alpha", alpha))
    raised = build.node("Add", "raised", steep, build.constant("beta", beta))
    return build.node("Clip", "bound", raised, build.constant("zero", 0), build.constant("one", 1))
