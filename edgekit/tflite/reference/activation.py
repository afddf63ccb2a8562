"""Kernels of one tensor, element by element: RELU … GELU, EXP, ABS; and PRELU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType, Tensor
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    code_range,
    multiply,
    quantize_multiplier,
    round_half_away,
    rounding_divide_by_pot,
    scale_of,
    to_codes,
    zero_point_of,
)
from edgekit.tflite.reference.tables import (
    Curve,
    in_double,
    int8_table,
    int16_table,
    look_up_int8,
    look_up_int16,
    sigmoid_table,
)
from edgekit.tflite.schema import label

_EXP, _EXPM1, _TANH, _LOG = (in_double(function) for function in (np.exp, np.expm1, np.tanh, np.log))
_ERFC = in_double(np.vectorize(math.erfc, otypes=[np.float64]))
_ONE, _HALF = np.float32(1), np.float32(0.5)


def _centred(call: Call, index: int = 0) -> Array:
    """Codes less their zero point: int64."""
    return call.value(index).astype(np.int64) - zero_point_of(call.input(index))


def _rescaled(centred: Array, real: np.float32) -> Array:
    """Times a real multiplier, which TFLite computes in float32."""
    return multiply(centred, *quantize_multiplier(real))


#: Bounds of each operator's output.
_BOUNDS: dict[str, tuple[float, float]] = {
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}


@kernel(*_BOUNDS)
def relu(call: Call) -> Sequence[Array]:
    """Rescaled and clipped to the codes of the bounds."""
    low, high = _BOUNDS[call.operator.op]
    source, result = call.input(0), call.outputs[0]
    if source.dtype is DType.FLOAT32:
        return [np.clip(call.value(0), np.float32(low), np.float32(high))]
    zero, scale = zero_point_of(result), scale_of(result)
    lowest, highest = code_range(result.dtype)
    lowest = max(lowest, zero + int(round_half_away(np.float32(low) / scale)))
    if math.isfinite(high):
        highest = min(highest, zero + int(round_half_away(np.float32(high) / scale)))
    codes = _rescaled(_centred(call), scale_of(source) / scale) + zero
    return [np.clip(codes, lowest, highest).astype(result.dtype.numpy)]


@kernel("LEAKY_RELU")
def leaky_relu(call: Call) -> Sequence[Array]:
    """One multiplier for codes above the zero point, another for those below."""
    source, result = call.input(0), call.outputs[0]
    alpha = np.float32(call.option("alpha", 0.0))
    if source.dtype is DType.FLOAT32:
        values = call.value(0)
        return [np.where(values > 0, values, values * alpha)]
    centred = _centred(call)
    scaled = scale_of(source) * alpha / scale_of(result)
    above = _rescaled(centred, scale_of(source) / scale_of(result))
    # Multipliers are not negative: the sign of alpha goes to the product.
    below = _rescaled(centred, np.abs(scaled)) * int(np.sign(scaled))
    return [to_codes(np.where(centred >= 0, above, below), result)]


@kernel("PRELU")
def prelu(call: Call) -> Sequence[Array]:
    """As LEAKY_RELU, with slopes that are codes of input 1 and broadcast."""
    source, slopes, result = call.input(0), call.input(1), call.outputs[0]
    if source.dtype is DType.FLOAT32:
        values = call.value(0)
        return [np.where(values >= 0, values, values * call.value(1))]
    if slopes.dtype is not DType.INT8:
        # With int16 the kernel reads the bytes of the slopes as int8 and says nothing.
        raise ModelError("its slopes have to be int8", where=label(call.operator), hint="Store them as int8.")
    centred, alpha = _centred(call), _centred(call, 1)
    above = _rescaled(centred, scale_of(source) / scale_of(result))
    below = _rescaled(centred * alpha, scale_of(source) * scale_of(slopes) / scale_of(result))
    return [to_codes(np.where(centred >= 0, above, below), result)]


def _high_mul_16(left: Array, right: int) -> Array:
    """Half of the product's upper 16 bits, rounded: SQRDMULH of int16, held in int64."""
    product = left * right
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    # C divides towards zero.
    return np.asarray(np.minimum(np.sign(nudged) * (np.abs(nudged) >> 15), 32767))


