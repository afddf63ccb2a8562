"""Pooling of images ``[N, H, W, C]``: AVERAGE_POOL_2D and MAX_POOL_2D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import activation_range, clamp_float, scale_of, zero_point_of
from edgekit.tflite.schema import label


@kernel("AVERAGE_POOL_2D")
def average_pool_2d(call: Call) -> Sequence[Array]:
    """The mean of the pixels under the window that lie inside the image, halves away from zero."""
    image = call.value(0)
    windows = _windows(
        call, image.astype(np.float32 if call.input(0).dtype is DType.FLOAT32 else np.int64), 0
    )
    counts = _windows(call, np.ones((1, *image.shape[1:3], 1), np.int64), 0).sum((3, 4))
    total = windows.sum((3, 4))
    if call.input(0).dtype is DType.FLOAT32:
        return [clamp_float(total / counts.astype(np.float32), _activation(call))]
    _same_codes(call)
    half = counts // 2
    mean = np.where(total > 0, (total + half) // counts, -((half - total) // counts))
    return [_clamp(call, mean)]


@kernel("MAX_POOL_2D")
def max_pool_2d(call: Call) -> Sequence[Array]:
    """The largest pixel under the window."""
    image = call.value(0)
    if call.input(0).dtype is DType.FLOAT32:
        return [clamp_float(_windows(call, image, -np.inf).max((3, 4)), _activation(call))]
    _same_codes(call)
    lowest = np.iinfo(image.dtype).min
    return [_clamp(call, _windows(call, image, lowest).max((3, 4)))]


def _activation(call: Call) -> str:
    return str(call.option("fusedActivationFunction", "NONE"))


def _same_codes(call: Call) -> None:
    image, output = call.input(0), call.outputs[0]
    if abs(scale_of(image) - scale_of(output)) > 1e-6 or zero_point_of(image) != zero_point_of(output):
        raise ModelError(
            f"{call.operator.op} copies codes, so input and output need one scale and zero point",
            where=label(call.operator),
        )


def _clamp(call: Call, codes: Array) -> Array:
    low, high = activation_range(_activation(call), call.outputs[0])
    return np.clip(codes, low, high).astype(call.outputs[0].dtype.numpy)


def _windows(call: Call, image: Array, outside: float) -> Array:
    """The pixels under the window at each output pixel, ``[N, oH, oW, kH, kW, C]``."""
    taps = int(call.option("filterHeight", 1)), int(call.option("filterWidth", 1))
    strides = int(call.option("strideH", 1)), int(call.option("strideW", 1))
    padding = []
    out_size = call.outputs[0].shape[1:3]
    for size, stride, k, out in zip(image.shape[1:3], strides, taps, out_size, strict=True):
        total = max(0, (out - 1) * stride + k - size)
        before = total // 2 if call.option("padding", "SAME") == "SAME" else 0
        padding.append((before, total - before))
    padded = np.pad(image, ((0, 0), *padding, (0, 0)), constant_values=outside)
    views = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=(1, 2))
    views = views[:, :: strides[0], :: strides[1]][:, : out_size[0], : out_size[1]]
    return views.transpose(0, 1, 2, 4, 5, 3)
