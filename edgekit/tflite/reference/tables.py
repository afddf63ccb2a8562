"""Lookup tables of TFLite's activations: 256 entries for int8, interpolated tables for int16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.tflite.model import Array, Tensor
from edgekit.tflite.reference.fixed_point import scale_of, zero_point_of

#: A real function of one array, of the same type.
Curve = Callable[[Array], Array]


def round_away(values: Array) -> Array:
    """Round to the nearest integer, halves away from zero as C's ``round`` does; the dtype stays."""
    whole = np.trunc(values)
    with np.errstate(invalid="ignore"):  # infinity stays what it is
        # Adding 0.5 before the truncation would round 0.49999997 up.
        return np.asarray(whole + np.where(np.abs(values - whole) >= 0.5, np.sign(values), 0), values.dtype)


def in_double(function: Curve) -> Curve:
    """A float32 curve computed in float64 and rounded once.

    NumPy's own float32 ``exp`` or ``tanh`` may differ in the last place from the C library's, and with it a
    code of a table; a double rounded once is the correctly rounded value in all but freak cases.
    """

    def curve(values: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(function(values.astype(np.float64))).astype(np.float32)

    return curve


def int8_table(source: Tensor, result: Tensor, curve: Curve) -> Array:
    """Codes of ``curve`` for the codes -128 … 127 of ``source``: int8 [256]."""
    codes = np.arange(-128, 128, dtype=np.int32)
    inverse = np.float32(1) / scale_of(result)
    real = (codes - zero_point_of(source)).astype(np.float32) * scale_of(source)
    with np.errstate(over="ignore"):
        rounded = round_away(curve(real) * inverse) + np.float32(zero_point_of(result))
    return np.clip(rounded, -128, 127).astype(np.int8)


def look_up_int8(codes: Array, table: Array) -> Array:
    """Entries of a table of :func:`int8_table`."""
    return np.asarray(table[codes.astype(np.int64) + 128])


def int16_table(
    source: tuple[float, int], result: tuple[float, int], curve: Curve, dtype: type = np.float32
) -> Array:
    """513 samples of ``curve`` over the range of int16, for linear interpolation: int16 [513].

    Each sample is moved by half of the error in the middle of its interval.

    Args:
        source: Scale and zero point of the codes put in.
        result: Scale and zero point of the codes that come out.
        curve: The function, of real values.
        dtype: Precision that the table is computed with.
    """
    limits = np.iinfo(np.int16)
    scale, out_scale = dtype(source[0]), dtype(result[0])
    low, high = scale * dtype(limits.min - source[1]), scale * dtype(limits.max - source[1])
    out_low, out_high = out_scale * dtype(limits.min - result[1]), out_scale * dtype(limits.max - result[1])
    inverse = dtype(65536) / (out_high - out_low)
    step = (high - low) / dtype(512)
    index: Array = np.arange(513, dtype=np.int32).astype(dtype)
    start = low + index[:-1] * step
    with np.errstate(over="ignore", invalid="ignore"):
        here, following = curve(start), curve(low + index[1:] * step)
        middle = round_away(curve(start + step / dtype(2)) * inverse)
        sample = round_away(here * inverse)
        interpolated = round_away((following * inverse + sample) / dtype(2))
        samples = sample - round_away((interpolated - middle) / dtype(2))
        last = round_away(curve(np.array([high], dtype)) * inverse)
    table: Array = np.clip(np.concatenate([samples, last]), limits.min, limits.max).astype(np.int16)
    return table


def look_up_int16(codes: Array, table: Array) -> Array:
    """Interpolated entries of a table of :func:`int16_table`."""
    wide = codes.astype(np.int64)
    index = 256 + (wide >> 7)
    base = table[index].astype(np.int64)
    # The kernel keeps the slope in 16 bits.
    slope = (table[index + 1].astype(np.int64) - base).astype(np.int16).astype(np.int64)
    return np.asarray((base + ((slope * (wide & 0x7F) + 64) >> 7)).astype(np.int16))


def sigmoid_table() -> Array:
    """65536 sigmoid(i / 24), each moved by half of the error in the middle of its interval: int64 [256]."""
    at = np.arange(257) / 24
    exact, middle = 65536 / (1 + np.exp(-at)), 65536 / (1 + np.exp(-(at + 1 / 48)))
    bias = (middle[:-1] - (exact[:-1] + exact[1:]) / 2) / 2
    table = np.floor(exact[:-1] + bias + 0.5).astype(np.int64)
    table[-1] = 65535  # where the kernels saturate
    return table
