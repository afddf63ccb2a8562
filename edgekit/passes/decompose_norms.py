"""Write instance and group normalization with the operators that integer targets have.

With ``std(x, axes) = (x - mean) Reciprocal(Sqrt(variance + eps))``, as ``decompose_layernorm`` writes it:

    1.  InstanceNormalization   y = std(x, pixels) gamma + beta
    2.  GroupNormalization      x' = x as [batch, groups, everything else of a group]
                                y = (std(x', last axis) as x) gamma + beta

gamma and beta have one element for each channel. (Ulyanov et al. 2016, arXiv:1607.08022; Wu and He 2018,
arXiv:1803.08494.) For ``squares`` see ``decompose_layernorm``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.decompose_layernorm import Squares, Standardize, decompose, scale, shift
from edgekit.passes.edit import float_attribute, int_attribute, is_constant, static_shape
from edgekit.passes.subgraph import Builder

_NORMS = ("InstanceNormalization", "GroupNormalization")


def decompose_norms(graph: Graph, *, squares: Squares = Squares.MEAN) -> Graph:
    """Replace every InstanceNormalization and GroupNormalization; outputs keep their names.

    Args:
        graph: The graph, with static shapes.
        squares: How the variance is computed.

    Raises:
        UsageError: ``squares`` is no known form.
    """
    return decompose(
        graph, _NORMS, "instance and group normalizations", squares, _obstacle, _rewrite, __name__
    )


def _obstacle(node: ir.Node) -> str:
    """Why this normalization has to stay; empty if it need not."""
    shape = static_shape(node.inputs[0])
    if shape is None or len(shape) < 3:
        return "the shape of its input is not known, or it has no pixels"
    if not all(is_constant(v) for v in node.inputs[1:3]):
        return "its parameters are computed, not constant"
    return ""


def _rewrite(build: Builder, node: ir.Node, squares: Squares) -> None:
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    if x is None or shape is None:
        raise ValueError(f"{node.name} has no input")
    graph = node.graph
    rows: tuple[int, ...] = shape
    if node.op_type == "GroupNormalization":
        groups = int_attribute(node, "num_groups", 1)
        rows = (shape[0], groups, math.prod(shape[1:]) // groups)
        x = build.node("Reshape", "groups", x, build.constant("groups_shape", rows, np.int64))
    axes = tuple(range(2, len(rows)))
    standard = Standardize(build, x, axes, float_attribute(node, "epsilon", 1e-5))
    dot = squares is Squares.DOT
    y = standard.dot() if dot else standard.mean()
    if rows != shape:
        y = build.node("Reshape", "channels", y, build.constant("channels_shape", shape, np.int64))
    gamma, beta = _parameter(build, node, 1, shape), _parameter(build, node, 2, shape)
    y = scale(build, y, gamma, math.sqrt(math.prod(rows[2:])) if dot else 1.0)
    build.take(node.outputs[0], shift(build, y, beta))
    for parameter in (gamma, beta):
        if graph is not None and not parameter.uses():
            graph.initializers.pop(str(parameter.name))


def _parameter(build: Builder, node: ir.Node, index: int, shape: tuple[int, ...]) -> ir.Value:
    """gamma or beta as ``[channels, 1, …]``."""
    held: np.ndarray[Any, Any] = np.asarray(array(node.inputs[index])).ravel()
    # Before opset 21 a group norm has one element for each group.
    held = np.repeat(held, shape[1] // held.size)
    return build.constant(("gamma", "beta")[index - 1], held.reshape(-1, *[1] * (len(shape) - 2)))
