"""Running sums for comparing two tensors over many samples without keeping any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Accumulator:
    """Compares a reference ``x`` with a candidate ``y``, sample by sample, in float64.

    NaN and infinity are counted and left out of all other figures.

    Attributes:
        samples: Pairs seen so far.
        not_finite_x: NaN and infinite elements of the reference.
        not_finite_y: NaN and infinite elements of the candidate.
        max_abs: Largest absolute difference.
        max_steps: Largest difference in quantization steps; None when no step size was ever given.
        cosine_min: Lowest cosine of a single sample; None before the first.
    """

    samples: int = 0
    not_finite_x: int = 0
    not_finite_y: int = 0
    max_abs: float = 0.0
    max_steps: float | None = None
    cosine_min: float | None = None
    _xx: float = 0.0
    _yy: float = 0.0
    _xy: float = 0.0
    _dd: float = 0.0

    def add(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], step: float | None = None) -> None:
        """Take in one sample.

        Args:
            x: Reference, any shape.
            y: Candidate, same number of elements.
            step: Size of one quantization step of ``y``.
        """
        a, b = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        self.not_finite_x += int(a.size - np.count_nonzero(finite_a))
        self.not_finite_y += int(b.size - np.count_nonzero(finite_b))
        both = finite_a & finite_b
        if not both.all():
            a, b = a[both], b[both]
        self.samples += 1
        if not a.size:
            return
        self._sum(a, b, step)

    def _sum(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], step: float | None) -> None:
        difference = a - b
        xx, yy, xy = float(a @ a), float(b @ b), float(a @ b)
        self._xx, self._yy, self._xy = self._xx + xx, self._yy + yy, self._xy + xy
        dd = float(difference @ difference)
        self._dd += dd
        largest = float(np.abs(difference).max())
        self.max_abs = max(self.max_abs, largest)
        if step:
            self.max_steps = max(self.max_steps or 0.0, largest / step)
        cosine = _cosine(xx, yy, xy, dd)
        if cosine is not None:
            self.cosine_min = cosine if self.cosine_min is None else min(self.cosine_min, cosine)

    @property
    def cosine(self) -> float | None:
        """Cosine between all of ``x`` and all of ``y``; 1 when both are zero, None without finite data."""
        return _cosine(self._xx, self._yy, self._xy, self._dd) if self.cosine_min is not None else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, 10 log10(sum x^2 / sum (x - y)^2), in decibels.

        None where that is no number: no difference at all (see :attr:`identical`) or a reference of zeros.
        """
        ratio = self._xx / self._dd if self._dd > 0.0 else math.inf
        return 10.0 * math.log10(ratio) if 0.0 < ratio < math.inf else None

    @property
    def identical(self) -> bool:
        """True when no element differed and all were finite."""
        return self.samples > 0 and self._dd == 0.0 and not self.not_finite_x and not self.not_finite_y


def _cosine(xx: float, yy: float, xy: float, dd: float) -> float | None:
    if dd == 0.0:
        return 1.0  # equal, both zero included; the quotient below may miss 1 by rounding
    if xx == 0.0 or yy == 0.0:
        return 0.0
    value = xy / (math.sqrt(xx) * math.sqrt(yy))
    # Rounding can leave the range by an ulp; sums beyond float64 leave no figure at all.
    return min(1.0, max(-1.0, value)) if math.isfinite(value) else None
