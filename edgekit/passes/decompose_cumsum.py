"""Write a cumulative sum as a product with a matrix of zeros and ones.

    CumSum(x)_j = sum over i <= j of x_i = (x T)_j,    T_ij = 1 for i <= j        i < j where it is exclusive,
                                                                                >= and > where it is reversed

along the last axis; another axis is brought there and back. A matrix product adds in 32 bits and rounds once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder, scalar

#: Longer sums cost more as a matrix than they are worth: the matrix has the square of this many elements.
LONGEST = 512


def decompose_cumsum(graph: Graph) -> Graph:
    """Replace every CumSum over a known axis of at most ``LONGEST`` elements."""
    words = "wrote {} cumulative sums as matrix products"
    return rewrite_nodes(graph, "decompose_cumsum", words, ("CumSum",), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    shape, axis = static_shape(node.inputs[0]), scalar(node.inputs[1])
    if not shape or axis is None:
        return "its axis is computed, or its shape is not known"
    if not is_float(node.inputs[0]):
        return "it computes in integers"
    size = shape[int(axis) % len(shape)]
    return f"it adds up {size} elements, more than {LONGEST}" if size > LONGEST else ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x = given(node, 0)
    rank = len(static_shape(x) or ())
    axis = int(scalar(node.inputs[1]) or 0) % rank
    size = (static_shape(x) or ())[axis]
    matrix = np.triu(np.ones((size, size)), int_attribute(node, "exclusive", 0))
    if int_attribute(node, "reverse", 0):
        matrix = matrix.T
    order = [*(a for a in range(rank) if a != axis), axis]
    swap = axis != rank - 1
    if swap:
        x = build.node("Transpose", "last", x, perm=order)
    x = build.node("MatMul", "sums", x, build.constant("ones", matrix))
    if swap:
        x = build.node("Transpose", "back", x, perm=[order.index(a) for a in range(rank)])
    build.take(node.outputs[0], x)
