"""The four calibrators, against what they promise on the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.quantize.calibrators import CANDIDATES, Calibrator, choose_range
from edgekit.quantize.histogram import BINS, Histogram
from edgekit.quantize.observe import silu

Array = np.ndarray[Any, Any]
SHAPES: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda r: r.standard_normal(4000),
    "relu": lambda r: np.maximum(r.standard_normal(4000), 0),
    "tails": lambda r: r.standard_t(2, 4000),
    "shifted": lambda r: r.standard_normal(4000) + 5,
    "negative": lambda r: -np.abs(r.standard_normal(4000)) - 1,
    "sparse": lambda r: np.where(r.random(4000) < 0.002, 100.0, r.standard_normal(4000)),
}
drawn = given(
    shape=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 10**5), size=st.sampled_from([1e-4, 1, 1e4])
)
quick = settings(max_examples=30, deadline=None, derandomize=True)


def _histogram(values: Array, bins: int = BINS) -> Histogram:
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins, (low, high))
    return Histogram(counts.astype(float), low, high, np.array([low]), np.array([high]))


def _error(values: Array, low: float, high: float, levels: int = 256, function: Any = None) -> float:
    """Mean squared error of quantizing ``values`` in ``[low, high]``."""
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    rounded = (np.clip(np.round(values / step) + zero, 0, levels - 1) - zero) * step
    if function is not None:
        values, rounded = function(values), function(rounded)
    return float(((rounded - values) ** 2).mean())


@pytest.mark.parametrize("method", Calibrator)
@quick
@drawn
def test_every_range_holds_zero_and_nothing_that_was_not_seen(
    method: Calibrator, shape: str, seed: int, size: float
) -> None:
    values = SHAPES[shape](np.random.default_rng(seed)) * size
    low, high = choose_range(_histogram(values), method)
    slack = 1e-6 * np.abs(values).max() + 1e-6
    assert low <= 0.0 <= high
    assert low < high
    assert low >= min(values.min(), 0.0) - slack
    assert high <= max(values.max(), 0.0) + slack


@pytest.mark.parametrize("method", Calibrator)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_keeps_its_value(method: Calibrator, value: float) -> None:
    counts = np.zeros(BINS)
    counts[0] = 100
    low, high = choose_range(
        Histogram(counts, value, value + 1e-12, np.array([value]), np.array([value])), method
    )
    assert low <= value <= high + 1e-9
    assert low < high


def test_minmax_is_what_was_seen() -> None:
    assert choose_range(_histogram(np.array([-2.0, 0.5, 7.0])), Calibrator.MINMAX) == (-2.0, 7.0)
    assert choose_range(_histogram(np.array([2.0, 7.0])), Calibrator.MINMAX) == (0.0, 7.0)
    assert choose_range(_histogram(np.array([-2.0, -1.0])), Calibrator.MINMAX) == pytest.approx((-2.0, 0.0))


@quick
@drawn
def test_percentile_holds_its_share(shape: str, seed: int, size: float) -> None:
    values = SHAPES[shape](np.random.default_rng(seed)) * size
    histogram = _histogram(values)
    before = (0.0, 0.0)
    for percentile in (50.0, 90.0, 99.0, 99.99, 100.0):
        low, high = choose_range(histogram, Calibrator.PERCENTILE, percentile=percentile)
        assert low <= before[0] + 1e-9 * size
        assert high >= before[1] - 1e-9 * size
        slack = 1e-9 * np.abs(values).max()
        inside = ((values >= low - slack) & (values <= high + slack)).mean()
        assert inside >= percentile / 100.0 - 1e-9
        before = (low, high)
    assert before == pytest.approx((min(values.min(), 0.0), max(values.max(), 0.0)), abs=1e-6)


def test_percentile_cuts_a_lone_outlier() -> None:
    values = np.append(np.random.default_rng(0).uniform(0, 1, 10000), 50.0)
    assert choose_range(_histogram(values), Calibrator.PERCENTILE, percentile=99.9)[1] < 1.1


@quick
@drawn
def test_mse_is_not_worse_than_minmax(shape: str, seed: int, size: float) -> None:
    values = SHAPES[shape](np.random.default_rng(seed)) * size
    histogram = _histogram(values)
    found = _error(values, *choose_range(histogram, Calibrator.MSE))
    assert found <= 1.03 * _error(values, *choose_range(histogram, Calibrator.MINMAX))


@pytest.mark.parametrize(
    ("shape", "levels"), [("relu", 16), ("relu", 256), ("normal", 16), ("normal", 256), ("tails", 256)]
)
def test_mse_is_close_to_the_best_range_there_is(shape: str, levels: int) -> None:
    values = SHAPES[shape](np.random.default_rng(3))
    found = _error(values, *choose_range(_histogram(values), Calibrator.MSE, levels=levels), levels=levels)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.geomspace(1.0, 0.03, 60)
    lows = low * shares if low < 0 else [0.0]
    best = min(_error(values, a, high * b, levels) for a in lows for b in shares)
    assert found <= 1.15 * best


def test_mse_weighs_values_by_what_the_function_makes_of_them() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 4000), random.uniform(-60, -10, 4000)])
    histogram = _histogram(values)
    low, high = choose_range(histogram, Calibrator.MSE, function=silu)
    # SiLU makes nothing of what lies below -10, and everything of what lies above zero.
    assert -12 < low < -2
    assert high > 2.5
    assert choose_range(histogram, Calibrator.MSE)[0] < -40
    plain = _error(values, *choose_range(histogram, Calibrator.MSE), function=silu)
    assert _error(values, low, high, function=silu) < 0.2 * plain


@pytest.mark.parametrize("seed", range(4))
def test_mse_after_a_function_is_close_to_the_best_range_there_is(seed: int) -> None:
    values = np.random.default_rng(seed).normal(-4, 3, 6000)
    found = _error(values, *choose_range(_histogram(values), Calibrator.MSE, function=silu), function=silu)
    shares = np.geomspace(1.0, 0.03, 40)
    best = min(
        _error(values, values.min() * a, values.max() * b, function=silu) for a in shares for b in shares
    )
    assert found <= 1.2 * best


def test_exact_zeros_do_not_hide_the_rest() -> None:
    live = _histogram(np.append(np.abs(np.random.default_rng(0).standard_normal(20000)), 0.0))
    counts = live.counts.copy()
    counts[0] += 1e9
    with_zeros = Histogram(counts, live.edges_low, live.edges_high, live.channel_min, live.channel_max)
    assert choose_range(with_zeros, Calibrator.MSE) == choose_range(live, Calibrator.MSE)


def _slow_divergence(counts: Array, i: int, j: int, levels: int) -> float:
    """KL(P || Q) bin by bin: P holds what is outside in its end bins, Q is P's inside in ``levels`` steps."""
    p = counts[i:j].copy()
    p[0] += counts[:i].sum()
    p[-1] += counts[j:].sum()
    q = np.zeros(j - i)
    cuts = np.linspace(i, j, min(levels, j - i) + 1).astype(int) - i
    inside = counts[i:j]
    for a, b in pairwise(cuts):
        filled = inside[a:b] > 0
        if filled.any():
            q[a:b][filled] = inside[a:b].sum() / filled.sum()
    kept = inside.sum()
    total = 0.0
    for k in range(j - i):
        if p[k] > 0:
            assert q[k] > 0, "the test's histograms have no empty end bins"
            total += p[k] / p.sum() * np.log((p[k] / p.sum()) / (q[k] / kept))
    return total


