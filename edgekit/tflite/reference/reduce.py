"""Reductions over axes: MEAN, SUM, REDUCE_MAX and REDUCE_MIN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    multiply,
    quantize_multiplier,
    scale_of,
    to_codes,
    wrap_int32,
    zero_point_of,
)
from edgekit.tflite.schema import label


@kernel("MEAN", "SUM")
def mean(call: Call) -> Sequence[Array]:
    """The mean or the sum; the division by the count is folded into the multiplier."""
    source, output, axes = call.input(0), call.outputs[0], _axes(call)
    is_mean = call.operator.op == "MEAN"
    value = call.value(0)
    if output.dtype is DType.FLOAT32:
        return [(value.mean(axes) if is_mean else value.sum(axes)).astype(np.float32).reshape(output.shape)]
    count = int(np.prod([value.shape[axis] for axis in axes], dtype=np.int64))
    factor = np.float64(scale_of(source)) / np.float64(scale_of(output))
    multiplier, shift = (int(part) for part in quantize_multiplier(factor))
    if is_mean:
        bits = min(count.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << bits) // count, shift - bits
    total = wrap_int32(value.astype(np.int64).sum(axes) - zero_point_of(source) * count)
    return [to_codes(multiply(total, multiplier, shift), output).reshape(output.shape)]


@kernel("REDUCE_MAX", "REDUCE_MIN")
def extremum(call: Call) -> Sequence[Array]:
    """The largest or the smallest element; codes are compared as they are."""
    source, output = call.input(0), call.outputs[0]
    if output.quantization is not None and not output.quantization.same_as(source.quantization):
        raise ModelError(
            f"{call.operator.op} copies codes, so input and output need one scale and zero point",
            where=label(call.operator),
        )
    choose = np.max if call.operator.op == "REDUCE_MAX" else np.min
    return [np.asarray(choose(call.value(0), axis=_axes(call))).reshape(output.shape)]


def _axes(call: Call) -> tuple[int, ...]:
    rank = call.value(0).ndim
    return tuple(sorted({int(axis) % rank for axis in call.value(1).reshape(-1)}))
