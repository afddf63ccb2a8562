"""Matrix products: FULLY_CONNECTED and BATCH_MATMUL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.conv import matmul
from edgekit.tflite.reference.fixed_point import (
    clamp_float,
    effective_scales,
    multiply,
    multiply_wide,
    quantize_multiplier,
    refuse_narrow_bias,
    round_half_away,
    to_codes,
    wrap_int32,
    zero_point_of,
)


@kernel("FULLY_CONNECTED")
def fully_connected(call: Call) -> Sequence[Array]:
    """Rows of the input times weights ``[O, I]``, plus a bias perhaps."""
    weight, output = call.value(1), call.outputs[0]
    rows = call.value(0).reshape(-1, weight.shape[-1])
    bias = call.values[2] if len(call.values) > 2 else None
    activation = call.option("fusedActivationFunction", "NONE")
    if output.dtype is DType.FLOAT32:
        real = rows @ weight.T
        return [clamp_float(real if bias is None else real + bias, activation).reshape(output.shape)]
    centred = rows.astype(np.int32) - zero_point_of(call.input(0))
    total = matmul(centred, weight.T)
    if bias is not None:
        refuse_narrow_bias(call.inputs[2], output)
        total = total + bias.astype(np.int64)
    # Unlike its other kernels, LiteRT's multiplies by a double here. TFLite Micro's stays in fixed point:
    # some of its codes are one step off.
    whole = round_half_away(total * effective_scales(call.input(0), call.input(1), output))
    return [to_codes(whole, output, activation).reshape(output.shape)]


@kernel("BATCH_MATMUL")
def batch_matmul(call: Call) -> Sequence[Array]:
    """``[…, M, K] @ […, K, N]``, either side transposed where ``adjX`` or ``adjY`` say so."""
    output = call.outputs[0]
    left, right = call.value(0), call.value(1)
    if output.dtype is not DType.FLOAT32:
        left = left.astype(np.int32) - zero_point_of(call.input(0))
        right = right.astype(np.int32) - zero_point_of(call.input(1))
    if call.option("adjX", False):
        left = left.swapaxes(-1, -2)
    if call.option("adjY", False):
        right = right.swapaxes(-1, -2)
    total = matmul(left, right)
    if output.dtype is DType.FLOAT32:
        return [total.astype(np.float32)]
    multiplier, shift = quantize_multiplier(effective_scales(call.input(0), call.input(1), output))
    if output.dtype is DType.INT16:
        return [to_codes(multiply_wide(total, multiplier, shift), output)]
    return [to_codes(multiply(wrap_int32(total), multiplier, shift), output)]
