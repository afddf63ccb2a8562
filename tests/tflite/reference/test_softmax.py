"""SOFTMAX and LOG_SOFTMAX against LiteRT's, and their fixed-point functions against the real ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.tflite.model import DType
from edgekit.tflite.reference.softmax import exp_of_negative, log_of_at_least_one, reciprocal_of_one_plus

scales = st.floats(-7.0, 1.0).map(math.exp)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scales, st.integers(1, 300), st.sampled_from([1.0, 0.25, 2.0]), st.integers(0, 1000))
def test_softmax_int8(one_op: Any, scale: float, depth: int, beta: float, seed: int) -> None:
    x = one_op.tensor("x", (1, 9, depth), scale, 7)
    y = one_op.tensor("y", (1, 9, depth), 1 / 256, -128)
    one_op.check(one_op.model("SOFTMAX", [x], [y], beta=beta), seed=seed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scales, st.integers(1, 300), st.integers(0, 1000))
def test_softmax_int16(one_op: Any, scale: float, depth: int, seed: int) -> None:
    x = one_op.tensor("x", (1, 9, depth), scale / 256, dtype=DType.INT16)
    y = one_op.tensor("y", (1, 9, depth), 1 / 32768, dtype=DType.INT16)
    one_op.check(one_op.model("SOFTMAX", [x], [y], beta=1.0), seed=seed, optimized=0, xnnpack=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scales, st.integers(1, 300), st.integers(0, 1000))
def test_log_softmax_int8(one_op: Any, scale: float, depth: int, seed: int) -> None:
    x = one_op.tensor("x", (1, 9, depth), scale, -3)
    y = one_op.tensor("y", (1, 9, depth), 1 / 16, 127)
    one_op.check(one_op.model("LOG_SOFTMAX", [x], [y]), seed=seed)


@pytest.mark.parametrize("op", ["SOFTMAX", "LOG_SOFTMAX"])
def test_float32(one_op: Any, op: str) -> None:
    x, y = (one_op.tensor(name, (1, 4, 20), dtype=DType.FLOAT32) for name in "xy")
    one_op.check(one_op.model(op, [x], [y], **({"beta": 1.0} if op == "SOFTMAX" else {})))


def test_a_softmax_without_differences_is_uniform(one_op: Any) -> None:
    x, y = one_op.tensor("x", (1, 4), 0.1), one_op.tensor("y", (1, 4), 1 / 256, -128)
    model = one_op.model("SOFTMAX", [x], [y], beta=1.0)
    assert one_op.check(model, {"x": np.full((1, 4), 9, np.int8)})["y"].tolist() == [[-64] * 4]


def test_fixed_point_functions_are_close_to_the_real_ones() -> None:
    real = np.linspace(-20, 0, 4001)
    found = exp_of_negative(np.round(real * 2**26).astype(np.int64)) / 2**31
    assert np.abs(found - np.exp(real)).max() < 1e-6
    real = np.linspace(0, 0.999, 1000)
    found = reciprocal_of_one_plus(np.round(real * 2**31).astype(np.int64)) / 2**31
    assert np.abs(found - 1 / (1 + real)).max() < 1e-6
    real = np.geomspace(1, 4000, 1000)
    found = log_of_at_least_one(np.round(real * 2**19).astype(np.int64)) / 2**26
    assert np.abs(found - np.log(real)).max() < 1e-4
