"""A histogram of one tensor's values that can be carried through a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Bins of every histogram: eight times the levels of 8 bits, so that 256 levels can be told from 255.
BINS = 2048


@dataclass(frozen=True)
class Histogram:
    """Counts over equal bins, with the exact range.

    Attributes:
        counts: Samples per bin, shape ``[BINS]``; a sample of the tensor's values, not all of them.
        edges_low: Lower edge of the first bin.
        edges_high: Upper edge of the last bin.
        channel_min: Smallest value ever seen in each channel, exact, shape ``[C]``.
        channel_max: Largest value ever seen in each channel, exact, shape ``[C]``.
    """

    counts: Array
    edges_low: float
    edges_high: float
    channel_min: Array
    channel_max: Array

    @property
    def min(self) -> float:
        return float(self.channel_min.min())

    @property
    def max(self) -> float:
        return float(self.channel_max.max())

    @property
    def width(self) -> float:
        return (self.edges_high - self.edges_low) / len(self.counts)

    @property
    def centers(self) -> Array:
        return self.edges_low + self.width * (np.arange(len(self.counts)) + 0.5)

    def through(self, function: Callable[[Array], Array], turns: tuple[float, ...] = ()) -> Histogram:
        """The histogram of ``function(x)``; ``turns`` are the points where it changes direction."""
        points = [self.channel_min, self.channel_max]
        points += [
            np.clip(np.full_like(self.channel_min, t), self.channel_min, self.channel_max) for t in turns
        ]
        images = function(np.stack(points))
        low, high = float(images.min()), float(images.max())
        # Each bin's mass is spread over eight points, so that a stretch of the function leaves no empty bins.
        steps = (np.arange(8) + 0.5) / 8
        values = function(self.edges_low + self.width * (np.arange(len(self.counts))[:, None] + steps))
        high = max(high, low + 1e-12)
        index = ((np.clip(values, low, high) - low) * (len(self.counts) / (high - low))).astype(np.int64)
        index = np.minimum(index, len(self.counts) - 1)
        weights = np.repeat(self.counts / 8.0, 8)
        counts = np.bincount(index.ravel(), weights=weights, minlength=len(self.counts))
        return Histogram(counts, low, high, images.min(0), images.max(0))
