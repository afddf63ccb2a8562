"""Fixed-point arithmetic of TFLite: a real multiplier is a 31-bit integer and a power of two.

The formulas are those of gemmlowp (https://github.com/google/gemmlowp/blob/master/doc/quantization.md) and of
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2.2. LiteRT is built with two roundings, one in the multiplication and one in the shift.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType, Tensor

Ints = npt.NDArray[np.int64]
#: What the arithmetic below also takes.
IntsLike = Ints | np.int64 | int

_INT32 = np.iinfo(np.int32)


def quantize_multiplier(real: npt.ArrayLike) -> tuple[Ints, Ints]:
    """``real = multiplier * 2 ** (shift - 31)`` with a multiplier of 31 bits.

    Args:
        real: Multipliers, none negative, of any shape.

    Returns:
        Multipliers and shifts (left where positive), both int64 of the shape of `real`. Multipliers below
        about 2 ** -32 become 0.
    """
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    multiplier = round_half_away(fraction * 2.0**31)
    shift = exponent.astype(np.int64)
    overflow = multiplier == 2**31
    multiplier = np.where(overflow, multiplier // 2, multiplier)
    shift = shift + overflow
    gone = shift < -31
    return np.where(gone, 0, multiplier), np.where(gone, 0, shift)


def round_half_away(real: npt.ArrayLike) -> Ints:
    """The nearest integer, halves away from zero: C's ``round``, where NumPy's goes to even."""
    real = np.asarray(real, np.float64)
    whole = np.trunc(real)
    # Adding 0.5 first would round 0.49999999999999994 up.
    rounded: Ints = (whole + np.where(np.abs(real - whole) >= 0.5, np.sign(real), 0)).astype(np.int64)
    return rounded


def wrap_int32(x: IntsLike) -> Ints:
    """What a 32-bit register holds of `x`."""
    return np.asarray(x, np.int64).astype(np.int32).astype(np.int64)


def saturating_rounding_doubling_high_mul(a: IntsLike, b: IntsLike) -> Ints:
    """``a * b / 2 ** 31`` of 32-bit numbers, halves upwards; gemmlowp's name."""
    high = (np.asarray(a, np.int64) * b + (1 << 30)) >> 31
    # Only the lowest number times itself does not fit: 2 ** 31.
    capped: Ints = np.minimum(high, _INT32.max)
    return capped


def rounding_divide_by_pot(x: IntsLike, exponent: IntsLike) -> Ints:
    """``x / 2 ** exponent``, halves away from zero; gemmlowp's name."""
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + (remainder > threshold)


def multiply(x: IntsLike, multiplier: IntsLike, shift: IntsLike) -> Ints:
    """``x * multiplier * 2 ** (shift - 31)`` of a 32-bit `x`, as LiteRT rounds it.

    Args:
        x: int64 that fit in 32 bits.
        multiplier: From `quantize_multiplier`; broadcast against `x`.
        shift: Likewise.
    """
    x, multiplier, shift = (np.asarray(part, np.int64) for part in (x, multiplier, shift))
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    shifted = wrap_int32(x << left)
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(shifted, multiplier), right)


def multiply_wide(x: IntsLike, multiplier: IntsLike, shift: IntsLike) -> Ints:
    """``x * multiplier * 2 ** (shift - 31)`` of a 48-bit `x`; the multiplier is cut to 16 bits.

    For 16-bit activations, whose products with 31 bits would not fit.

    Args:
        x: int64 below 2 ** 47.
        multiplier: From `quantize_multiplier`; broadcast against `x`.
        shift: Likewise.
    """
    x, multiplier, shift = (np.asarray(part, np.int64) for part in (x, multiplier, shift))
    reduced = np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - shift
    return wrap_int32((x * reduced + (np.int64(1) << (total - 1))) >> total)


def scale_of(tensor: Tensor) -> np.float32:
    """The one scale of a tensor.

    Raises:
        ModelError: It has none, or several.
    """
    if tensor.quantization is None or len(tensor.quantization.scale) != 1:
        raise ModelError("the kernel needs a tensor with one scale", where=f"tensor {tensor.name!r}")
    return np.float32(tensor.quantization.scale[0])


