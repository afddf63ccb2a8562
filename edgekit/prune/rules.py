"""How channels pass through each operator: the table of rules, and the walk that applies them.

A rule gets a node and the :class:`Labels` so far, and returns the labels of the node's outputs. An operator
without a rule keeps all axes of all its inputs and outputs, with the reason "… is not followed".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.passes.edit import has_subgraph, is_constant, static_shape
from edgekit.prune.channels import ONE, Axes, Axis, Channels, Fixed, Labels, Role, node_name

Rule = Callable[[ir.Node, Labels], Sequence[Axes]]

RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators in the standard domain."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return register


def walk(graph: Graph, labels: Labels) -> Channels:
    """Apply the rules in execution order and find the classes.

    Raises:
        ModelError: A tensor has no static shape.
    """
    from edgekit.prune import rules_linear, rules_shape, rules_slice  # noqa: F401  (they register themselves)

    for node in graph.nodes:
        _check_static(node)
        found = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if found is None or has_subgraph(node):
            _keep(node, labels)
            continue
        outputs = found(node, labels)
        labels.use_all(node)
        for out, axes in zip(node.outputs, outputs, strict=False):
            if out.name:
                labels.put(out, axes)
        for out in node.outputs[len(outputs) :]:
            if out.name:
                labels.put(out, fixed(out, f"{node.op_type} '{node_name(node)}' makes it"))
    for value in graph.model.graph.outputs:
        for axis in labels.of(value):
            labels.lock(axis, f"it reaches the output '{value.name}', whose shape stays")
    return labels.solve()


def _check_static(node: ir.Node) -> None:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and static_shape(value) is None:
            raise ModelError(f"tensor '{value.name}' has no static shape", where=f"node '{node_name(node)}'")


def _keep(node: ir.Node, labels: Labels) -> None:
    reason = f"{node.op_type} '{node_name(node)}' is not followed"
    for value in node.inputs:
        if value is not None:
            lock_axes(labels, value, None, reason)
    for out in node.outputs:
        if out.name:
            labels.put(out, fixed(out, reason))


def fixed(value: ir.Value, reason: str) -> Axes:
    """Every axis keeps its size."""
    return [Fixed(reason) for _ in shape_of(value)]


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise ValueError(f"'{'' if value is None else value.name}' has no static shape")
    return shape


def first(node: ir.Node) -> ir.Value:
    """A node's first input."""
    return given(node, 0)


