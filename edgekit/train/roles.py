"""Which initializers are weights, and which are constants of the arithmetic."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.train.ops.base import Array

#: Inputs that say how to compute, by operator and position.
_SETTINGS: dict[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Dropout": frozenset({1, 2}),
    "Pow": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "OneHot": frozenset({1, 2}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
}
_STATISTICS: dict[str, frozenset[int]] = {"BatchNormalization": frozenset({3, 4})}
#: What these get from an initializer is a setting where it is a single number or a grid.
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Where", "Sum", "Mean"})
_COMPARISONS = frozenset({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"})


class Role(StrEnum):
    """What training does with an initializer.

    Attributes:
        WEIGHT: A parameter.
        STATISTIC: Mean or variance of a BatchNormalization; follows the data in training mode.
        FIXED: Stays as it is.
    """

    WEIGHT = "weight"
    STATISTIC = "statistic"
    FIXED = "fixed"


def roles(graph: Graph, *, learn_scales: bool = False) -> dict[str, Role]:
    """The role of every initializer, by name.

    1. Integers, booleans and strings are fixed, and so are initializers that nothing reads.
    2. What is read as a setting is fixed: bounds of Clip, scales of Resize, exponents; scales of
       QuantizeLinear and DequantizeLinear too unless ``learn_scales``.
    3. An operand of the arithmetic is fixed where it is a single number, or a grid: different values that are
       all multiples of a half, as cell centres, strides and masks are. So is a kernel that counts 0, 1, 2, …,
       with which detectors take the mean of a distribution over distances.
    4. Everything else is a weight.
    """
    return {str(name): _role(value, learn_scales) for name, value in graph.model.graph.initializers.items()}


def _role(value: ir.Value, learn_scales: bool) -> Role:
    content = array(value)
    if content is None or not _is_floating(content):
        return Role.FIXED
    found = {_role_for(use.node, use.idx, content, learn_scales) for use in value.uses()}
    if Role.WEIGHT in found:
        return Role.WEIGHT
    return Role.STATISTIC if Role.STATISTIC in found else Role.FIXED


def _role_for(node: ir.Node, position: int, content: Array, learn_scales: bool) -> Role:
    op = node.op_type
    if position in _STATISTICS.get(op, ()):
        return Role.STATISTIC
    if position in _SETTINGS.get(op, ()):
        learned = learn_scales and position == 1 and op in ("QuantizeLinear", "DequantizeLinear")
        return Role.WEIGHT if learned else Role.FIXED
    if op in _COMPARISONS:
        return Role.FIXED
    if op in _ARITHMETIC and (content.size == 1 or _is_grid(content)):
        return Role.FIXED
    if op in ("Conv", "MatMul") and content.size > 1 and _counts(content):
        return Role.FIXED
    return Role.WEIGHT


def _is_floating(content: Array) -> bool:
    return bool(content.dtype.kind == "f" or content.dtype.name == "bfloat16")


def _is_grid(content: Array) -> bool:
    doubled = np.asarray(content, np.float64) * 2
    return np.array_equal(doubled, np.round(doubled)) and bool(doubled.min() < doubled.max())


def _counts(content: Array) -> bool:
    return bool(np.array_equal(content.reshape(-1), np.arange(content.size)))