def zero_point_of(tensor: Tensor) -> int:
    """The zero point of a tensor with one scale.

    Raises:
        ModelError: It has none, or several.
    """
    scale_of(tensor)
    return int(tensor.quantization.zero_point[0]) if tensor.quantization else 0


def code_range(dtype: DType) -> tuple[int, int]:
    """Lowest and highest code of an integer type."""
    limits = np.iinfo(dtype.numpy)
    return int(limits.min), int(limits.max)


#: Real bounds of fused activations.
_BOUNDS: dict[str, tuple[float, float]] = {
    "NONE": (-np.inf, np.inf),
    "RELU": (0.0, np.inf),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU6": (0.0, 6.0),
}


def activation_bounds(activation: str) -> tuple[float, float]:
    """Real bounds of a fused activation.

    Raises:
        ModelError: It is no activation that kernels fuse.
    """
    if activation not in _BOUNDS:
        raise ModelError(f"kernels do not fuse the activation {activation!r}", valid=_BOUNDS)
    return _BOUNDS[activation]


def activation_range(activation: str, output: Tensor) -> tuple[int, int]:
    """Lowest and highest code that a fused activation lets through.

    Args:
        activation: Member of ``ActivationFunctionType``.
        output: The tensor that is written.
    """
    low, high = activation_bounds(activation)
    least, most = code_range(output.dtype)
    if activation == "NONE":
        return least, most
    scale, zero_point = scale_of(output), zero_point_of(output)

    def code(bound: float) -> int:
        # TFLite divides in float32.
        return zero_point + int(round_half_away(np.float32(bound) / scale))

    return max(least, code(low)), most if np.isinf(high) else min(most, code(high))


def to_codes(accumulated: Ints, output: Tensor, activation: str = "NONE") -> Array:
    """Add the zero point, clamp to the activation and store: the last lines of every kernel."""
    low, high = activation_range(activation, output)
    return np.clip(accumulated + zero_point_of(output), low, high).astype(output.dtype.numpy)


def clamp_float(real: Array, activation: str = "NONE") -> Array:
    """A fused activation on float32."""
    low, high = activation_bounds(activation)
    return np.clip(real, np.float32(low), np.float32(high)).astype(np.float32)


def effective_scales(image: Tensor, weight: Tensor, output: Tensor) -> npt.NDArray[np.float64]:
    """Output steps per step of the accumulator: ``image * weight / output``, one or per channel.

    Raises:
        ModelError: The weights have no scales.
    """
    if weight.quantization is None:
        raise ModelError("integer kernels need quantized weights", where=f"tensor {weight.name!r}")
    scales = weight.quantization.scale.astype(np.float64)
    return np.float64(scale_of(image)) * scales / np.float64(scale_of(output))


def rescale(accumulated: Ints, scales: npt.NDArray[np.float64], output: Tensor, activation: str) -> Array:
    """Accumulators of a convolution as codes.

    Args:
        accumulated: Bias added; output channels on the last axis.
        scales: From `effective_scales`.
        output: The tensor that is written.
        activation: Fused activation.
    """
    multiplier, shift = quantize_multiplier(scales)
    if output.dtype is DType.INT16:
        whole = multiply_wide(accumulated, multiplier, shift)
    else:
        whole = multiply(wrap_int32(accumulated), multiplier, shift)
    return to_codes(whole, output, activation)


def refuse_narrow_bias(bias: Tensor | None, output: Tensor) -> None:
    """LiteRT reads the bias of 16-bit kernels as int64, whatever its type.

    Raises:
        ModelError: `output` has 16 bits and `bias` fewer than 64.
    """
    if bias is not None and output.dtype is DType.INT16 and bias.dtype is not DType.INT64:
        raise ModelError(
            f"the bias of a 16-bit kernel is {bias.dtype}, not int64", where=f"tensor {bias.name!r}"
        )
