"""Which layers of a graph can be refitted, and how their inputs become rows of a regression.

A layer is a node that is linear in a constant weight: Conv (grouped and depthwise too), ConvTranspose,
Gemm, MatMul. For each of ``G`` groups it computes ``y[r] = x[r] W + b`` with ``x [R, K]`` and
``W [K, O / G]``; a row ``r`` is one position of the output: one pixel of an image, one token of a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, Refusal, array
from edgekit.passes.edit import float_attribute, int_attribute, static_shape
from edgekit.prune.refit_activation import Activation, activated, activation_of, before_activation

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan

Array = np.ndarray[Any, Any]
OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node that is refitted.

    Attributes:
        name: The node's name.
        op: Its operator.
        index: Its position in the graph.
        source: The tensor it reads.
        output: The tensor it makes (behind the Add of a MatMul's bias).
        weight: Its weight's name.
        bias: Its bias's name; empty where it has none.
        owns_bias: Nobody else reads that bias.
        can_add_bias: A bias of its own can be given to it.
        norm_mean: The mean of the BatchNormalization behind a layer without a bias, which takes the bias
            instead: ``bn(z + b)`` is ``bn`` with the mean less ``b``. Empty where there is none.
        groups: Blocks of channels that are separate regressions.
        channel_axis: Where the output's channels are.
        target: The teacher's tensor that is aimed at: ``output``, or the sum behind it; where the block
            behind was left out, what that block made of it.
        offset: The student's other branch of that sum; empty where ``target`` is ``output``.
        keep: Channels of the teacher's tensor that the student still has, in order.
        activation: What becomes of ``target`` next.
    """

    name: str
    op: str
    index: int
    source: str
    output: str
    weight: str
    bias: str
    owns_bias: bool
    can_add_bias: bool
    norm_mean: str
    groups: int
    channel_axis: int
    target: str
    offset: str
    keep: Array
    activation: Activation


@dataclass(frozen=True)
class Found:
    """The layers of a graph in execution order, and those left alone."""

    layers: tuple[Layer, ...]
    skipped: tuple[Refusal, ...]


def find_layers(student: Graph, teacher: Graph, plan: PruningPlan | None, *, residual: bool = True) -> Found:
    """The layers of ``student`` whose teacher is known.

    Args:
        student: The graph to refit.
        teacher: The graph it came from; tensors are matched by name.
        plan: Which channels the student kept; None where it has them all.
        residual: Aim at the sum where a layer feeds a residual Add, with what the student's other branch
            leaves over.
    """
    search = _Search(student, teacher, plan, residual)
    layers, skipped = [], []
    for index, node in enumerate(student.nodes):
        if node.op_type in OPS and not node.domain:
            found = search.layer(index, node)
            if isinstance(found, Layer):
                layers.append(found)
            else:
                skipped.append(Refusal(str(node.name), found))
    return Found(tuple(layers), tuple(skipped))