def _shifted_16(values: Array, amount: int) -> Array:
    return np.asarray(np.clip(values << amount, -32768, 32767))


def _multiplier_16(real: np.float32) -> tuple[int, int]:
    multiplier, shift = quantize_multiplier(real)
    return min((int(multiplier) + (1 << 15)) >> 16, 32767), int(shift)


@kernel("HARD_SWISH")
def hard_swish(call: Call) -> Sequence[Array]:
    """In 16-bit fixed point: x times relu6(x + 3) / 6, both factors as codes that use all 16 bits."""
    source, result = call.input(0), call.outputs[0]
    if source.dtype is DType.FLOAT32:
        values = call.value(0)
        six = np.clip(values + np.float32(3), np.float32(0), np.float32(6))
        return [values * six / np.float32(6)]
    fine = np.float32(1 / 128) * scale_of(source)
    out_multiplier, out_shift = _multiplier_16(fine / scale_of(result))
    if not -15 <= out_shift <= 0:
        # LiteRT refuses the one and shifts 16-bit numbers by more than their width in the other.
        raise ModelError(
            f"its input's scale is {scale_of(source) / scale_of(result):.3g} times its output's",
            where=label(call.operator),
            valid=["1/256 to 127 times"],
            hint="Let both tensors span the range of their values.",
        )
    gate_multiplier, gate_shift = _multiplier_16(fine / np.float32(3 / 32768))
    values = _centred(call) << 7
    gate = _shifted_16(values, gate_shift - 1) if gate_shift > 0 else values
    gate = _high_mul_16(gate, gate_multiplier)
    gate = _shifted_16(gate, 1) if gate_shift > 0 else rounding_divide_by_pot(gate, max(-gate_shift, 0))
    gate = (gate + (1 << 15)) >> 1
    product = gate * _high_mul_16(values, out_multiplier)
    scaled = np.sign(product) * (np.abs(product) >> 15)
    return [to_codes(rounding_divide_by_pot(scaled, -out_shift), result)]


@kernel("ABS")
def absolute(call: Call) -> Sequence[Array]:
    """Rescaled only where the scales differ."""
    source, result = call.input(0), call.outputs[0]
    if source.quantization is None or result.quantization is None:
        return [np.abs(call.value(0))]
    wide = np.abs(_centred(call))
    if scale_of(source) != scale_of(result):
        wide = _rescaled(wide, scale_of(source) / scale_of(result))
    return [to_codes(wide, result)]


@kernel("NEG")
def negative(call: Call) -> Sequence[Array]:
    """The negated codes: right only with one scale and zero points of 0; -128 stays -128."""
    return [np.negative(call.value(0))]


