"""Kernels of RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR on NHWC tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.tflite.model import Array
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.reference.tables import round_away

#: Bits behind the point of positions in the integer kernels.
BITS = 10
ONE = 1 << BITS


def _modes(call: Call) -> tuple[bool, bool]:
    return bool(call.option("alignCorners", False)), bool(call.option("halfPixelCenters", False))


def _fixed_axis(size: int, wanted: int, align: bool, half: bool) -> tuple[Array, Array, Array]:
    """Lower and upper neighbour of each output position and its distance from the lower one, in 1/1024."""
    if align and wanted > 1:
        step = (ONE * (size - 1) + (wanted - 1) // 2) // (wanted - 1)
    else:
        step = (ONE * size + wanted // 2) // wanted
    at = np.arange(wanted, dtype=np.int64) * step
    if half:
        at = at + step // 2 - ONE // 2
    # C's division cuts off towards zero, which only matters where the maximum with 0 hides it.
    lower = np.maximum(at >> BITS, 0)
    upper = np.minimum(np.maximum(at + ONE - 1, 0) >> BITS, size - 1)
    return lower, upper, at - ONE * lower


def _real_axis(size: int, wanted: int, align: bool, half: bool) -> tuple[Array, Array, Array]:
    """As :func:`_fixed_axis`, in float32."""
    step = np.float32(size) / np.float32(wanted)
    if align and wanted > 1:
        step = np.float32(size - 1) / np.float32(wanted - 1)
    at = np.arange(wanted, dtype=np.float32)
    at = (at + np.float32(0.5)) * step - np.float32(0.5) if half else at * step
    lower = np.maximum(np.floor(at).astype(np.int64), 0)
    upper = np.minimum(np.ceil(at).astype(np.int64), size - 1)
    return lower, upper, at - lower.astype(np.float32)


def _weighted(
    wide: Array, rows: tuple[Array, Array, Array], columns: tuple[Array, Array, Array], one: Any
) -> Array:
    """The four neighbours of each position, weighted; float32 sums in the order of the kernels."""
    y0, y1, dy = rows[0], rows[1], rows[2][None, :, None, None]
    x0, x1, dx = columns[0], columns[1], columns[2][None, None, :, None]
    upper, lower = wide[:, y0], wide[:, y1]
    total: Array = upper[:, :, x0] * (one - dy) * (one - dx)
    total = total + lower[:, :, x0] * dy * (one - dx)
    total = total + upper[:, :, x1] * (one - dy) * dx
    total = total + lower[:, :, x1] * dy * dx
    return total


@kernel("RESIZE_BILINEAR")
def resize_bilinear(call: Call) -> Sequence[Array]:
    """int8 and int16 in fixed point, float32 with float32 weights."""
    values, modes = call.value(0), _modes(call)
    height, width = (int(size) for size in call.value(1).reshape(-1))
    sizes = ((values.shape[1], height), (values.shape[2], width))
    if values.dtype == np.float32:
        rows, columns = (_real_axis(size, wanted, *modes) for size, wanted in sizes)
        return [_weighted(values, rows, columns, np.float32(1))]
    rows, columns = (_fixed_axis(size, wanted, *modes) for size, wanted in sizes)
    total = _weighted(values.astype(np.int64), rows, columns, ONE)
    # Rounded to the nearest, halves away from zero.
    magnitude = (np.abs(total) + (1 << (2 * BITS - 1))) >> (2 * BITS)
    return [(np.sign(total) * magnitude).astype(values.dtype)]


def _nearest(size: int, wanted: int, align: bool, half: bool) -> Array:
    if align and wanted > 1:
        step = np.float32(size - 1) / np.float32(wanted - 1)
    else:
        step = np.float32(size) / np.float32(wanted)
    at = (np.arange(wanted, dtype=np.float32) + np.float32(0.5 if half else 0)) * step
    index = round_away(at) if align else np.floor(at)
    return np.clip(index.astype(np.int64), 0, size - 1)


@kernel("RESIZE_NEAREST_NEIGHBOR")
def resize_nearest_neighbor(call: Call) -> Sequence[Array]:
    values = call.value(0)
    align, half = _modes(call)
    height, width = (int(size) for size in call.value(1).reshape(-1))
    rows = _nearest(values.shape[1], height, align, half)
    columns = _nearest(values.shape[2], width, align, half)
    return [values[:, rows][:, :, columns]]
