"""Write operators of any number of inputs as those of two.

    Sum(a, b, c) = (a + b) + c,    Mean(a, b, c) = ((a + b) + c) (1/3),    Max(a, b, c) = Max(Max(a, b), c)

Kernels for integers take two inputs.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.rewrite import Verdict, given, rewrite_nodes
from edgekit.passes.subgraph import Builder

_PAIRS = {"Sum": "Add", "Mean": "Add", "Max": "Max", "Min": "Min"}


def split_variadic(graph: Graph) -> Graph:
    """Replace every Sum and Mean, and every Max and Min of more than two inputs."""
    words = "wrote {} operators of many inputs as such of two"
    return rewrite_nodes(graph, "split_variadic", words, tuple(_PAIRS), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    count = len(node.inputs)
    return None if count < 2 or (count == 2 and node.op_type in ("Max", "Min")) else ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    result = given(node, 0)
    for index in range(1, len(node.inputs)):
        result = build.node(_PAIRS[node.op_type], "pair", result, given(node, index))
    if node.op_type == "Mean":
        result = build.node("Mul", "mean", result, build.constant("share", 1 / len(node.inputs)))
    build.take(node.outputs[0], result)