def _sigmoid(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return _ONE / (_ONE + _EXP(-values))


def _elu(values: Array) -> Array:
    return np.where(values < 0, _EXPM1(np.minimum(values, 0)), values)


def _gelu(values: Array) -> Array:
    return _HALF * values * _ERFC(values * np.float32(-math.sqrt(0.5)))


def _gelu_tanh(values: Array) -> Array:
    cubic = np.float32(0.044715) * values * values * values
    return _HALF * values * (_ONE + _TANH(np.float32(math.sqrt(2 / math.pi)) * (values + cubic)))


def _log(lowest: np.float32) -> Curve:
    """The logarithm, and ``lowest`` for what has none."""
    return lambda values: np.where(values > 0, _LOG(np.where(values > 0, values, _ONE)), lowest)


def _by_table(call: Call, curve: Curve) -> Array:
    source, result = call.input(0), call.outputs[0]
    if source.dtype is DType.INT8:
        return look_up_int8(call.value(0), int8_table(source, result, curve))
    ends = [(float(scale_of(tensor)), zero_point_of(tensor)) for tensor in (source, result)]
    return look_up_int16(call.value(0), int16_table(ends[0], ends[1], curve))


@kernel("ELU", "GELU", "EXP")
def by_curve(call: Call) -> Sequence[Array]:
    """int8 by a table of 256 entries; GELU and EXP also have int16, by interpolation."""
    curves = {"ELU": _elu, "GELU": _gelu_tanh if call.option("approximate", False) else _gelu, "EXP": _EXP}
    curve = curves[call.operator.op]
    return [curve(call.value(0)) if call.input(0).dtype is DType.FLOAT32 else _by_table(call, curve)]


@kernel("LOG")
def log(call: Call) -> Sequence[Array]:
    """What is not positive becomes the lowest code."""
    result = call.outputs[0]
    if result.dtype is DType.FLOAT32:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [np.log(call.value(0))]
    lowest = np.float32(code_range(result.dtype)[0] - zero_point_of(result)) * scale_of(result)
    return [_by_table(call, _log(lowest))]


@kernel("SQRT")
def sqrt(call: Call) -> Sequence[Array]:
    """In float32, then cut off, not rounded. Codes below the zero point are refused, as in LiteRT."""
    source, result = call.input(0), call.outputs[0]
    if source.dtype is DType.FLOAT32:
        with np.errstate(invalid="ignore"):
            return [np.sqrt(call.value(0))]
    centred = _centred(call)
    if centred.min(initial=0) < 0:
        raise ModelError("it is only defined for values that are not negative", where=label(call.operator))
    roots = np.sqrt(scale_of(source) * centred.astype(np.float32)) / scale_of(result)
    return [to_codes(np.trunc(roots).astype(np.int64), result)]


@kernel("LOGISTIC")
def logistic(call: Call) -> Sequence[Array]:
    """int8 has the output scale 1/256 and zero point -128, int16 1/32768 and 0."""
    if call.input(0).dtype is DType.FLOAT32:
        return [_sigmoid(call.value(0))]
    if call.input(0).dtype is DType.INT8:
        return [_by_table(call, _sigmoid)]
    scaled = _table_positions(call.value(0), call.input(0), (0,))
    entry, saturated = _interpolated(np.abs(scaled), 9)
    entry = np.where(saturated, 0x7FFF << 10, entry)
    signed = np.where(scaled >= 0, entry + (1 << 9), (1 << 25) - entry + (1 << 9) - 1)
    return [(signed >> 10).astype(np.int16)]


@kernel("TANH")
def tanh(call: Call) -> Sequence[Array]:
    """int16 has the output scale 1/32768: 2 sigmoid(2x) - 1."""
    if call.input(0).dtype is DType.FLOAT32:
        return [_TANH(call.value(0))]
    if call.input(0).dtype is DType.INT8:
        return [_by_table(call, _TANH)]
    scaled = _table_positions(call.value(0), call.input(0), (0, 1))
    entry, saturated = _interpolated(np.abs(scaled), 8)
    entry = np.where(saturated, 0xFFFF << 8, entry)
    middle = 1 << 23
    signed = np.where(scaled >= 0, entry - middle + (1 << 7), -entry + middle + (1 << 7) - 1)
    return [(signed >> 8).astype(np.int16)]


def _table_positions(codes: Array, source: Tensor, exact_shifts: tuple[int, ...]) -> Array:
    """Inputs in units of 1 / (3 * 4096): int64.

    A power of two that needs one of ``exact_shifts`` takes a whole multiplier, any other scale a rounded one.
    """
    scale = scale_of(source)
    exponent = np.float32(np.log(scale)) * (_ONE / np.float32(math.log(2.0)))
    shift = 12 + int(round_half_away(exponent))
    if abs(exponent - round_half_away(exponent)) < 1e-3 and shift in exact_shifts:
        return codes.astype(np.int64) * (3 << shift)
    multiplier, right = float(scale) * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and right <= 30:
        multiplier, right = multiplier * 2.0, right + 1
    rounding = 1 << (right - 1) if right > 0 else 0
    return (codes.astype(np.int64) * int(multiplier) + rounding) >> right


def _interpolated(positions: Array, bits: int) -> tuple[Array, Array]:
    """Entries of the sigmoid's table times ``2**bits``, and which positions lie beyond it."""
    table = sigmoid_table()
    index = positions >> bits
    saturated = index >= 255
    index = np.minimum(index, 254)
    entry = (table[index] << bits) + (positions & ((1 << bits) - 1)) * (table[index + 1] - table[index])
    return entry, saturated
