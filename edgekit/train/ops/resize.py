"""Resize and Upsample: interpolation along one axis after the other.

Each axis has a matrix ``[output, input]`` of weights, made once for its sizes and applied as a product;
where every row picks a single input, as with the nearest neighbour, the input is indexed. What torch's own
interpolation does exactly alike goes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Array, Call, op


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Attributes:
        axis: Its number.
        size: Length before.
        target: Length after.
        scale: Ratio as the node states it; ``target`` is ``size * scale`` rounded down.
        start: Where the region of interest begins, as a share of the axis.
        end: Where it ends.
    """

    axis: int
    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class _Rule:
    """The node's attributes, in a form that can be a key."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool


@op("Resize")
def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Interpolation: nearest, linear or cubic, every coordinate transformation, antialiased or not."""
    rule = _Rule(
        mode=call.get("mode", "nearest"),
        coordinates=call.get("coordinate_transformation_mode", "half_pixel"),
        nearest=call.get("nearest_mode", "round_prefer_floor"),
        cubic=call.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(call.get("exclude_outside", 0)),
        antialias=bool(call.get("antialias", 0)),
    )
    axes = _axes(call, x, call.values(1, roi), call.values(2, scales), call.values(3, sizes))
    if rule.coordinates != "tf_crop_and_resize":
        axes = [a for a in axes if a.target != a.size or a.scale != 1]
    return _interpolate(x, axes, rule, call.get("extrapolation_value", 0.0))


