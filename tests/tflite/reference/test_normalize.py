"""L2_NORMALIZATION against LiteRT's, and the inverse square root it stands on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.tflite.model import DType
from edgekit.tflite.reference.normalize import inverse_sqrt


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(-128, 127), st.integers(1, 600), st.integers(0, 1000))
def test_l2_normalization_int8(one_op: Any, zero: int, depth: int, seed: int) -> None:
    x = one_op.tensor("x", (1, 5, depth), 0.05, zero)
    y = one_op.tensor("y", (1, 5, depth), 1 / 128)
    one_op.check(one_op.model("L2_NORMALIZATION", [x], [y]), seed=seed, optimized=0, xnnpack=0)


def test_a_row_of_zeros_stays_zero(one_op: Any) -> None:
    x, y = one_op.tensor("x", (1, 8), 0.05, 3), one_op.tensor("y", (1, 8), 1 / 128)
    model = one_op.model("L2_NORMALIZATION", [x], [y])
    assert not one_op.check(model, {"x": np.full((1, 8), 3, np.int8)})["y"].any()


def test_float32(one_op: Any) -> None:
    x, y = (one_op.tensor(name, (2, 3, 16), dtype=DType.FLOAT32) for name in "xy")
    one_op.check(one_op.model("L2_NORMALIZATION", [x], [y]))


@pytest.mark.parametrize("value", [1, 2, 3, 17, 255, 65025, 1 << 20, (1 << 29) + 5, (1 << 31) - 1])
def test_the_inverse_square_root(value: int) -> None:
    multiplier, shift = inverse_sqrt(value)
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(1 / math.sqrt(value), rel=1e-4)
