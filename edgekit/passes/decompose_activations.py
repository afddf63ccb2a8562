"""Write activations for which a target has no kernel with those that it has.

Mish(x)              = x Tanh(Softplus(x))                     (Misra 2019, arXiv:1908.08681)
Softsign(x)          = x / (1 + Abs(x))
Celu(x, a)           = a Elu(x / a)                            (Barron 2017, arXiv:1704.07483)
Selu(x, a, g)        = g Elu(x, a)                             (Klambauer et al. 2017, arXiv:1706.02515)
ThresholdedRelu(x, a) = Where(x > a, x, 0)
PRelu(x, s)          = Relu(x) + s Clip(x, max = 0)            (He et al. 2015, arXiv:1502.01852)
Reciprocal(x)        = 1 / x
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.edit import float_attribute, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder


def decompose_activations(graph: Graph, ops: Collection[str]) -> Graph:
    """Replace every activation of the given kinds; outputs keep their names.

    Args:
        graph: The graph.
        ops: Which of Mish, Softsign, Celu, Selu, ThresholdedRelu, PRelu and Reciprocal. A PRelu with one
            slope for all channels stays, as a LeakyRelu would.

    Raises:
        UsageError: There is no other form of an operator.
    """
    unknown = sorted(set(ops) - set(_FORMS))
    if unknown:
        raise UsageError(f"no other form of the activation '{unknown[0]}'", valid=sorted(_FORMS))
    words = "wrote {} activations with simpler ones"
    return rewrite_nodes(graph, "decompose_activations", words, ops, _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    if not is_float(node.inputs[0]):
        return "it does not compute in float32"
    if node.op_type == "PRelu" and np.prod(static_shape(node.inputs[1]) or (1,)) == 1:
        return None
    return ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    build.take(node.outputs[0], _FORMS[node.op_type](build, node, given(node, 0)))


def _mish(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    gate = build.node("Tanh", "gate", build.node("Softplus", "softplus", x))
    return build.node("Mul", "gated", x, gate)


def _softsign(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    size = build.node("Abs", "size", x)
    return build.node("Div", "quotient", x, build.node("Add", "raised", size, build.constant("one", 1)))


def _celu(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha = float_attribute(node, "alpha", 1.0)
    if alpha == 1.0:
        return build.node("Elu", "elu", x)
    elu = build.node("Elu", "elu", build.node("Mul", "scaled", x, build.constant("inverse", 1 / alpha)))
    return build.node("Mul", "stretched", elu, build.constant("alpha", alpha))


def _selu(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    elu = build.node("Elu", "elu", x, alpha=float_attribute(node, "alpha", 1.6732632423543772))
    gamma = float_attribute(node, "gamma", 1.0507009873554805)
    return build.node("Mul", "stretched", elu, build.constant("gamma", gamma))


def _thresholded_relu(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    threshold = build.constant("threshold", float_attribute(node, "alpha", 1.0))
    above = build.node("Greater", "above", x, threshold)
    return build.node("Where", "kept", above, x, build.constant("zero", 0))


def _prelu(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    zero = build.constant("zero", 0)
    # ``Min(x, 0)``, which as a Clip has one input less to quantize; its lower bound is the lowest number.
    below = build.node("Clip", "below", x, build.constant("lowest", np.finfo(np.float32).min), zero)
    leak = build.node("Mul", "leak", below, given(node, 1))
    return build.node("Add", "both", build.node("Relu", "above", x), leak)


def _reciprocal(build: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    return build.node("Div", "quotient", build.constant("one", 1), x)


_FORMS: dict[str, Callable[[Builder, ir.Node, ir.Value], ir.Value]] = {
    "Mish": _mish,
    "Softsign": _softsign,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
}
