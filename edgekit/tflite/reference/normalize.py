"""Kernels with an inverse square root in fixed point: L2_NORMALIZATION and RSQRT."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    multiply,
    quantize_multiplier,
    scale_of,
    zero_point_of,
)
from edgekit.tflite.reference.tables import int16_table, look_up_int16
from edgekit.tflite.schema import label

#: Bits that RSQRT keeps behind the point between its two multiplications.
_KEPT = 20


def _high(left: int, right: int) -> int:
    """Half of the product's upper 32 bits, rounded: SQRDMULH of int32."""
    product = left * right
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    return nudged >> 31 if nudged >= 0 else -(-nudged >> 31)


def _saturated(value: int) -> int:
    return max(min(value, (1 << 31) - 1), -(1 << 31))


@functools.lru_cache(maxsize=1 << 16)
def inverse_sqrt(value: int) -> tuple[int, int]:
    """1 / sqrt of an integer as ``multiplier * 2 ** (shift - 31)``; 0 counts as 1.

    Five Newton steps from 1 on a value brought to [1/4, 1), with 3 bits before the point, as in gemmlowp.

    Args:
        value: Below 2**31.
    """
    if value <= 1:
        return (1 << 31) - 1, 0
    right = 11
    while value >= 1 << 29:
        value //= 4
        right += 1
    pairs = (31 - value.bit_length()) // 2 - 1
    right -= pairs
    value <<= 2 * pairs
    start = value >> 1
    half = (start + 1) >> 1
    guess, three_halves = 1 << 28, (1 << 28) + (1 << 27)
    for _ in range(5):
        cube = _saturated(_high(_high(guess, guess), guess) << 6)
        guess = _saturated((_high(three_halves, guess) - _high(half, cube)) << 3)
    guess = _high(guess, round(math.sqrt(0.5) * (1 << 31)))
    if right < 0:
        guess, right = guess << -right, 0
    return guess, -right


@kernel("L2_NORMALIZATION")
def l2_normalization(call: Call) -> Sequence[Array]:
    """Along the last axis; int8 has the output scale 1/128 and zero point 0."""
    values = call.value(0)
    if call.input(0).dtype is DType.FLOAT32:
        norm = np.sqrt(np.sum(values * values, axis=-1, keepdims=True, dtype=np.float32))
        return [values / np.maximum(norm, np.float32(1e-6))]
    centred = values.astype(np.int64) - zero_point_of(call.input(0))
    squares = np.sum(centred * centred, axis=-1, keepdims=True)
    factors = np.array([inverse_sqrt(int(square)) for square in squares.reshape(-1)], np.int64).reshape(-1, 2)
    multiplier, shift = factors[:, 0].reshape(squares.shape), factors[:, 1].reshape(squares.shape)
    return [np.clip(multiply(centred, multiplier, shift + 7), -128, 127).astype(np.int8)]


@kernel("RSQRT")
def rsqrt(call: Call) -> Sequence[Array]:
    """int8 in fixed point, int16 by table. Codes below the zero point are refused, as in LiteRT."""
    source, result, values = call.input(0), call.outputs[0], call.value(0)
    if source.dtype is DType.FLOAT32:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [np.float32(1) / np.sqrt(values)]
    if values.size and int(values.min()) < zero_point_of(source):
        raise ModelError("it is only defined for values that are not negative", where=label(call.operator))
    if source.dtype is DType.INT16:
        highest = np.float32(32767) * scale_of(result)
        ends = [(float(scale_of(tensor)), zero_point_of(tensor)) for tensor in (source, result)]

        def curve(real: Array) -> Array:
            positive = np.where(real > 0, real, np.float32(1))
            return np.where(real > 0, np.float32(1) / np.sqrt(positive), highest)

        return [look_up_int16(values, int16_table(ends[0], ends[1], curve))]
    scale = 1.0 / float(np.sqrt(scale_of(source)) * scale_of(result))
    multiplier, shift = quantize_multiplier(scale)
    table = np.full(256, 127, np.int64)
    for value in range(1, 256):
        inverse, exponent = inverse_sqrt(value)
        fine = multiply(np.array([1], np.int64), inverse, exponent + _KEPT)
        table[value] = multiply(fine, multiplier, shift - _KEPT)[0] + zero_point_of(result)
    centred = values.astype(np.int64) - zero_point_of(source)
    return [np.clip(table[centred], -128, 127).astype(np.int8)]