class _Search:
    def __init__(self, student: Graph, teacher: Graph, plan: PruningPlan | None, residual: bool) -> None:
        self.teacher = teacher.values()
        self.tensors = plan.tensors if plan is not None else {}
        self.residual = residual
        self.stands_for = _stand_ins(self.teacher, plan)
        self.order = {node: index for index, node in enumerate(student.nodes)}

    def layer(self, index: int, node: ir.Node) -> Layer | str:
        """The layer, or why it is left alone."""
        source, weight = node.inputs[0], node.inputs[1]
        data = array(weight)
        if weight is None or data is None:
            return "its weight is computed, not constant"
        if source is None or source.is_initializer():
            return "its input is constant"
        if len(weight.uses()) > 1:
            return f"its weight is shared by {len(weight.uses())} nodes"
        reason = _unusual(node, source, data)
        if reason:
            return reason
        output, bias, owned = _bias(node)
        axis = 1 if node.op_type.startswith("Conv") else -1
        keep = self.kept(weight, output, data, node, axis)
        if isinstance(keep, str):
            return keep
        target, offset = self.sum_behind(index, output, keep) if self.residual else (output, "")
        return Layer(
            name=str(node.name),
            op=node.op_type,
            index=index,
            source=str(source.name),
            output=str(output.name),
            weight=str(weight.name),
            bias=bias,
            owns_bias=owned,
            can_add_bias=node.op_type != "MatMul",
            norm_mean="" if bias else _norm_mean(output),
            groups=int_attribute(node, "group", 1),
            channel_axis=axis,
            target=self.aim(target),
            offset=offset,
            keep=keep,
            activation=activation_of(target, int_attribute(node, "group", 1)),
        )

    def kept(self, weight: ir.Value, output: ir.Value, data: Array, node: ir.Node, axis: int) -> Array | str:
        """Channels of the teacher's output that the student's has."""
        theirs = static_shape(self.teacher.get(str(output.name)))
        ours = static_shape(output)
        if theirs is None or ours is None or len(theirs) != len(ours):
            return f"the teacher has no tensor '{output.name}' to aim at"
        if _without(theirs, axis) != _without(ours, axis):
            return f"the teacher's '{output.name}' is {list(theirs)}, here it is {list(ours)}"
        entry = self.tensors.get(str(weight.name))
        where = _output_axis(node, data)
        kept = entry.keep.get(where) if entry is not None and where is not None else None
        channels = np.arange(theirs[axis]) if kept is None else np.asarray(kept, np.int64)
        if len(channels) != ours[axis] or (len(channels) and channels.max() >= theirs[axis]):
            return (
                f"which of the teacher's {theirs[axis]} channels its {ours[axis]} channels are is not known"
            )
        return channels

    def sum_behind(self, index: int, output: ir.Value, keep: Array) -> tuple[ir.Value, str]:
        """The residual sum that the layer alone feeds, and the other branch if it is known by then."""
        uses = list(output.uses())
        plain = (output, "")
        if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
            return plain
        add, position = uses[0]
        other, total = add.inputs[1 - position], add.outputs[0]
        if other is None or other is output or other.is_initializer():
            return plain
        producer = other.producer()
        if producer is not None and self.order.get(producer, index) >= index:
            return plain
        shape = static_shape(output)
        theirs = self.teacher.get(str(total.name))
        same = shape == static_shape(other) == static_shape(total)
        alike = static_shape(theirs) == static_shape(self.teacher.get(str(output.name)))
        maker = theirs.producer() if theirs is not None else None
        if not same or not alike or maker is None or maker.op_type != "Add":
            return plain
        return total, str(other.name)

    def aim(self, target: ir.Value) -> str:
        """The teacher's tensor that ``target`` has to be like."""
        name = str(target.name)
        if name in self.stands_for:
            return self.stands_for[name]
        after = activated(target)
        if after is not None and str(after.name) in self.stands_for:
            source = before_activation(self.teacher[self.stands_for[str(after.name)]])
            same = source is not None and activation_of(source, 1).name == activation_of(target, 1).name
            if source is not None and same and static_shape(source) == static_shape(self.teacher.get(name)):
                return str(source.name)
        return name


def _stand_ins(teacher: Mapping[str, ir.Value], plan: PruningPlan | None) -> dict[str, str]:
    """For the input of a residual block that was left out the block's output, which it has to stand for.

    Only where nothing but the block read the input: other readers want it as it was. And only for residual
    blocks, which change it a little; of any other the next layer makes more if the input stays what it was.
    """
    found: dict[str, str] = {}
    for block in reversed(plan.dropped if plan is not None else ()):
        source, result = teacher.get(block.input), teacher.get(block.output)
        if source is None or result is None or source.is_graph_output():
            continue
        inside = _makers(result)
        if _is_residual(source, result) and all(use.node in inside for use in source.uses()):
            found[block.input] = block.output
    for name in found:
        while found[name] in found:
            found[name] = found[found[name]]
    return found


