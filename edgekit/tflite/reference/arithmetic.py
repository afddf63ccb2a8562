"""Arithmetic of two tensors, element by element with broadcasting, and the change of scales.

ADD, SUB, MUL, DIV, SQUARED_DIFFERENCE, MAXIMUM, MINIMUM, QUANTIZE and DEQUANTIZE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType, Tensor
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.fixed_point import (
    Ints,
    clamp_float,
    code_range,
    multiply,
    quantize_multiplier,
    round_half_away,
    scale_of,
    to_codes,
    wrap_int32,
    zero_point_of,
)
from edgekit.tflite.schema import label

#: Bits that addition gains by shifting both sides up before it brings them to one scale.
_HEADROOM = {DType.INT8: 20, DType.INT16: 15}
_HEADROOM_SQUARED = 7

_FLOATS: dict[str, Callable[[Array, Array], Array]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "DIV": np.divide,
}


@kernel("ADD", "SUB")
def add(call: Call) -> Sequence[Array]:
    """A sum or a difference: both sides are brought to twice the larger scale, then to the output's."""
    output = call.outputs[0]
    if output.dtype not in _HEADROOM:
        return [_plain(call)]
    _refuse_powers_of_two(call)
    shift = _HEADROOM[output.dtype]
    left, right, twice = _one_scale(call, shift)
    total = left + right if call.operator.op == "ADD" else left - right
    factor = _below_one(call, twice / (2.0**shift * np.float64(scale_of(output))))
    return [to_codes(multiply(wrap_int32(total), *quantize_multiplier(factor)), output, _activation(call))]


@kernel("MUL")
def mul(call: Call) -> Sequence[Array]:
    """A product."""
    output = call.outputs[0]
    if output.dtype not in _HEADROOM:
        return [_plain(call)]
    product = _centred(call, 0) * _centred(call, 1)
    # TFLite computes this factor in float32.
    factor = scale_of(call.input(0)) * scale_of(call.input(1)) / scale_of(output)
    return [to_codes(multiply(product, *quantize_multiplier(factor)), output, _activation(call))]


@kernel("DIV")
def div(call: Call) -> Sequence[Array]:
    """A quotient of floats."""
    if call.outputs[0].dtype is not DType.FLOAT32:
        # LiteRT can, but ends the inference at a zero in the divisor.
        raise ModelError(
            "the integer reference does not divide codes",
            where=label(call.operator),
            hint="Leave it in float",
        )
    return [_plain(call)]


@kernel("SQUARED_DIFFERENCE")
def squared_difference(call: Call) -> Sequence[Array]:
    """``(a - b) ** 2``."""
    output = call.outputs[0]
    if output.dtype is DType.FLOAT32:
        return [np.square(call.value(0) - call.value(1))]
    if output.dtype is not DType.INT8:
        raise ModelError(f"TFLite has no SQUARED_DIFFERENCE of {output.dtype}", where=label(call.operator))
    left, right, twice = _one_scale(call, _HEADROOM_SQUARED)
    square = wrap_int32((left - right) ** 2)
    factor = _below_one(call, twice**2 / (2.0 ** (2 * _HEADROOM_SQUARED) * np.float64(scale_of(output))))
    return [to_codes(multiply(square, *quantize_multiplier(factor)), output)]


@kernel("MAXIMUM", "MINIMUM")
def extremum(call: Call) -> Sequence[Array]:
    """The larger or the smaller of two; codes are compared as they are."""
    output = call.outputs[0]
    for tensor in (call.input(0), call.input(1)):
        if output.quantization is not None and not output.quantization.same_as(tensor.quantization):
            raise ModelError(
                f"{call.operator.op} compares codes: {tensor.name!r} needs the output's scale and zero point",
                where=label(call.operator),
            )
    choose = np.maximum if call.operator.op == "MAXIMUM" else np.minimum
    return [choose(call.value(0), call.value(1))]


@kernel("QUANTIZE")
def quantize(call: Call) -> Sequence[Array]:
    """Floats to codes, or codes of one scale to codes of another."""
    source, output = call.input(0), call.outputs[0]
    if source.dtype is DType.FLOAT32:
        return [_quantized(call.value(0), output)]
    factor = np.float64(scale_of(source)) / np.float64(scale_of(output))
    return [to_codes(multiply(_centred(call, 0), *quantize_multiplier(factor)), output)]


@kernel("DEQUANTIZE")
def dequantize(call: Call) -> Sequence[Array]:
    """Codes to floats."""
    scale, zero_point = _per_axis(call.input(0))
    return [scale * (call.value(0).astype(np.int64) - zero_point).astype(np.float32)]


def _quantized(real: Array, output: Tensor) -> Array:
    scale, zero_point = _per_axis(output)
    low, high = code_range(output.dtype)
    # The division is in float32, its rounding exact; what overflows is clamped all the same.
    with np.errstate(over="ignore"):
        steps = np.clip(real.astype(np.float32) / scale, np.float32(-(2.0**31)), np.float32(2.0**31 - 128))
    return np.clip(round_half_away(steps) + zero_point, low, high).astype(output.dtype.numpy)


def _per_axis(tensor: Tensor) -> tuple[Array, Array]:
    """Scales and zero points that broadcast against the tensor."""
    if tensor.quantization is None:
        raise ModelError("its codes have no scale", where=f"tensor {tensor.name!r}")
    shape = [1] * len(tensor.shape)
    if len(tensor.quantization.scale) > 1:
        shape[tensor.quantization.axis] = -1
    elif not shape:
        return tensor.quantization.scale[0], tensor.quantization.zero_point[0]
    return tensor.quantization.scale.reshape(shape), tensor.quantization.zero_point.reshape(shape)


def _one_scale(call: Call, shift: int) -> tuple[Ints, Ints, np.float64]:
    """Both inputs in units of ``twice / 2 ** shift``, and `twice` the larger scale."""
    scales = [np.float64(scale_of(call.input(i))) for i in (0, 1)]
    twice = 2 * max(scales)
    sides = [multiply(_centred(call, i) << shift, *quantize_multiplier(scales[i] / twice)) for i in (0, 1)]
    return sides[0], sides[1], twice


def _centred(call: Call, index: int) -> Ints:
    return call.value(index).astype(np.int64) - zero_point_of(call.input(index))


def _plain(call: Call) -> Array:
    result = _FLOATS[call.operator.op](call.value(0), call.value(1))
    return clamp_float(result, _activation(call)) if call.outputs[0].dtype is DType.FLOAT32 else result


def _activation(call: Call) -> str:
    return str(call.option("fusedActivationFunction", "NONE"))


def _below_one(call: Call, factor: np.float64) -> np.float64:
    if factor >= 1:
        raise ModelError(
            f"a step of its inputs is worth {factor:.3g} steps of the output; LiteRT aborts from 1 on",
            where=label(call.operator),
            hint="Widen the output's range",
        )
    return factor


def _refuse_powers_of_two(call: Call) -> None:
    """16-bit sums take another path where all scales are powers of two; an option forbids it."""
    tensors = [call.input(0), call.input(1), call.outputs[0]]
    if tensors[0].dtype is not DType.INT16 or not call.option("potScaleInt16", True):
        return
    logarithms = np.log2([np.float64(scale_of(tensor)) for tensor in tensors])
    if (np.abs(logarithms - np.round(logarithms)) < 1e-3).all():
        raise ModelError(
            "all scales are powers of two, for which LiteRT has 16-bit kernels of its own",
            where=label(call.operator),
            hint="Set the option potScaleInt16=False",
        )
