"""How much one operator gives the units of a Hexagon Tensor Processor to do, from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgekit.passes.edit import int_attribute
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest

#: Channels that are stored and multiplied together: Qualcomm AI Engine Direct SDK, 80-63442-10, "Avoid low
#: depth Activations".
DEPTH = 32
#: How often the vector unit goes over the data of an operator; once for every other.
PASSES = {
    "Softmax": 4,  # largest value, exponential, sum, division
    "LogSoftmax": 4,
    "LayerNormalization": 3,  # mean, variance, result
    "InstanceNormalization": 3,
    "GroupNormalization": 3,
    "RMSNormalization": 2,
}
_POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})


@dataclass(frozen=True)
class Work:
    """What one operator does, wherever its tensors are.

    Attributes:
        matrix_macs: Multiply-accumulates of the matrix unit, channels padded.
        vector_bytes: Bytes that the vector unit takes and gives, channels padded, each pass counted.
        weights: Elements of a constant second operand as it is stored, channels padded; 0 without one.
    """

    matrix_macs: int = 0
    vector_bytes: int = 0
    weights: int = 0


def padded(channels: int) -> int:
    """``channels`` up to the next full group."""
    return -(-channels // DEPTH) * DEPTH


def padded_elements(shape: tuple[int, ...]) -> int:
    """Elements of a tensor as it is stored: the channels of images and the last axis of others padded."""
    if not shape:
        return 1
    axis = 1 if len(shape) > 3 else len(shape) - 1
    return prod(padded(size) if index == axis else size for index, size in enumerate(shape))


def work_of(request: NodeRequest, item: int) -> Work:
    """The work of one node.

    Args:
        request: The node with the shapes to count; all of its inputs and outputs are static.
        item: Bytes of one element of its activations.
    """
    op, inputs = request.node.op_type, request.inputs
    if op in MAC_OPS and inputs[0] is not None and inputs[1] is not None:
        if op in ("Conv", "ConvTranspose"):
            return _convolution(op, inputs[0], inputs[1], request.outputs[0], item)
        return _product(request.node, inputs[0], inputs[1], request.outputs[0])
    out = sum(padded_elements(shape) for shape in request.outputs)
    given = sum(padded_elements(shape) for shape in moved(request))
    passes = PASSES.get(op, 1)
    if op in _POOLS:
        # Each value of the window is read for each value of the result, where the windows overlap.
        given = max(given, out * _window(request.node))
    return Work(vector_bytes=passes * (given + out) * item)


def moved(request: NodeRequest) -> list[tuple[int, ...]]:
    """Shapes of the inputs that carry values, none of them twice; scales, sizes and axes are constants."""
    seen: dict[ir.Value, tuple[int, ...]] = {}
    for value, shape in zip(request.node.inputs, request.inputs, strict=True):
        if value is not None and shape is not None and not _constant(value):
            seen[value] = shape
    return list(seen.values())


def _constant(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        codes = producer.inputs[0]
        return codes is not None and codes.is_initializer()
    return value.is_initializer()


def _convolution(
    op: str, data: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...], item: int
) -> Work:
    kernel = prod(weight[2:])
    if op == "Conv":
        positions, depth, group = out[0] * prod(out[2:]), weight[1], data[1] // weight[1]
        filters = out[1] // group
    else:
        positions, filters = data[0] * prod(data[2:]), weight[1]
        group = out[1] // filters
        depth = data[1] // group
    if depth == 1:  # depthwise: nothing to sum over channels, so one lane of the vector unit each
        channels = padded(max(data[1], out[1]))
        return Work(vector_bytes=positions * kernel * channels * item, weights=kernel * channels)
    # Groups either one after another, each padded by itself, or as one dense convolution with zeros.
    taps = min(padded(data[1]) * padded(out[1]), group * padded(depth) * padded(filters))
    return Work(matrix_macs=positions * kernel * taps, weights=kernel * taps)


def _product(node: ir.Node, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> Work:
    inner = left[0] if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else left[-1]
    columns = 1 if len(right) == 1 else out[-1]
    rows = prod(out) // max(1, columns)
    second = node.inputs[1]
    stacked = prod(right[:-2])
    weights = stacked * padded(inner) * padded(columns) if second is not None and _constant(second) else 0
    return Work(matrix_macs=rows * padded(inner) * padded(columns), weights=weights)


def _window(node: ir.Node) -> int:
    kernel = node.attributes.get("kernel_shape")
    return 1 if kernel is None else prod(kernel.as_ints())
