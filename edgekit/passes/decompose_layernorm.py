"""Write a layer normalization with the operators that integer targets have.

With means over the normalized axes, ``N`` elements (Ba et al. 2016, arXiv:1607.06450):

    m = ReduceMean(x)                                            MEAN
    d = x - m                                                    SUB
    v = ReduceMean(d d)                                          MUL, MEAN
    r = Reciprocal(Sqrt(v + eps))                                ADD, RSQRT
    y = d r gamma + beta                                         MUL, MUL, ADD

``Reciprocal`` stands right behind ``Sqrt`` and alone reads it, which is how a lowering knows an RSQRT: no
division and no root is left, for which TFLite has no 8-bit kernel. A gamma of ones and a beta of zeros are
left out.

The range of ``d d`` is the square of that of ``d``. In 8 bits its step is ``max|d|^2 / 255``: with one
channel ten times as strong as the others, as transformers have them, the squares of nearly all others are
rounded to the codes 0 to 3, and the variance with them. ``Squares`` says what is done about it:

``MEAN``
    The form above, for a target on which ``d``, ``d d``, ``v`` and ``r`` have 16 bits.
``DOT``
    The squares never exist in 8 bits. Their sum is a matrix product of each row with itself, which integer
    kernels accumulate exactly in 32 bits:

        u = d' d,  d' a row and d a column                       RESHAPE, RESHAPE, BATCH_MATMUL
        r' = Reciprocal(Sqrt(u + N eps)) = r / sqrt(N)           ADD, RSQRT
        y = d r' (sqrt(N) gamma) + beta                          MUL, MUL, ADD

    Simulated with every tensor in 8 bits on 64 rows of 128 normal numbers, two channels five times as strong,
    the logarithm of the rows' scales spread by 0.3: 15 dB with ``MEAN``, 22 dB with ``DOT``; spread by 0.6:
    5 dB and 18 dB. With 16 bits from the mean to ``r`` both reach 24 and 20 dB, with 16 bits in all 60 dB.

    Products of single rows use an array of multipliers badly, so it takes longer than ``MEAN``.

Scaling ``d`` by a constant before squaring would change nothing: each tensor has a scale of its own anyway.
What stays hard for 8 bits is that ``r`` spans the spread of the rows' deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from enum import StrEnum

import numpy as np
import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.passes.edit import float_attribute, int_attribute, is_constant, static_shape
from edgekit.passes.rewrite import rewrite_nodes
from edgekit.passes.subgraph import Builder


class Squares(StrEnum):
    """How the mean of the squares is computed.

    Attributes:
        MEAN: As a product and a mean, for targets that keep both in 16 bits.
        DOT: As a matrix product of each row with itself, accumulated in 32 bits.
    """

    MEAN = "mean"
    DOT = "dot"


def decompose_layernorm(graph: Graph, *, squares: Squares = Squares.MEAN) -> Graph:
    """Replace every LayerNormalization; its outputs, the statistics included, keep their names.

    Args:
        graph: The graph, with static shapes.
        squares: How the variance is computed.

    Raises:
        UsageError: ``squares`` is no known form.
    """
    return decompose(
        graph, ("LayerNormalization",), "layer normalizations", squares, _obstacle, _rewrite, __name__
    )


def decompose(
    graph: Graph,
    ops: Collection[str],
    words: str,
    squares: Squares,
    obstacle: Callable[[ir.Node], str],
    rewrite: Callable[[Builder, ir.Node, Squares], None],
    module: str,
) -> Graph:
    """Replace every node of some operators, or say why it has to stay.

    Args:
        graph: The graph, with static shapes.
        ops: Operators of the standard domain.
        words: What a person calls them.
        squares: How the variance is computed.
        obstacle: Why a node has to stay; empty if it need not.
        rewrite: Puts other nodes in the place of one.
        module: Of the pass, which is called as its file.

    Raises:
        UsageError: ``squares`` is no known form.
    """
    if squares not in list(Squares):
        raise UsageError(f"no way to compute squares called '{squares}'", valid=list(Squares))
    return rewrite_nodes(
        graph,
        module.rpartition(".")[2],
        f"wrote {{}} {words} as products, means and roots",
        ops,
        obstacle,
        lambda build, node: rewrite(build, node, squares),
        squares=str(squares),
    )


def _obstacle(node: ir.Node) -> str:
    """Why this normalization has to stay; empty if it need not."""
    if static_shape(node.inputs[0]) is None:
        return "the shape of its input is not known"
    if node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.FLOAT:
        return "its input is not float32"
    return ""


def _rewrite(build: Builder, node: ir.Node, squares: Squares) -> None:
    x, gamma = node.inputs[0], node.inputs[1]
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    shape = static_shape(x)
    if x is None or gamma is None or shape is None:
        raise ValueError(f"{node.name} lacks an input")
    first = int_attribute(node, "axis", -1) % len(shape)
    standard = Standardize(build, x, tuple(range(first, len(shape))), float_attribute(node, "epsilon", 1e-5))
    # The inverse deviation itself is only there in the first form.
    dot = squares is Squares.DOT and not _used(node, 2)
    y = standard.dot() if dot else standard.mean()
    y = scale(build, y, gamma, math.sqrt(math.prod(shape[first:])) if dot else 1.0)
    y = shift(build, y, beta)
    for index, statistic in ((1, standard.center), (2, standard.inverse)):
        if _used(node, index) and statistic is not None:
            build.take(node.outputs[index], statistic)
    build.take(node.outputs[0], y)


def _used(node: ir.Node, index: int) -> bool:
    if len(node.outputs) <= index:
        return False
    out = node.outputs[index]
    return bool(out.uses()) or out.is_graph_output()


class Standardize:
    """``(x - mean) / sqrt(variance + epsilon)`` over some axes.

    Attributes:
        center: The mean.
        inverse: The inverse standard deviation, once :meth:`mean` has made it.
    """

    def __init__(self, build: Builder, x: ir.Value, axes: tuple[int, ...], epsilon: float) -> None:
        self._build, self._epsilon = build, epsilon
        self._axes = build.constant("axes", axes, np.int64)
        self._rows = (static_shape(x) or ())[: axes[0]]
        self._size = math.prod(static_shape(x) or ()) // max(math.prod(self._rows), 1)
        self.center = build.node("ReduceMean", "mean", x, self._axes, keepdims=1)
        self._difference = build.node("Sub", "centered", x, self.center)
        self.inverse: ir.Value | None = None

    def mean(self) -> ir.Value:
        """The result, with :attr:`Squares.MEAN`."""
        build = self._build
        squared = build.node("Mul", "squared", self._difference, self._difference)
        variance = build.node("ReduceMean", "variance", squared, self._axes, keepdims=1)
        self.inverse = self._inverse_root(variance, self._epsilon)
        return build.node("Mul", "standard", self._difference, self.inverse)

    def dot(self) -> ir.Value:
        """The result over ``sqrt(N)``, with :attr:`Squares.DOT`; the axes have to be the last ones."""
        build, rows = self._build, self._rows
        row = build.constant("row_shape", [*rows, 1, self._size], np.int64)
        column = build.constant("column_shape", [*rows, self._size, 1], np.int64)
        sums = build.node(
            "MatMul",
            "squares",
            build.node("Reshape", "row", self._difference, row),
            build.node("Reshape", "column", self._difference, column),
        )
        rank = len(static_shape(self.center) or ())
        back = build.constant("sum_shape", [*rows, *[1] * (rank - len(rows))], np.int64)
        total = build.node("Reshape", "sum", sums, back)
        inverse = self._inverse_root(total, self._size * self._epsilon)
        return build.node("Mul", "unit", self._difference, inverse)

    def _inverse_root(self, value: ir.Value, epsilon: float) -> ir.Value:
        build = self._build
        raised = build.node("Add", "raised", value, build.constant("epsilon", epsilon))
        return build.node("Reciprocal", "inverse", build.node("Sqrt", "deviation", raised))


def scale(build: Builder, x: ir.Value, gamma: ir.Value, factor: float = 1.0) -> ir.Value:
    """``x gamma factor``; a product with ones is left out."""
    held = array(gamma) if is_constant(gamma) else None
    if held is None:
        x = x if factor == 1.0 else build.node("Mul", "stretched", x, build.constant("factor", factor))
        return build.node("Mul", "scaled", x, gamma)
    if factor == 1.0:
        return x if (held == 1).all() else build.node("Mul", "scaled", x, gamma)
    return build.node("Mul", "scaled", x, build.constant("gamma", held.astype(np.float64) * factor))


def shift(build: Builder, x: ir.Value, beta: ir.Value | None) -> ir.Value:
    """``x + beta``; a sum with zeros is left out."""
    held = array(beta) if is_constant(beta) else None
    if beta is None or (held is not None and not held.any()):
        return x
    return build.node("Add", "shifted", x, beta)
