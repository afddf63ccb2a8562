"""Scales, zero points and codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.quantize.qparams import (
    BIAS_LIMIT,
    activation_params,
    weight_codes,
    weight_scales,
    with_room_for_bias,
)
from edgekit.quantize.scheme import Format

Array = np.ndarray[Any, Any]
FORMATS = [Format.UINT8, Format.INT8, Format.UINT16, Format.INT16]
ends = st.floats(-1e4, 1e4, allow_subnormal=False)


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(a=ends, b=ends)
def test_a_round_trip_costs_half_a_step_at_most(fmt: Format, a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    params = activation_params(min(a, b), max(a, b), fmt)
    # The requested range, not only the one that the zero point's rounding leaves.
    values = np.linspace(low, high, 2001)
    error = np.abs(params.round_trip(values) - values).max()
    assert error <= params.scale * 0.501 + 1e-6 * (high - low)
    step = (high - low) / (2**fmt.bits - 1)
    if fmt is Format.INT16:  # symmetric
        step = max(-low / 2**15, high / (2**15 - 1))
    assert params.scale == pytest.approx(max(step, 1e-12), rel=1e-6)
    assert float(np.float32(params.scale)) == params.scale


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(a=ends, b=ends)
def test_zero_is_exact(fmt: Format, a: float, b: float) -> None:
    params = activation_params(min(a, b), max(a, b), fmt)
    first, last = fmt.limits
    assert first <= params.zero_point <= last
    assert params.round_trip(np.zeros(1))[0] == 0.0
    assert params.codes(np.zeros(1))[0] == params.zero_point
    assert params.range[0] <= 0.0 <= params.range[1]


def test_codes_have_their_type_and_stay_inside() -> None:
    params = activation_params(-1.0, 1.0, Format.UINT8)
    codes = params.codes(np.array([-100.0, 0.0, 100.0]))
    assert codes.dtype == np.uint8
    assert codes.tolist() == [0, params.zero_point, 255]
    assert params.round_trip(np.array([100.0]))[0] == pytest.approx(params.range[1])


def test_halves_go_to_the_even_code() -> None:
    params = activation_params(0.0, 255.0, Format.UINT8)
    assert params.scale == 1.0
    assert params.codes(np.array([0.5, 1.5, 2.5])).tolist() == [0, 2, 2]


def test_an_empty_range() -> None:
    params = activation_params(0.0, 0.0, Format.UINT8)
    assert params.scale > 0.0
    assert params.round_trip(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def _error(weight: Array, scales: Array, axis: int | None) -> Array:
    """Squared error of each channel."""
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    )
    steps = scales.reshape(-1, 1).astype(np.float64)
    return np.asarray(((np.clip(np.round(rows / steps), -127, 127) * steps - rows) ** 2).sum(1))


@pytest.mark.parametrize("axis", [0, 1, None])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), power=st.floats(0.5, 6))
def test_weight_scales_are_never_worse_than_the_largest_weight(
    axis: int | None, seed: int, power: float
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((4, 6, 3, 3))
    weight = np.sign(weight) * np.abs(weight) ** power  # from flat to heavy tails
    scales = weight_scales(weight, axis, Format.INT8)
    assert scales.dtype == np.float32
    assert scales.shape == (() if axis is None else (weight.shape[axis],))
    others = None if axis is None else tuple(i for i in range(4) if i != axis)
    plain = np.asarray(np.abs(weight).max(others) / 127.0)
    found, largest = _error(weight, scales, axis), _error(weight, plain, axis)
    assert (found <= largest * (1 + 1e-4) + 1e-12).all()
    assert (scales <= plain * (1 + 1e-6)).all()
    assert (scales >= 0.59 * plain).all()


def test_clipping_an_outlier_pays() -> None:
    random = np.random.default_rng(0)
    weight = random.uniform(-0.8, 0.8, (1, 200_000))
    weight[0, 0] = 1.0
    scale = weight_scales(weight, 0, Format.INT8)
    assert _error(weight, scale, 0)[0] < 0.95 * _error(weight, np.array([1.0 / 127]), 0)[0]


def test_dead_channels_get_a_scale() -> None:
    scales = weight_scales(np.zeros((3, 2)), 0, Format.INT8)
    assert (scales > 0).all()
    assert (weight_codes(np.zeros((3, 2)), scales, 0, Format.INT8) == 0).all()


def test_a_large_bias_lifts_the_scale() -> None:
    weight = np.full((2, 4), 1e-6)
    step, bias = 0.01, np.array([1000.0, 0.0])
    floor = bias / (step * BIAS_LIMIT)
    scales = with_room_for_bias(weight_scales(weight, 0, Format.INT8), bias, step)
    assert scales.dtype == np.float32
    assert bias[0] / (scales[0] * step) <= BIAS_LIMIT * (1 + 1e-6)
    assert scales[0] == pytest.approx(floor[0], rel=1e-6)
    assert scales[1] == weight_scales(weight, 0, Format.INT8)[1]
    # One scale for all channels makes room for the largest bias.
    one = with_room_for_bias(weight_scales(weight, None, Format.INT8), bias, step)
    assert np.shape(one) == ()
    assert one == scales[0]


@pytest.mark.parametrize(("fmt", "top"), [(Format.INT8, 127), (Format.INT16, 32767)])
def test_weight_codes_are_symmetric(fmt: Format, top: int) -> None:
    weight = np.array([[-1.0, 1.0, 0.5], [-4.0, 2.0, 0.0]])
    codes = weight_codes(weight, np.array([1.0, 4.0]) / top, 0, fmt)
    assert codes.dtype == np.dtype(fmt.value)
    assert codes[0, 0] == -top
    assert codes[0, 1] == top
    assert codes[1, 0] == -top
    assert codes[1, 2] == 0
    over = weight_codes(np.array([-9.0, 9.0]), np.array(1.0 / top), None, fmt)
    assert over.tolist() == [-top, top]


def test_weight_codes_follow_their_axis() -> None:
    weight = np.array([[1.0, 10.0], [0.5, 5.0]])
    assert weight_codes(weight, np.array([0.1, 1.0]), 1, Format.INT8).tolist() == [[10, 10], [5, 5]]


def test_weights_that_count_are_exact() -> None:
    bins = np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)
    scales = weight_scales(bins, 0, Format.INT8)
    codes = weight_codes(bins, scales, 0, Format.INT8)
    assert np.array_equal(codes * scales[0], bins)


def test_other_small_weights_keep_the_scale_of_least_error() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 1, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, 0, Format.INT8)
    largest = np.abs(weight).reshape(8, -1).max(1)
    assert np.all(scales <= largest / 127 * 1.0001)
