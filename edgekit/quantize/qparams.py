"""Scales, zero points and codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.quantize.histogram import Array
from edgekit.quantize.scheme import Format

#: Shares of a channel's largest weight that are tried as its range.
SHARES = np.linspace(1.0, 0.6, 21)
#: Weights in a channel up to which a scale is looked for that has a code for each of them.
FEW = 32
#: Codes of a bias stay this far below the end of int32, so that the accumulator has room.
BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class QParams:
    """``real = scale * (code - zero_point)``.

    Attributes:
        scale: Size of one step.
        zero_point: The code of 0.0.
        format: Element type of the codes.
        wide: Parameters of the same tensor for nodes that read or compute it with more bits.
    """

    scale: float
    zero_point: int
    format: Format
    wide: QParams | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value that has a code."""
        low, high = self.format.limits
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def round_trip(self, values: Array) -> Array:
        """Quantize and dequantize, rounding half to even as QuantizeLinear does."""
        low, high = self.format.limits
        codes = np.clip(np.round(values / self.scale) + self.zero_point, low, high)
        return (codes - self.zero_point) * self.scale

    def codes(self, values: Array) -> Array:
        low, high = self.format.limits
        codes = np.clip(np.round(values / self.scale) + self.zero_point, low, high)
        return codes.astype(self.format.value)


def activation_params(low: float, high: float, fmt: Format) -> QParams:
    """Parameters for ``[low, high]``, in which zero has a code of its own.

    They are asymmetric but for ``int16``, whose zero point is 0: its kernels multiply without one.
    """
    first, last = fmt.limits
    low, high = min(low, 0.0), max(high, 0.0)
    if fmt is Format.INT16:
        return QParams(float(np.float32(max(low / first, high / last, 1e-12))), 0, fmt)
    scale = np.float32(max((high - low) / (last - first), 1e-12))
    zero = int(np.clip(np.round(first - low / float(scale)), first, last))
    return QParams(float(scale), zero, fmt)


def weight_scales(weight: Array, axis: int | None, fmt: Format) -> Array:
    """Symmetric scales, one per channel of ``axis`` (or one in all), by least squared error.

    Args:
        weight: The weights.
        axis: Channel axis, or None for one scale.
        fmt: ``int8`` or ``int16``.

    Returns:
        float32 scales, shape ``[channels]`` or ``[]``.
    """
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    )
    top = fmt.limits[1]
    largest = np.maximum(np.abs(rows).max(1), 1e-10)
    best, scales = np.full(len(rows), np.inf), largest / top
    for share in SHARES:
        scale = (largest * share / top)[:, None]
        error = ((np.clip(np.round(rows / scale), -top, top) * scale - rows) ** 2).sum(1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale[:, 0], scales)
    if rows.shape[1] <= FEW:
        scales = _exact(rows, largest, scales, top)
    scales = scales.astype(np.float32)
    return np.asarray(scales if axis is not None else scales[0])


def _exact(rows: Array, largest: Array, scales: Array, top: int) -> Array:
    """``scales``, but where a coarser one has a code for every weight, that one: such weights count
    something, like a detector's box bins 0, 1, 2, …"""
    found = scales.copy()
    for code in range(top // 2 + 1, top + 1):
        scale = (largest / code)[:, None]
        codes = rows / scale
        whole = (np.abs(codes - np.round(codes)) < 1e-4).all(1)
        found = np.where(whole, scale[:, 0], found)
    return found


def with_room_for_bias(scales: Array, bias: Array, step: float) -> Array:
    """Scales raised where the codes of a bias, whose step is weight scale x input step, would not fit
    int32."""
    raised = np.maximum(scales, np.abs(bias.ravel()) / (step * BIAS_LIMIT)).astype(np.float32)
    return raised if scales.ndim else raised.max()


def weight_codes(weight: Array, scales: Array, axis: int | None, fmt: Format) -> Array:
    top = fmt.limits[1]
    shaped = scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return np.clip(np.round(weight / shaped), -top, top).astype(fmt.value)