def _is_residual(source: ir.Value, result: ir.Value) -> bool:
    """Whether ``result`` is a sum with ``source``, or the activation of one."""
    producer = (before_activation(result) or result).producer()
    return producer is not None and producer.op_type == "Add" and source in producer.inputs


def _makers(value: ir.Value) -> set[ir.Node]:
    """Every node that ``value`` depends on."""
    waiting, found = [value], set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(v for v in node.inputs if v is not None)
    return found


def _unusual(node: ir.Node, source: ir.Value, weight: Array) -> str:
    """Why the node is no plain linear layer; empty where it is."""
    shape = static_shape(source)
    if weight.dtype != np.float32 or source.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype}, not float32"
    if shape is None:
        return "its input has no static shape"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = array(node.inputs[2])
        if bias is None:
            return "its bias is computed, not constant"
        if bias.size not in (1, *bias.shape[-1:]):
            return f"its bias is {list(bias.shape)}, not one number a channel"
    if node.op_type.startswith("Conv"):
        if shape[0] != 1:
            return f"its input holds {shape[0]} samples at once, not 1"
        if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("NOTSET", ""):
            return "its padding is given by auto_pad"
        groups = int_attribute(node, "group", 1)
        if node.op_type == "ConvTranspose" and groups > 1 and weight.shape[1] > 1:
            return "a grouped transposed convolution with several channels a group is not supported"
    elif node.op_type == "Gemm":
        if int_attribute(node, "transA", 0):
            return "its input is transposed"
        if float_attribute(node, "alpha", 1.0) != 1.0 or float_attribute(node, "beta", 1.0) != 1.0:
            return "its alpha or beta is not 1"
    elif weight.ndim != 2 or len(shape) < 2:
        return f"a MatMul with a weight of {weight.ndim} dimensions is not supported"
    return ""