def given(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator requires."""
    value = node.inputs[index]
    if value is None:
        raise ModelError(f"{node.op_type} has no input {index}", where=f"node '{node_name(node)}'")
    return value


def optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def lock_axes(labels: Labels, value: ir.Value, axes: Sequence[int] | None, reason: str) -> None:
    """Keep these axes of a tensor (all of them with None)."""
    found = labels.of(value)
    for axis in range(len(found)) if axes is None else axes:
        labels.lock(found[axis], reason)


def axes_of(node: ir.Node, position: int, rank: int) -> list[int] | None:
    """The axes an operator works on, as an attribute or a constant input; None where it names none.

    Raises:
        ValueError: They are computed.
    """
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return [int(a) % rank for a in attribute.as_ints()]
    value = optional(node, position)
    if value is None:
        return None
    found = array(value)
    if found is None:
        raise ValueError("axes are computed")
    return [int(a) % rank for a in found.reshape(-1)] or None


# -- elementwise -----------------------------------------------------------------------------------

_UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Dropout",
    "Clip",
]
_NARY = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]


@rule(*_UNARY)
def _unary(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Same axes; the further inputs of Clip and Dropout are scalars."""
    return [list(labels.of(first(node))) for out in node.outputs]


@rule(*_NARY)
def _elementwise(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Broadcast: axes of equal size are the same, position by position; those of size one are free."""
    return [broadcast(node, labels, [v for v in node.inputs if v is not None], shape_of(node.outputs[0]))]


def broadcast(node: ir.Node, labels: Labels, values: Sequence[ir.Value], shape: tuple[int, ...]) -> Axes:
    result: list[Axis | None] = [None] * len(shape)
    for value in values:
        sizes = shape_of(value)
        for axis, (size, label) in enumerate(zip(sizes, labels.of(value), strict=True)):
            if size == 1:
                continue
            place = axis + len(shape) - len(sizes)
            present = result[place]
            result[place] = label if present is None else labels.merge(present, label, node)
            if is_constant(value):
                labels.use(value, axis, Role.FOLLOWS, node)
    return [ONE if axis is None else axis for axis in result]


# -- normalization and reduction -------------------------------------------------------------------


@rule("BatchNormalization", "InstanceNormalization")
def _per_channel(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Parameters along axis 1; instance normalization takes its mean over the axes after it."""
    axes = list(labels.of(first(node)))
    for value in node.inputs[1:]:
        if value is not None:
            axes[1] = labels.merge(axes[1], labels.of(value)[0], node)
            labels.use(value, 0, Role.FOLLOWS, node)
    if node.op_type == "InstanceNormalization":
        return [_over(node, labels, axes, range(2, len(axes)))]
    return [axes]


@rule("GroupNormalization")
def _group_norm(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """The statistics of a group are over all its channels: only whole groups can go."""
    axes = list(labels.of(first(node)))
    groups = node.attributes["num_groups"].as_int()
    for value in node.inputs[1:]:
        if value is not None and shape_of(value)[0] == shape_of(first(node))[1]:
            axes[1] = labels.merge(axes[1], labels.of(value)[0], node)
            labels.use(value, 0, Role.FOLLOWS, node)
        elif value is not None:
            lock_axes(
                labels, first(node), [1], f"GroupNormalization '{node_name(node)}' has one scale a group"
            )
    channels = axes[1]
    if not isinstance(channels, Fixed):
        rows = channels.reshape(groups, -1)
        labels.equal(np.repeat(rows[:, 0], rows.shape[1]), channels)
    return [_over(node, labels, axes, range(2, len(axes)))]


def _over(node: ir.Node, labels: Labels, axes: Axes, which: Sequence[int]) -> Axes:
    """Keep the axes whose other positions a result depends on."""
    for axis in which:
        labels.lock(axes[axis], f"{node.op_type} '{node_name(node)}' mixes all positions along it")
    return axes


@rule("LayerNormalization", "RMSNormalization")
def _layer_norm(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    value = first(node)
    rank = len(shape_of(value))
    axis = _axis(node, -1, rank)
    axes = broadcast(node, labels, [v for v in node.inputs if v is not None], shape_of(value))
    _over(node, labels, axes, range(axis, rank))
    for operand in node.inputs:
        if operand is not None:
            lock_axes(labels, operand, range(-min(rank - axis, len(shape_of(operand))), 0), _mixes(node))
    return [axes]


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")
def _along(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    if node.op_type == "CumSum":
        where = array(given(node, 1))
        which = range(len(axes)) if where is None else [int(where.reshape(-1)[0]) % len(axes)]
        return [_over(node, labels, axes, which)]
    return [_over(node, labels, axes, [_axis(node, -1, len(axes))])]


@rule("LRN", "MeanVarianceNormalization")
def _statistics(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    attribute = node.attributes.get("axes")
    which = [1] if node.op_type == "LRN" else [0, 2, 3] if attribute is None else list(attribute.as_ints())
    return [_over(node, labels, axes, which)]


@rule(
    *(
        f"Reduce{x}"
        for x in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    )
)
def _reduce(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    try:
        which = axes_of(node, 1, len(axes))
    except ValueError:
        lock_axes(labels, first(node), None, _mixes(node))
        return []
    if which is None:
        noop = node.attributes.get("noop_with_empty_axes")
        which = [] if noop is not None and noop.as_int() else list(range(len(axes)))
    return [_without(node, labels, axes, which)]


@rule("ArgMax", "ArgMin")
def _arg(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    return [_without(node, labels, axes, [_axis(node, 0, len(axes))])]


@rule("TopK")
def _top_k(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    axis = _axis(node, -1, len(axes))
    _over(node, labels, axes, [axis])
    axes[axis] = Fixed(f"TopK '{node_name(node)}' makes it")
    return [axes, list(axes)]


def _without(node: ir.Node, labels: Labels, axes: Axes, which: Sequence[int]) -> Axes:
    _over(node, labels, axes, which)
    attribute = node.attributes.get("keepdims")
    if attribute is None or attribute.as_int():
        return [ONE if axis in which else label for axis, label in enumerate(axes)]
    return [label for axis, label in enumerate(axes) if axis not in which]


def _axis(node: ir.Node, default: int, rank: int) -> int:
    attribute = node.attributes.get("axis")
    return (default if attribute is None else attribute.as_int()) % rank


def _mixes(node: ir.Node) -> str:
    return f"{node.op_type} '{node_name(node)}' mixes all positions along it"


# -- pooling ---------------------------------------------------------------------------------------


@rule(
    "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"
)  # fmt: skip
def _pool(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = labels.of(first(node))
    return [spatial(node, labels, axes) for out in node.outputs if out.name]


def spatial(node: ir.Node, labels: Labels, axes: Axes) -> Axes:
    """Batch and channels pass; the axes after them are worked on."""
    for axis in axes[2:]:
        labels.lock(axis, f"{node.op_type} '{node_name(node)}' works over it")
    return [*axes[:2], *(Fixed("it is a spatial axis") for _ in axes[2:])]
