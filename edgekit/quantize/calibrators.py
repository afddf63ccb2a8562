"""From a histogram to the range that is quantized.

Four calibrators read the same histogram, so that all of them come from one pass over the samples:

- ``minmax``: everything that was seen.
- ``percentile``: the values between two percentiles (Wu et al. 2020, arXiv:2004.09602, section 5.2).
- ``entropy``: least Kullback-Leibler divergence between the values and their quantized form (Migacz, GTC
  2017; the same paper, section 5.2), for ranges with two free ends.
- ``mse``: least squared error of the values, or of what a following function makes of them.

Every range holds zero, so that padding and ReLU are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import numpy as np

from edgekit.quantize.histogram import Array, Histogram

Range = tuple[float, float]
Function = Callable[[Array], Array]

#: Bins that the searches look at; the histogram's are merged to this many.
SEARCH_BINS = 256
#: Candidate ends on either side in the searches.
CANDIDATES = 32


class Calibrator(StrEnum):
    """How a range is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


def choose_range(
    histogram: Histogram,
    calibrator: Calibrator,
    *,
    levels: int = 256,
    percentile: float = 99.99,
    function: Function | None = None,
) -> Range:
    """The range to quantize, zero included.

    Args:
        histogram: What was seen.
        calibrator: The method.
        levels: Number of codes.
        percentile: For ``percentile``: the share of values, in percent, that the range holds.
        function: For ``mse``: what the next node computes from the values; the error is measured after it.
    """
    low, high = min(histogram.min, 0.0), max(histogram.max, 0.0)
    if high <= low:
        return low, low + 1e-6
    if calibrator is Calibrator.PERCENTILE:
        low, high = _percentile(histogram, percentile)
    elif calibrator is Calibrator.ENTROPY:
        low, high = _entropy(histogram, low, high, levels)
    elif calibrator is Calibrator.MSE:
        low, high = _mse(histogram, low, high, levels, function)
    return low, max(high, low + 1e-6)


def _percentile(histogram: Histogram, percentile: float) -> Range:
    share = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1.0)
    rest = (1.0 - percentile / 100.0) / 2.0
    first = int(np.searchsorted(share, rest, "right"))
    last = int(np.searchsorted(share, 1.0 - rest, "left"))
    low = histogram.edges_low + histogram.width * first
    high = histogram.edges_low + histogram.width * (min(last, len(share) - 1) + 1)
    return min(max(low, histogram.min), 0.0), max(min(high, histogram.max), 0.0)


def _mse(histogram: Histogram, low: float, high: float, levels: int, function: Function | None) -> Range:
    centers, counts = _merged(histogram, SEARCH_BINS)
    target = function(centers) if function else centers
    keep = counts > 0
    centers, counts, target = centers[keep], counts[keep], target[keep]
    slope = _slope(function, centers) if function else np.ones_like(centers)

    def best(lows: Array, highs: Array) -> int:
        scale = ((highs - lows) / (levels - 1))[:, None]
        zero = np.round(-lows[:, None] / scale)
        codes = np.clip(np.round(centers / scale) + zero, 0, levels - 1)
        values = (codes - zero) * scale
        # Inside one step the error is spread evenly; the bin centre alone would make it look like luck.
        inside = (centers >= lows[:, None]) & (centers <= highs[:, None])
        clipped = ((function(values) if function else values) - target) ** 2
        error = np.where(inside, (slope * scale) ** 2 / 12.0, clipped)
        return int(np.argmin(error @ counts))

    return _alternate(best, low, high, CANDIDATES)


def _alternate(best: Callable[[Array, Array], int], low: float, high: float, candidates: int) -> Range:
    """Move one end, then the other, twice or until neither moves; a short end has nothing to give."""
    full = (low, high)
    two_sided = -low > 0.05 * high
    shares = np.geomspace(1.0, 0.03, candidates)
    for _ in range(2 if two_sided else 1):
        before = (low, high)
        highs = np.maximum(full[1] * shares, 1e-9) if full[1] > 0 else np.zeros(1)
        high = float(highs[best(np.full_like(highs, low), highs)]) if full[1] > 0 else 0.0
        if two_sided:
            lows = np.minimum(full[0] * shares, -1e-9)
            low = float(lows[best(lows, np.full_like(lows, high))])
        if (low, high) == before:
            break
    return low, high


def _entropy(histogram: Histogram, low: float, high: float, levels: int) -> Range:
    centers, counts = _merged(histogram, len(histogram.counts))
    total = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    logs = np.where(counts > 0, counts * np.log(np.maximum(counts, 1e-30)), 0.0)
    log_sum = np.concatenate([[0.0], np.cumsum(logs)])
    first, width = centers[0], centers[1] - centers[0]

    def best(lows: Array, highs: Array) -> int:
        return int(np.argmin([divergence(a, b) for a, b in zip(lows, highs, strict=True)]))

    def divergence(a: float, b: float) -> float:
        """KL(P || Q): P has what lies outside in its end bins, Q is P's inside merged into levels."""
        i = max(int((a - first) / width + 0.5), 0)
        j = min(int((b - first) / width + 0.5) + 1, len(counts))
        if j - i < levels // 2:
            return np.inf
        cuts = np.linspace(i, j, min(levels, j - i) + 1).astype(np.int64)
        mass, used = np.diff(total[cuts]), np.diff(filled[cuts])
        inside = mass > 0
        # Sum over bins of p log q, where q is the level's mass over its filled bins.
        cross = float((mass[inside] * np.log(mass[inside] / used[inside])).sum())
        p_log_p = log_sum[j] - log_sum[i]
        for bin_, outside in ((i, total[i]), (j - 1, total[-1] - total[j])):
            if outside > 0:
                level = int(np.searchsorted(cuts, bin_, "right")) - 1
                q = mass[level] / max(used[level], 1) if mass[level] > 0 else 1e-3
                p = counts[bin_]
                cross += float(outside * np.log(q))
                p_log_p += (p + outside) * np.log(p + outside) - (p * np.log(p) if p > 0 else 0.0)
        n = total[-1]
        kept = max(total[j] - total[i], 1e-9)
        return float((p_log_p - cross) / n + np.log(kept / n))

    return _alternate(best, low, high, CANDIDATES // 2)


def _merged(histogram: Histogram, bins: int) -> tuple[Array, Array]:
    counts = histogram.counts.copy()
    zero = int(np.floor(-histogram.edges_low / histogram.width))
    if 0 <= zero < len(counts):
        # Exact zeros, as ReLU makes them, have a code of their own and no error. They are told from small
        # values by how much their bin stands out from its neighbours.
        around = counts[max(zero - 2, 0) : zero + 3]
        counts[zero] = np.minimum(counts[zero], (around.sum() - counts[zero]) / max(len(around) - 1, 1))
    factor = len(counts) // bins
    counts = counts.reshape(bins, factor).sum(1)
    width = histogram.width * factor
    return histogram.edges_low + width * (np.arange(bins) + 0.5), counts


def _slope(function: Function, x: Array) -> Array:
    step = 1e-3 * max(float(np.abs(x).max()), 1e-6)
    return np.asarray(np.abs(function(x + step) - function(x - step)) / (2 * step))
