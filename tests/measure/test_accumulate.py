"""Running sums against the same figures computed in one go."""

import math
from typing import Any

import numpy as np
import pytest

from edgekit.measure.accumulate import Accumulator


def _pairs(count: int = 5) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    random = np.random.default_rng(0)
    xs = [random.normal(size=(2, 3, 4)).astype(np.float32) * (i + 1) for i in range(count)]
    return [(x, x + random.normal(size=x.shape).astype(np.float32) * 0.1) for x in xs]


def test_the_figures_are_those_of_all_samples_at_once() -> None:
    total = Accumulator()
    for x, y in _pairs():
        total.add(x, y, 0.5)
    a = np.concatenate([x.ravel() for x, _ in _pairs()]).astype(np.float64)
    b = np.concatenate([y.ravel() for _, y in _pairs()]).astype(np.float64)
    assert total.samples == 5
    assert total.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert total.sqnr_db == pytest.approx(10 * math.log10((a @ a) / ((a - b) @ (a - b))), rel=1e-12)
    assert total.max_abs == np.abs(a - b).max()
    assert total.max_steps == total.max_abs / 0.5
    worst = min(float(x.ravel() @ y.ravel() / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in _pairs())
    assert total.cosine_min == pytest.approx(worst, rel=1e-5)


def test_equal_tensors_are_identical_and_have_no_finite_sqnr() -> None:
    total = Accumulator()
    total.add(np.ones(3), np.ones(3))
    assert (total.cosine, total.sqnr_db, total.max_abs, total.identical) == (1.0, None, 0.0, True)
    assert total.max_steps is None


def test_zeros_have_figures_too() -> None:
    both, one = Accumulator(), Accumulator()
    both.add(np.zeros(3), np.zeros(3))
    one.add(np.zeros(3), np.ones(3))
    assert (both.cosine, both.identical) == (1.0, True)
    assert (one.cosine, one.sqnr_db, one.identical) == (0.0, None, False)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    total = Accumulator()
    total.add(np.array([1.0, np.nan, 3.0, 4.0]), np.array([1.0, 2.0, np.inf, 4.0]))
    assert (total.not_finite_x, total.not_finite_y) == (1, 1)
    assert (total.cosine, total.max_abs, total.identical) == (1.0, 0.0, False)


def test_nothing_finite_has_no_cosine() -> None:
    total = Accumulator()
    total.add(np.array([np.nan]), np.array([1.0]))
    assert (total.cosine, total.cosine_min, total.sqnr_db) == (None, None, None)


def test_integers_and_booleans_do_not_wrap_around() -> None:
    total = Accumulator()
    total.add(np.array([250, 3], np.uint8), np.array([3, 250], np.uint8))
    total.add(np.array([True, False]), np.array([False, False]))
    assert total.max_abs == 247.0


def test_sums_beyond_float64_leave_no_figure_rather_than_a_wrong_one() -> None:
    total = Accumulator()
    with np.errstate(over="ignore"):
        total.add(np.array([1e200, 1.0]), np.array([-1e200, 1.0]))
    assert total.sqnr_db is None
    assert total.cosine is None


def test_empty_tensors_count_as_a_sample() -> None:
    total = Accumulator()
    total.add(np.zeros((0, 4)), np.zeros((0, 4)))
    assert (total.samples, total.cosine) == (1, None)
