"""A histogram carried through a function, against the function of the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.quantize.histogram import BINS, Histogram
from edgekit.quantize.observe import SILU_TURN, silu

Array = np.ndarray[Any, Any]
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], tuple[float, ...]]] = {
    "line": (lambda x: 2.0 * x + 1.0, ()),
    "falling": (lambda x: -0.5 * x, ()),
    "tanh": (np.tanh, ()),
    "silu": (silu, (SILU_TURN,)),
    "square": (lambda x: x * x, (0.0,)),
}


def _of(values: Array) -> Histogram:
    """Histogram of ``[C, N]`` values."""
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, BINS, (low, high))
    return Histogram(counts.astype(float), low, high, values.min(1), values.max(1))


def test_range_and_bins() -> None:
    found = _of(np.array([[-1.0, 0.5], [0.25, 3.0]]))
    assert (found.min, found.max) == (-1.0, 3.0)
    assert found.width == pytest.approx(4.0 / BINS)
    assert found.centers[0] == pytest.approx(-1.0 + 2.0 / BINS)
    assert found.centers[-1] == pytest.approx(3.0 - 2.0 / BINS)


@pytest.mark.parametrize("label", FUNCTIONS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    shift=st.floats(-6, 6),
    spread=st.floats(0.05, 8),
    channels=st.integers(1, 5),
)
def test_through_a_function(label: str, seed: int, shift: float, spread: float, channels: int) -> None:
    function, turns = FUNCTIONS[label]
    random = np.random.default_rng(seed)
    values = (
        random.standard_normal((channels, 400)) + random.standard_normal((channels, 1))
    ) * spread + shift
    before = _of(values)
    after = before.through(function, turns)
    images = function(values)
    assert after.counts.sum() == pytest.approx(before.counts.sum())
    # The range of each channel is that of the function over everything between the channel's ends.
    dense = function(np.linspace(values.min(1), values.max(1), 4001, axis=1))
    np.testing.assert_allclose(after.channel_min, dense.min(1), atol=1e-4 * (1 + np.abs(dense).max()))
    np.testing.assert_allclose(after.channel_max, dense.max(1), atol=1e-4 * (1 + np.abs(dense).max()))
    assert (after.channel_min <= images.min(1) + 1e-9).all()
    assert (after.channel_max >= images.max(1) - 1e-9).all()
    # No value moves further than its old bin can be stretched, plus one new bin.
    edges = before.edges_low + before.width * np.arange(BINS + 1)
    stretch = np.abs(np.diff(function(edges))).max() + after.width
    points = np.linspace(after.edges_low, after.edges_high, 33)
    share = np.concatenate([[0.0], np.cumsum(after.counts)]) / after.counts.sum()
    ends = after.edges_low + after.width * np.arange(BINS + 1)
    for point in points:
        found = np.interp(point, ends, share)
        assert (images <= point - 2 * stretch).mean() - 1e-9 <= found
        assert found <= (images <= point + 2 * stretch).mean() + 1e-9


def test_the_turn_is_the_minimum_of_silu() -> None:
    near = SILU_TURN + np.array([-1e-3, 0.0, 1e-3])
    assert silu(near).argmin() == 1
    assert np.isfinite(silu(np.array([-1e30, 1e30]))).all()


def test_a_turn_inside_the_range_is_seen() -> None:
    found = _of(np.array([[-5.0, -3.0], [-3.0, 2.0]])).through(silu, (SILU_TURN,))
    assert found.channel_min[0] == pytest.approx(silu(np.array(-3.0)))
    assert found.channel_max[0] == pytest.approx(silu(np.array(-5.0)))
    assert found.channel_min[1] == pytest.approx(silu(np.array(SILU_TURN)))


def test_a_constant_tensor() -> None:
    found = _of(np.full((2, 3), 4.0)).through(silu, (SILU_TURN,))
    assert found.counts.sum() == 6
    assert found.max == pytest.approx(silu(np.array(4.0)))
