"""Convolutions: CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV.

Images are ``[N, H, W, C]``, weights ``[O, kH, kW, I]`` (``[1, kH, kW, O]`` depthwise). Sums of products of
codes are taken in floating point where they are exact there: matrix products of floats run in BLAS, those of
integers do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType, Tensor
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    Ints,
    clamp_float,
    effective_scales,
    refuse_narrow_bias,
    rescale,
    zero_point_of,
)

#: Consecutive integers that float32 holds exactly.
_EXACT_FLOAT32 = 2**24


@kernel("CONV_2D")
def conv_2d(call: Call) -> Sequence[Array]:
    """A convolution, grouped where the weights have fewer input channels than the image."""
    weight = call.value(1)
    windows = _windows(call, weight.shape[1:3])
    groups = windows.shape[-1] // weight.shape[-1]
    per_group = weight.shape[0] // groups
    sums = []
    for group in range(groups):
        depth = weight.shape[-1]
        columns = windows[..., group * depth : (group + 1) * depth]
        matrix = weight[group * per_group : (group + 1) * per_group]
        n, height, width = columns.shape[:3]
        flat = columns.reshape(n * height * width, -1)
        found = matmul(flat, matrix.reshape(per_group, -1).T)
        sums.append(found.reshape(n, height, width, per_group))
    return [_finish(call, np.concatenate(sums, axis=-1) if groups > 1 else sums[0])]


@kernel("DEPTHWISE_CONV_2D")
def depthwise_conv_2d(call: Call) -> Sequence[Array]:
    """Each input channel with its own filters; output channel ``c * multiplier + m`` reads channel ``c``."""
    weight = call.value(1)
    windows = _windows(call, weight.shape[1:3])
    multiplier = weight.shape[-1] // windows.shape[-1]
    kind = _ACCUMULATORS[call.input(0).dtype]
    total = np.zeros((*windows.shape[:3], weight.shape[-1]), kind)
    for y in range(weight.shape[1]):
        for x in range(weight.shape[2]):
            tap = windows[:, :, :, y, x].astype(kind)
            total += (np.repeat(tap, multiplier, axis=-1) if multiplier > 1 else tap) * weight[
                0, y, x
            ].astype(kind)
    return [_finish(call, total)]


@kernel("TRANSPOSE_CONV")
def transpose_conv(call: Call) -> Sequence[Array]:
    """The gradient of a convolution. Inputs: the output's shape, weights, image and perhaps a bias."""
    weight, image, output = call.value(1), _centred(call.input(2), call.value(2)), call.outputs[0]
    strides = call.option("strideH", 1), call.option("strideW", 1)
    kernel_size = weight.shape[1:3]
    out_size = output.shape[1:3]
    before = [
        _padding(call, size, stride, taps, 1, transposed=True)
        for size, stride, taps in zip(out_size, strides, kernel_size, strict=True)
    ]
    n, height, width, depth = image.shape
    products = matmul(image.reshape(-1, depth), weight.reshape(-1, depth).T)
    products = products.reshape(n, height, width, weight.shape[0], *kernel_size)
    # Scatter into a canvas that holds every product, then cut the padding off.
    canvas_size = [(m - 1) * s + k for m, s, k in zip((height, width), strides, kernel_size, strict=True)]
    canvas_size = [max(c, b + o) for c, b, o in zip(canvas_size, before, out_size, strict=True)]
    canvas = np.zeros((n, *canvas_size, weight.shape[0]), products.dtype)
    for y in range(kernel_size[0]):
        for x in range(kernel_size[1]):
            rows = slice(y, y + (height - 1) * strides[0] + 1, strides[0])
            columns = slice(x, x + (width - 1) * strides[1] + 1, strides[1])
            canvas[:, rows, columns] += products[..., y, x]
    total = canvas[:, before[0] : before[0] + out_size[0], before[1] : before[1] + out_size[1]]
    return [_finish(call, total, image=2, bias=3)]


#: What sums of products of codes fit in.
_ACCUMULATORS: dict[DType, np.dtype[Any]] = {
    DType.INT8: np.dtype(np.int32),
    DType.INT16: np.dtype(np.int64),
    DType.FLOAT32: np.dtype(np.float32),
}


def _centred(tensor: Tensor, value: Array) -> Array:
    """Codes less their zero point; floats as they are."""
    if tensor.dtype is DType.FLOAT32:
        return value
    return value.astype(np.int32) - zero_point_of(tensor)


def _windows(call: Call, kernel_size: tuple[int, ...]) -> Array:
    """The pixels under the filter at each output pixel, ``[N, oH, oW, kH, kW, C]``; zeros outside."""
    image = _centred(call.input(0), call.value(0))
    sizes = image.shape[1:3]
    strides = call.option("strideH", 1), call.option("strideW", 1)
    dilations = call.option("dilationHFactor", 1), call.option("dilationWFactor", 1)
    padding, spans = [], []
    for size, stride, taps, dilation, out in zip(
        sizes, strides, kernel_size, dilations, call.outputs[0].shape[1:3], strict=True
    ):
        span = (taps - 1) * dilation + 1
        before = _padding(call, size, stride, taps, dilation)
        padding.append((before, max(0, (out - 1) * stride + span - size - before)))
        spans.append(span)
    image = np.pad(image, ((0, 0), *padding, (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(image, spans, axis=(1, 2))
    views = views[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    out_size = call.outputs[0].shape[1:3]
    return views[:, : out_size[0], : out_size[1]].transpose(0, 1, 2, 4, 5, 3)


def _padding(call: Call, size: int, stride: int, taps: int, dilation: int, transposed: bool = False) -> int:
    """Pixels before the first; with ``transposed`` for the convolution whose input has `size` pixels."""
    padding = call.option("padding", "SAME")
    if padding not in ("SAME", "VALID"):
        raise ModelError(f"{call.operator.op} has the padding {padding!r}", valid=["SAME", "VALID"])
    if padding == "VALID":
        return 0
    out = -(-size // stride)
    return max(0, (out - 1) * stride + (taps - 1) * dilation + 1 - size) // 2


def matmul(left: Array, right: Array) -> Array:
    """A matrix product that is exact for integers: int64, or float32 for floats.

    Args:
        left: ``[…, M, K]`` integers below 2 ** 31, or floats.
        right: ``[…, K, N]``, likewise.
    """
    if left.dtype.kind == "f":
        product: Array = left @ right
        return product
    largest = [int(np.abs(side.astype(np.int64)).max(initial=0)) for side in (left, right)]
    most = largest[0] * largest[1] * left.shape[-1]
    # Every partial sum is an integer no larger than `most`.
    exact: npt.DTypeLike = np.float32 if most < _EXACT_FLOAT32 else np.float64
    if most >= 2**53:
        exact = np.int64
    sums: Array = (left.astype(exact) @ right.astype(exact)).astype(np.int64)
    return sums


def _finish(call: Call, total: Array, image: int = 0, bias: int = 2) -> Array:
    """Bias, scale and activation.

    Args:
        call: The operator.
        total: Sums of products.
        image: Which input is the image.
        bias: Which input is the bias, if there is one.
    """
    output, activation = call.outputs[0], call.option("fusedActivationFunction", "NONE")
    added = call.values[bias] if len(call.values) > bias else None
    if output.dtype is DType.FLOAT32:
        return clamp_float(total if added is None else total + added, activation)
    if added is not None:
        refuse_narrow_bias(call.inputs[bias], output)
    summed: Ints = total.astype(np.int64) + (0 if added is None else added.astype(np.int64))
    return rescale(summed, effective_scales(call.input(image), call.input(1), output), output, activation)