@op("Upsample")
def upsample(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    """Resize as it was before opset 10: nearest or linear, without a shift of coordinates."""
    factors = call.values(1, scales) or []
    rule = _Rule(call.get("mode", "nearest"), "asymmetric", "floor", -0.75, False, False)
    axes = [
        _Axis(i, n, math.floor(n * f), f)
        for i, (n, f) in enumerate(zip(x.shape, factors, strict=True))
        if f != 1
    ]
    return _interpolate(x, axes, rule, 0.0)


def _axes(
    call: Call, x: Tensor, roi: list[Any] | None, scales: list[Any] | None, sizes: list[Any] | None
) -> list[_Axis]:
    numbers = [a % x.ndim for a in call.get("axes") or range(x.ndim)]
    lengths = [x.shape[a] for a in numbers]
    if sizes:
        targets = [int(s) for s in sizes]
        if call.batch > 1 and 0 in numbers:
            # The size of the batch's axis was written down for the batch of the graph.
            targets[numbers.index(0)] = x.shape[0]
        factors = [t / n for t, n in zip(targets, lengths, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(factors)
            targets = [math.floor(factor * n + 0.5) for n in lengths]
    else:
        factors = [float(s) for s in scales or []]
        targets = [math.floor(n * f) for n, f in zip(lengths, factors, strict=True)]
    if not roi:
        roi = [0.0] * len(numbers) + [1.0] * len(numbers)
    starts, ends = roi[: len(numbers)], roi[len(numbers) :]
    return [_Axis(*entry) for entry in zip(numbers, lengths, targets, factors, starts, ends, strict=True)]


def _interpolate(x: Tensor, axes: list[_Axis], rule: _Rule, outside: float) -> Tensor:
    if not axes:
        return x
    fast = _by_torch(x, axes, rule)
    if fast is not None:
        return fast
    dtype = x.dtype
    if not dtype.is_floating_point:
        x = x.to(torch.float64)
    for axis in axes:
        weights, beyond = _weights(axis, rule)
        x = _apply(x, axis.axis, weights)
        if beyond.any():
            shape = [-1 if i == axis.axis else 1 for i in range(x.ndim)]
            mask = torch.from_numpy(beyond).to(x.device).reshape(shape)
            x = torch.where(mask, torch.as_tensor(outside, dtype=x.dtype, device=x.device), x)
    return x if dtype.is_floating_point else x.to(dtype)


def _by_torch(x: Tensor, axes: list[_Axis], rule: _Rule) -> Tensor | None:
    """The result by torch's own interpolation, or None where it would be another one."""
    spatial = list(range(2, x.ndim))
    if not 3 <= x.ndim <= 5 or any(a.axis not in spatial for a in axes) or not x.is_floating_point():
        return None
    target = list(x.shape[2:])
    for a in axes:
        target[a.axis - 2] = a.target
    if rule.mode == "nearest":
        if all(_repeats(a, rule) for a in axes):
            return functional.interpolate(x, size=target, mode="nearest")
        return None
    # Torch scales by the ratio of the lengths; with sides of 1 the transformations differ.
    exact = all(abs(a.size * a.scale - a.target) < 1e-6 and a.target > 1 for a in axes)
    aligned = rule.coordinates == "align_corners"
    known = aligned or rule.coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    if rule.mode != "linear" or rule.antialias or rule.exclude_outside or not exact or not known:
        return None
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
    return functional.interpolate(x, size=target, mode=mode, align_corners=aligned)


@lru_cache(maxsize=256)
def _repeats(axis: _Axis, rule: _Rule) -> bool:
    """Whether every element is repeated the same whole number of times."""
    if axis.target % axis.size:
        return False
    weights, beyond = _weights(axis, rule)
    picked = np.repeat(np.arange(axis.size), axis.target // axis.size)
    return not beyond.any() and bool((weights.argmax(1) == picked).all())


def _apply(x: Tensor, axis: int, weights: Array) -> Tensor:
    if np.array_equal(weights, weights.astype(bool)) and (np.count_nonzero(weights, 1) == 1).all():
        return x.index_select(axis, torch.from_numpy(weights.argmax(1)).to(x.device))
    matrix = torch.from_numpy(weights).to(x.device, x.dtype)
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


@lru_cache(maxsize=256)
def _weights(axis: _Axis, rule: _Rule) -> tuple[Array, Array]:
    """Weights ``[target, size]``, and which outputs lie outside of the input (tf_crop_and_resize only)."""
    where = _positions(axis, rule.coordinates)
    # The tap before, and the distance to it in (0, 1]: one that lies on a tap belongs to the tap before.
    before = np.ceil(where) - 1
    ratio = where - before
    if rule.mode == "nearest":
        taps = np.array([0, 1])
        values = _nearest(ratio, rule.nearest)
    else:
        shrink = min(axis.scale, 1.0) if rule.antialias else 1.0
        reach = 1 if rule.mode == "linear" else 2
        first = math.floor(-reach / shrink) + 1
        taps = np.arange(first, 2 - first)
        kernel: Callable[[Array], Array] = _triangle if rule.mode == "linear" else _cubic(rule.cubic)
        values = kernel(np.abs(shrink * (taps[None] - ratio[:, None])))
        values /= values.sum(1, keepdims=True)
    index = before[:, None].astype(int) + taps[None]
    if rule.exclude_outside:
        values = np.where((index >= 0) & (index < axis.size), values, 0)
        values /= values.sum(1, keepdims=True)
    weights = np.zeros((axis.target, axis.size))
    rows = np.broadcast_to(np.arange(axis.target)[:, None], index.shape)
    np.add.at(weights, (rows, index.clip(0, axis.size - 1)), values)
    beyond = np.zeros(axis.target, bool)
    if rule.coordinates == "tf_crop_and_resize":
        beyond = (where < 0) | (where > axis.size - 1)
    return weights, beyond


def _positions(axis: _Axis, coordinates: str) -> Array:
    """Where each output lies on the input axis."""
    i = np.arange(axis.target, dtype=np.float64)
    length = axis.size * axis.scale
    if coordinates == "asymmetric":
        return i / axis.scale
    if coordinates == "align_corners":
        return i * 0 if length == 1 else i * (axis.size - 1) / (length - 1)
    if coordinates == "tf_crop_and_resize":
        span = (axis.end - axis.start) * (axis.size - 1)
        step = i * 0 + span / 2 if length == 1 else i * span / (length - 1)
        return step + axis.start * (axis.size - 1)
    if coordinates == "pytorch_half_pixel" and length == 1:
        return i * 0 - 0.5
    half = (i + 0.5) / axis.scale - 0.5
    if coordinates == "half_pixel_symmetric":
        half = half + axis.size / 2 * (1 - axis.target / length)
    return half


def _nearest(ratio: Array, mode: str) -> Array:
    """Which of the two taps is taken, as weights ``[target, 2]``."""
    second = {
        "round_prefer_floor": ratio > 0.5,
        "round_prefer_ceil": ratio >= 0.5,
        "floor": ratio == 1,
        "ceil": ratio > 0,
    }[mode]
    return np.stack([~second, second], 1).astype(np.float64)


def _triangle(distance: Array) -> Array:
    found: Array = np.maximum(1 - distance, 0)
    return found


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' kernel with the slope ``a`` at distance 1."""

    def kernel(d: Array) -> Array:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel
