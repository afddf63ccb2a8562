"""Kernels of SOFTMAX and LOG_SOFTMAX along the last axis, with gemmlowp's fixed-point exp, log and division.

A fixed-point number "of n bits" is an integer of 32 bits, n of them before the point besides the sign: its
value is ``integer / 2 ** (31 - n)``. All arrays are int64 so that products do not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    multiply,
    quantize_multiplier,
    rounding_divide_by_pot,
    scale_of,
)
from edgekit.tflite.reference.fixed_point import saturating_rounding_doubling_high_mul as high_mul
from edgekit.tflite.reference.tables import int16_table, look_up_int16

_MOST = (1 << 31) - 1
#: Bits before the point of input differences and of their sums.
_DIFFERENCE, _SUM = 5, 12


def _constant(real: float, bits: int = 0) -> Array:
    return np.array(round(real * 2 ** (31 - bits)), np.int64)


def _shifted_left(values: Array, amount: Array | int) -> Array:
    """Times a power of two, saturating at 32 bits."""
    return np.clip(values << np.asarray(amount, np.int64), -_MOST - 1, _MOST)


def _leading_zeros(values: Array) -> Array:
    """Of positive 32-bit integers; 32 for 0."""
    return 32 - np.frexp(values.astype(np.float64))[1].astype(np.int64)


def exp_of_negative(values: Array) -> Array:
    """exp of numbers of 5 bits that are not positive, as numbers of 0 bits.

    A Taylor polynomial over a quarter, then one factor for each bit of what is left.
    """
    quarter = 1 << (31 - _DIFFERENCE - 2)
    part = (values & (quarter - 1)) - quarter
    x = _shifted_left(part, _DIFFERENCE) + (1 << 28)
    square = high_mul(x, x)
    cube, fourth = high_mul(square, x), high_mul(square, square)
    third = high_mul(rounding_divide_by_pot(fourth, 2) + cube, _constant(1 / 3))
    tail = rounding_divide_by_pot(third + square, 1)
    result = _constant(math.exp(-1 / 8)) + high_mul(
        np.broadcast_to(_constant(math.exp(-1 / 8)), x.shape), x + tail
    )
    rest = part - values
    for exponent in range(-2, _DIFFERENCE):
        bit = 1 << (31 - _DIFFERENCE + exponent)
        result = np.where(rest & bit, high_mul(result, _constant(math.exp(-(2.0**exponent)))), result)
    return np.where(values == 0, _MOST, result)


def reciprocal_of_one_plus(values: Array) -> Array:
    """1 / (1 + x) of numbers of 0 bits in [0, 1), as numbers of 0 bits: three Newton steps."""
    half = (values + _MOST + 1) >> 1
    x = _constant(48 / 17, 2) + high_mul(half, _constant(-32 / 17, 2))
    for _ in range(3):
        rest = (1 << 29) - high_mul(half, x)
        x = x + _shifted_left(high_mul(x, rest), 2)
    return _shifted_left(x, 1)


def log_of_at_least_one(values: Array) -> Array:
    """The natural logarithm of numbers of 12 bits that are at least 1, as numbers of 5 bits.

    The power of two is taken off, from the number or from its product with sqrt(1/2), whichever leaves less;
    the rest is a quotient of polynomials around the fourth root of 1/2.
    """
    root, half_root = _constant(math.sqrt(0.5)), _constant(0.5**0.25)
    whole = 31 - (_DIFFERENCE + 1)
    quarter = 1 << (whole - 2)
    zeros = _leading_zeros(values)
    first = _shifted_left(high_mul(_shifted_left(values, zeros - 1), root), 1)
    first_power = _shifted_left(_SUM - zeros, whole) + quarter
    room = _leading_zeros(high_mul(values, root)) - 1
    second = _shifted_left(values, room)
    second_power = _shifted_left(_SUM - room, whole) - quarter
    rest, power = np.minimum(first, second), np.maximum(first_power, second_power)
    mean, offset = (rest + half_root + 1) >> 1, 2 * (rest - half_root)
    square = high_mul(offset, offset)
    fourth = 2**0.25
    numerator = high_mul(offset, rest) + high_mul(high_mul(offset, square), _constant(11 / 240 * fourth))
    inner = _constant(2 / fourth - fourth) + offset + high_mul(square, _constant(fourth / 20))
    denominator = high_mul(mean, inner) + high_mul(offset, _constant(fourth / 4))
    fraction = high_mul(
        rounding_divide_by_pot(numerator, _DIFFERENCE + 1), reciprocal_of_one_plus(denominator)
    )
    return _shifted_left(high_mul(power, _constant(math.log(2))) + fraction, 1)


def _difference_scaling(call: Call, beta: float) -> tuple[Array, Array, int]:
    """Multiplier and shift from codes to numbers of 5 bits, and the lowest difference that counts."""
    real = min(beta * float(scale_of(call.input(0))) * (1 << (31 - _DIFFERENCE)), float(_MOST))
    multiplier, shift = quantize_multiplier(real)
    radius = math.floor(((1 << _DIFFERENCE) - 1) * (1 << (31 - _DIFFERENCE)) / 2 ** int(shift))
    return multiplier, shift, -radius


def _differences(values: Array) -> Array:
    wide = values.astype(np.int64)
    return np.asarray(wide - wide.max(axis=-1, keepdims=True))


def _sum_of_exps(exps: Array, counts: Array) -> Array:
    return np.asarray(np.sum(np.where(counts, rounding_divide_by_pot(exps, _SUM), 0), axis=-1, keepdims=True))


@kernel("SOFTMAX")
def softmax(call: Call) -> Sequence[Array]:
    """int8 has the output scale 1/256 and zero point -128, int16 1/32768 and 0."""
    values, beta = call.value(0), float(np.float32(call.option("beta", 0.0)))
    if call.input(0).dtype is DType.FLOAT32:
        exps = np.exp((values - values.max(axis=-1, keepdims=True)) * np.float32(beta))
        return [exps / exps.sum(axis=-1, keepdims=True, dtype=np.float32)]
    if call.input(0).dtype is DType.INT16:
        return [_softmax_int16(values, scale_of(call.input(0)) * np.float32(beta))]
    multiplier, shift, lowest = _difference_scaling(call, beta)
    differences = _differences(values)
    counts = differences >= lowest
    scaled = multiply(np.where(counts, differences, 0), multiplier, shift)
    exps = exp_of_negative(scaled)
    total = _sum_of_exps(exps, counts)
    zeros = _leading_zeros(total)
    inverse = reciprocal_of_one_plus((total << zeros) - (1 << 31))
    codes = rounding_divide_by_pot(high_mul(inverse, exps), _SUM - zeros + 31 - 8) - 128
    return [np.where(counts, np.clip(codes, -128, 127), -128).astype(np.int8)]


def _softmax_int16(values: Array, scale: np.float32) -> Array:
    """exp over [-10, 0] and 1 / (1 + x) over [0, 1] from interpolated tables."""
    step = 1 / 65535
    exp_table = int16_table((10.0 * step, 32767), (2.0 * step, 0), np.exp, np.float64)
    inverse_table = int16_table((step, -32768), (2.0 * step, 0), lambda x: 1 / (1 + x), np.float64)
    multiplier, shift = quantize_multiplier(float(scale) / (10.0 / 65535.0))
    scaled = multiply(_differences(values), multiplier, shift)
    exps = look_up_int16(np.clip(scaled + 32767, -32768, 32767), exp_table).astype(np.int64)
    total = exps.sum(axis=-1, keepdims=True)
    zeros = _leading_zeros(total)
    centred = (((total << (zeros - 1)) + (1 << 13)) >> 14) - (1 << 15) - (1 << 16)
    inverse = look_up_int16(np.clip(centred, -32768, 32767), inverse_table).astype(np.int64)
    right = 31 - zeros
    result = (exps * inverse + (np.int64(1) << (right - 1))) >> right
    return np.asarray(np.clip(result, 0, 32767), np.int16)


@kernel("LOG_SOFTMAX")
def log_softmax(call: Call) -> Sequence[Array]:
    """int8 has the output scale 1/16 and zero point 127."""
    values = call.value(0)
    if call.input(0).dtype is DType.FLOAT32:
        centred = values - values.max(axis=-1, keepdims=True)
        return [centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True, dtype=np.float32))]
    multiplier, shift, lowest = _difference_scaling(call, 1.0)
    back, back_shift = quantize_multiplier(2.0 ** (31 - int(shift)) / float(multiplier))
    differences = _differences(values)
    counts = differences >= lowest
    scaled = multiply(np.where(counts, differences, 0), multiplier, shift)
    logs = log_of_at_least_one(_sum_of_exps(exp_of_negative(scaled), counts))
    least = np.maximum(lowest - 1, multiply(logs - _MOST - 1, back, back_shift))
    codes = rounding_divide_by_pot(scaled - logs, 31 - _DIFFERENCE - 4) + 127
    return [np.where(differences > least, np.clip(codes, -128, 127), -128).astype(np.int8)]