def _full(seed: int, bins: int, center: float) -> Array:
    """Counts without an empty bin, falling off from ``center``, ragged, without a spike."""
    random = np.random.default_rng(seed)
    x = np.arange(bins)
    return np.asarray(
        np.round(1e5 * np.exp(-np.abs(x - center) / (bins / 20))) + random.integers(30, 90, bins)
    )


@pytest.mark.parametrize("seed", range(6))
def test_entropy_of_one_free_end_is_the_least_divergence(seed: int) -> None:
    bins, levels = 160, 16
    counts = _full(seed, bins, 0.0)
    counts[0] = counts[1:5].mean()  # its neighbours' mean: no spike of exact zeros
    high = 16.0
    histogram = Histogram(counts, 0.0, high, np.array([0.0]), np.array([high]))
    found = choose_range(histogram, Calibrator.ENTROPY, levels=levels)
    assert found[0] == 0.0
    width = high / bins
    shares = np.geomspace(1.0, 0.03, CANDIDATES // 2)
    costs = []
    for share in shares:
        j = min(int(high * share / width) + 1, bins)
        costs.append(_slow_divergence(histogram.counts, 0, j, levels) if j >= levels // 2 else np.inf)
    chosen = int(np.argmin(np.abs(shares * high - found[1])))
    assert costs[chosen] == pytest.approx(min(costs), rel=1e-6)
    assert 0 < chosen < len(shares) - 1, "the test's histogram asks for a cut"


def test_entropy_cuts_both_tails() -> None:
    values = np.random.default_rng(0).standard_t(2, 40000)
    low, high = choose_range(_histogram(values), Calibrator.ENTROPY)
    assert low > 0.7 * values.min()
    assert high < 0.7 * values.max()
    inside = ((values > low) & (values < high)).mean()
    assert inside > 0.97


def test_more_levels_cut_less() -> None:
    values = np.random.default_rng(0).standard_normal(40000)
    histogram = _histogram(values)
    few = choose_range(histogram, Calibrator.MSE, levels=16)
    many = choose_range(histogram, Calibrator.MSE, levels=256)
    assert few[1] < many[1]
    assert few[0] > many[0]
