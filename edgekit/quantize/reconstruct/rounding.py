"""Learned rounding of weights (Nagel et al. 2020, AdaRound, arXiv:2004.10568).

A weight ``w`` on a grid of step ``s`` becomes ``s * clip(floor(w / s) + h(V), -top, top)`` with a variable
``V`` of its own and the rectified sigmoid

    h(V) = clip(1.2 * sigmoid(V) - 0.1, 0, 1)                       (eq. 23)

which starts where nothing is rounded, ``h(V) = w / s - floor(w / s)``. The regularizer

    mean(1 - |2 h(V) - 1| ** beta)                                  (eq. 24)

with ``beta`` falling pushes every ``h`` to 0 or 1, which is the rounding that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.quantize.histogram import Array
from edgekit.quantize.qparams import SHARES

#: Ends of the rectified sigmoid.
_LOW, _HIGH = -0.1, 1.1


@dataclass(frozen=True)
class Grid:
    """Where the codes of a weight lie.

    Attributes:
        scales: One per channel of ``axis``, or a single one.
        axis: Channel axis, or None for one scale.
        top: Largest magnitude of a code.
    """

    scales: Array
    axis: int | None
    top: int

    def spread(self, rank: int) -> Array:
        """The scales in a shape that goes with a weight of ``rank`` axes."""
        if self.axis is None:
            return self.scales
        return self.scales.reshape([-1 if i == self.axis else 1 for i in range(rank)])

    def nearest(self, weight: Array) -> Array:
        """Codes by rounding to nearest."""
        codes = np.clip(np.round(weight / self.spread(weight.ndim)), -self.top, self.top)
        return codes.astype(np.int8 if self.top < 128 else np.int16)


def grid_scales(weight: Array, axis: int | None, top: int) -> Array:
    """Scales of least squared error for codes up to ``top``; float32 ``[channels]`` or ``[]``."""
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    )
    largest = np.maximum(np.abs(rows).max(1), 1e-10)
    best, scales = np.full(len(rows), np.inf), largest / top
    # A short grid does not reach as far: its outer codes are worth more in the middle.
    for share in SHARES if top > 16 else np.linspace(1.0, 0.3, 36):
        scale = (largest * share / top)[:, None]
        error = ((np.clip(np.round(rows / scale), -top, top) * scale - rows) ** 2).sum(1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale[:, 0], scales)
    found = scales.astype(np.float32)
    return np.asarray(found if axis is not None else found[0])


class SoftWeight:
    """A weight whose rounding is learned.

    Args:
        weight: The float weight.
        grid: Its codes.

    Attributes:
        variable: ``V``, a leaf that takes gradients.
    """

    def __init__(self, weight: Array, grid: Grid) -> None:
        self.grid = grid
        ratio = weight.astype(np.float64) / grid.spread(weight.ndim)
        down = np.clip(np.floor(ratio), -grid.top, grid.top)
        part = np.clip(ratio - down, 0.001, 0.999)
        start = -np.log((_HIGH - _LOW) / (part - _LOW) - 1.0)
        self._down = torch.from_numpy(down.astype(np.float32))
        self._scales = torch.from_numpy(np.array(grid.spread(weight.ndim), np.float32))
        self.variable = torch.from_numpy(start.astype(np.float32)).requires_grad_()

    def rounded_up(self) -> Tensor:
        """``h(V)``."""
        return (torch.sigmoid(self.variable) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def value(self) -> Tensor:
        """The weight as the variables stand."""
        return (self._down + self.rounded_up()).clamp(-self.grid.top, self.grid.top) * self._scales

    def undecided(self, beta: float) -> Tensor:
        """The regularizer, summed."""
        return (1 - (2 * self.rounded_up() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def codes(self) -> Array:
        """Codes by the decision that each variable has come to."""
        found = self._down + (self.rounded_up() >= 0.5)
        codes = found.clamp(-self.grid.top, self.grid.top).numpy()
        return np.asarray(codes.astype(np.int8 if self.grid.top < 128 else np.int16))


class Step(torch.autograd.Function):
    """Rounding to nearest whose gradient is that of the identity (arXiv:1308.3432)."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def on_grid(x: Tensor, step: Tensor) -> Tensor:
    """``x`` as a multiple of ``step``, differentiably."""
    found: Tensor = Step.apply(x / step)  # type: ignore[no-untyped-call]
    return found * step