def _bias(node: ir.Node) -> tuple[ir.Value, str, bool]:
    """The output with the bias in it, the bias's name and whether it is the layer's own."""
    output = node.outputs[0]
    if node.op_type != "MatMul":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return output, "", False
        return output, str(value.name), len(value.uses()) == 1 and _is_vector(value, output, node)
    uses = list(output.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not output.is_graph_output():
        add, position = uses[0]
        other = add.inputs[1 - position]
        if other is not None and len(other.uses()) == 1 and _is_vector(other, output, node):
            return add.outputs[0], str(other.name), True
    return output, "", False


def _norm_mean(output: ir.Value) -> str:
    uses = list(output.uses())
    if len(uses) != 1 or uses[0].node.op_type != "BatchNormalization" or output.is_graph_output():
        return ""
    mean = uses[0].node.inputs[3]
    owned = mean is not None and array(mean) is not None and len(mean.uses()) == 1
    return str(mean.name) if owned and mean is not None else ""


def _is_vector(value: ir.Value, output: ir.Value, node: ir.Node) -> bool:
    """A constant with one number for each channel of ``output``."""
    data, shape = array(value), static_shape(output)
    if data is None or shape is None or data.ndim == 0:
        return False
    return bool(data.size == data.shape[-1] == shape[1 if node.op_type.startswith("Conv") else -1])


def _output_axis(node: ir.Node, weight: Array) -> int | None:
    """Axis of the weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 0 if int_attribute(node, "group", 1) > 1 else 1
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return weight.ndim - 1


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


class Geometry:
    """How a layer's input becomes rows, and its weight a matrix.

    Args:
        node: The layer's node.
        weight: Its weight.

    Attributes:
        shape: ``(G, K, O / G)``.
        positions: Rows that one sample has.
    """

    def __init__(self, node: ir.Node, weight: Array) -> None:
        source, out = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        if source is None or out is None:
            raise ValueError(f"{node.name} has no static shapes")
        self.op = node.op_type
        self.groups = int_attribute(node, "group", 1)
        self.transposed = self.op == "Gemm" and bool(int_attribute(node, "transB", 0))
        self._weight_shape = weight.shape
        self._in = source
        self._out = out
        if self.op.startswith("Conv"):
            self.positions = prod(out[2:])
            self._kernel = weight.shape[2:]
            rank = len(self._kernel)
            self._strides = _ints(node, "strides", (1,) * rank)
            self._dilations = _ints(node, "dilations", (1,) * rank)
            self._pads = _ints(node, "pads", (0,) * (2 * rank))[:rank]
        else:
            self.positions = prod(out[:-1])
        self.shape: tuple[int, int, int] = self.matrix(weight).shape

    def matrix(self, weight: Array) -> Array:
        """The weight (or a mask of its shape) as ``[G, K, O / G]``."""
        groups = self.groups
        if self.op == "Conv":
            return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
        if self.op == "ConvTranspose":
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return split.transpose(0, 1, 3, 2).reshape(groups, -1, weight.shape[1])
        return (weight.T if self.transposed else weight)[None]

    def weight(self, matrix: Array) -> Array:
        """The inverse of :meth:`matrix`, float32."""
        shape, groups = self._weight_shape, self.groups
        if self.op == "Conv":
            found = matrix.transpose(0, 2, 1).reshape(shape)
        elif self.op == "ConvTranspose":
            split = matrix.reshape(groups, shape[0] // groups, prod(shape[2:]), shape[1])
            found = split.transpose(0, 1, 3, 2).reshape(shape)
        else:
            found = matrix[0].T if self.transposed else matrix[0]
        return np.ascontiguousarray(found, dtype=np.float32)

    def grouped(self, rows: Array) -> Array:
        """``[R, O]`` as ``[G, R, O / G]``, contiguous."""
        split = rows.reshape(len(rows), self.groups, -1).transpose(1, 0, 2)
        return np.ascontiguousarray(split)

    def rows(self, x: Array, where: Array) -> Array:
        """Input rows ``[G, R, K]`` of the output positions ``where`` (flat indices)."""
        if not self.op.startswith("Conv"):
            return x.reshape(-1, x.shape[-1])[where][None]
        channels = self._in[1]
        flat = x.reshape(channels, -1)
        index, inside = self._taps(where)
        found = flat[:, index] if inside.all() else flat[:, np.where(inside, index, 0)] * inside
        # [C, R, taps] -> [G, R, C / G * taps]
        split = found.reshape(self.groups, channels // self.groups, len(where), -1)
        return split.transpose(0, 2, 1, 3).reshape(self.groups, len(where), -1)

    def _taps(self, where: Array) -> tuple[Array, Array]:
        """Flat input index of every tap of every position, and whether it lies inside the input."""
        out = np.unravel_index(where, self._out[2:])
        taps = np.unravel_index(np.arange(prod(self._kernel)), self._kernel)
        index = np.zeros((len(where), prod(self._kernel)), np.int64)
        inside = np.ones(index.shape, bool)
        for axis, size in enumerate(self._in[2:]):
            stride, reach = self._strides[axis], taps[axis] * self._dilations[axis]
            if self.op == "Conv":
                at = out[axis][:, None] * stride + reach - self._pads[axis]
            else:
                scaled = out[axis][:, None] + self._pads[axis] - reach
                at = scaled // stride
                inside &= scaled % stride == 0
            inside &= (at >= 0) & (at < size)
            index = index * size + at
        return index, inside


def target_rows(layer_axis: int, tensor: Array, where: Array, keep: Array | None) -> Array:
    """Rows ``[R, O]`` of an output-like tensor at flat positions, of the channels ``keep`` (all for None)."""
    if layer_axis == 1:
        flat = tensor.reshape(tensor.shape[1], -1)
        chosen = flat[:, where] if keep is None else flat[np.ix_(keep, where)]
        return chosen.T
    flat = tensor.reshape(-1, tensor.shape[-1])[where]
    return flat if keep is None else flat[:, keep]


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def wanted_tensors(layers: tuple[Layer, ...]) -> Mapping[str, int]:
    """Student tensors that the layers ask for and the last position at which."""
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.source] = layer.index
        if layer.offset:
            found[layer.offset] = layer.index
    return found
