"""Kernels that only move codes: CONCATENATION, RESHAPE, slices, splits, TILE, PACK …; and CAST, ARG_MAX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.schema import label


def _integers(values: Array) -> list[int]:
    return [int(value) for value in values.reshape(-1)]


@kernel("CONCATENATION")
def concatenation(call: Call) -> Sequence[Array]:
    """All inputs along ``axis``. LiteRT refuses codes of another scale than the output's."""
    parts = [call.value(index) for index in range(len(call.values))]
    expected = call.outputs[0].quantization
    for tensor in call.inputs:
        if tensor is not None and expected is not None and not expected.same_as(tensor.quantization):
            raise ModelError(
                f"the scale or zero point of {tensor.name!r} is not that of the output",
                where=label(call.operator),
                hint="Put a QUANTIZE before it.",
            )
    return [np.concatenate(parts, axis=int(call.option("axis", 0)))]


@kernel("RESHAPE")
def reshape(call: Call) -> Sequence[Array]:
    return [call.value(0).reshape(call.outputs[0].shape)]


@kernel("TRANSPOSE")
def transpose(call: Call) -> Sequence[Array]:
    return [np.ascontiguousarray(call.value(0).transpose(_integers(call.value(1))))]


@kernel("SLICE")
def slice_(call: Call) -> Sequence[Array]:
    """``size`` elements of each axis from ``begin``; -1 is all that follow."""
    values = call.value(0)
    begins, sizes = _integers(call.value(1)), _integers(call.value(2))
    cuts = [
        slice(begin, extent if size < 0 else begin + size)
        for begin, size, extent in zip(begins, sizes, values.shape, strict=True)
    ]
    return [values[tuple(cuts)].copy()]


@kernel("STRIDED_SLICE")
def strided_slice(call: Call) -> Sequence[Array]:
    """As ``array[begin:end:stride]``, with the masks for open ends and for axes that go away."""
    if call.option("ellipsisMask", 0) or call.option("newAxisMask", 0) or call.option("offset", False):
        raise ModelError(
            "ellipsisMask, newAxisMask and offset are not supported",
            where=label(call.operator),
            hint="Use one stride and one range for each axis.",
        )
    values = call.value(0)
    begins, ends, strides = (_integers(call.value(index)) for index in (1, 2, 3))
    begin_mask, end_mask = int(call.option("beginMask", 0)), int(call.option("endMask", 0))
    shrink = int(call.option("shrinkAxisMask", 0))
    cuts: list[slice | int] = []
    for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        bit = 1 << axis
        if shrink & bit:
            cuts.append(begin)
        else:
            cuts.append(slice(None if begin_mask & bit else begin, None if end_mask & bit else end, stride))
    return [np.ascontiguousarray(values[tuple(cuts)])]


@kernel("SPLIT")
def split(call: Call) -> Sequence[Array]:
    """Equal parts; the axis is input 0, the values input 1."""
    axis = int(call.value(0).reshape(-1)[0])
    return [part.copy() for part in np.split(call.value(1), len(call.outputs), axis)]


@kernel("SPLIT_V")
def split_v(call: Call) -> Sequence[Array]:
    """Parts of given sizes, one of which may be -1: what the others leave."""
    values, sizes = call.value(0), _integers(call.value(1))
    axis = int(call.value(2).reshape(-1)[0])
    rest = values.shape[axis] - sum(size for size in sizes if size >= 0)
    sizes = [rest if size < 0 else size for size in sizes]
    return [part.copy() for part in np.split(values, np.cumsum(sizes)[:-1], axis)]


@kernel("TILE")
def tile(call: Call) -> Sequence[Array]:
    return [np.tile(call.value(0), _integers(call.value(1)))]


@kernel("BROADCAST_TO")
def broadcast_to(call: Call) -> Sequence[Array]:
    return [np.broadcast_to(call.value(0), _integers(call.value(1))).copy()]


@kernel("PACK")
def pack(call: Call) -> Sequence[Array]:
    parts = [call.value(index) for index in range(len(call.values))]
    return [np.stack(parts, axis=int(call.option("axis", 0)))]


@kernel("UNPACK")
def unpack(call: Call) -> Sequence[Array]:
    values, axis = call.value(0), int(call.option("axis", 0))
    return [np.ascontiguousarray(np.take(values, index, axis)) for index in range(values.shape[axis])]


@kernel("SPACE_TO_DEPTH")
def space_to_depth(call: Call) -> Sequence[Array]:
    """NHWC blocks into channels: channel ``(row * block + column) * C + c``."""
    values, block = call.value(0), int(call.option("blockSize", 0))
    batch, height, width, depth = values.shape
    parts = values.reshape(batch, height // block, block, width // block, block, depth)
    return [parts.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)]


@kernel("DEPTH_TO_SPACE")
def depth_to_space(call: Call) -> Sequence[Array]:
    """NHWC channels into blocks: ONNX's mode "DCR"."""
    values, block = call.value(0), int(call.option("blockSize", 0))
    batch, height, width, depth = values.shape
    parts = values.reshape(batch, height, width, block, block, depth // block**2)
    return [parts.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, -1)]


@kernel("ARG_MAX")
def arg_max(call: Call) -> Sequence[Array]:
    """The first index of the largest code; the axis is input 1 and goes away."""
    axis = int(call.value(1).reshape(-1)[0])
    return [np.argmax(call.value(0), axis).astype(call.outputs[0].dtype.numpy)]


@kernel("CAST")
def cast(call: Call) -> Sequence[Array]:
    """Conversion of the stored numbers, scales aside; float32 is cut off towards zero."""
    return [call.value(0).astype(call.outputs[0].dtype.numpy)]
