"""Kernels of one tensor against LiteRT's, over every code and over random scales."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.reference.tables import int16_table, look_up_int16, round_away, sigmoid_table

CODES: dict[DType, Array] = {
    DType.INT8: np.arange(-128, 128).astype(np.int8),
    DType.INT16: np.arange(-32768, 32768).astype(np.int16),
}
#: Output scales and zero points that the kernels insist on.
FIXED = {
    ("LOGISTIC", DType.INT8): (1 / 256, -128),
    ("LOGISTIC", DType.INT16): (1 / 32768, 0),
    ("TANH", DType.INT16): (1 / 32768, 0),
}
scales = st.floats(-7.0, -0.7).map(math.exp)
zero_points = st.integers(-128, 127)


def every_code(
    one_op: Any,
    op: str,
    dtype: DType,
    source: tuple[float, int],
    result: tuple[float, int],
    *,
    lowest: int | None = None,
    steps: dict[str, Any] | None = None,
    **options: Any,
) -> Array:
    """The outputs for all codes, held against LiteRT's kernels."""
    codes = CODES[dtype] if lowest is None else CODES[dtype][CODES[dtype] >= lowest]
    x = one_op.tensor("x", codes.shape, *source, dtype=dtype)
    y = one_op.tensor("y", codes.shape, *result, dtype=dtype)
    model = one_op.model(op, [x], [y], **options)
    return np.asarray(one_op.check(model, {"x": codes}, **(steps or {}))["y"])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(scales, zero_points, scales, zero_points)
@pytest.mark.parametrize(
    "op",
    ["RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "EXP", "LOG", "GELU", "ABS", "NEG", "TANH", "LOGISTIC"],
)
def test_int8_over_every_code(
    one_op: Any, op: str, scale: float, zero: int, out_scale: float, out_zero: int
) -> None:
    result = FIXED.get((op, DType.INT8), (out_scale, out_zero))
    every_code(one_op, op, DType.INT8, (scale, zero), result, steps={"optimized": 0, "xnnpack": 1})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(scales, scales)
@pytest.mark.parametrize("op", ["RELU", "RELU6", "EXP", "LOG", "ABS", "NEG", "TANH", "LOGISTIC"])
def test_int16_over_every_code(one_op: Any, op: str, scale: float, out_scale: float) -> None:
    result = FIXED.get((op, DType.INT16), (out_scale / 256, 0))
    every_code(one_op, op, DType.INT16, (scale / 256, 0), result, steps={"optimized": 0, "xnnpack": 0})


@pytest.mark.parametrize("scale", [0.0001, 0.0005, 0.001])
def test_gelu_int16_is_as_good_as_the_c_library(one_op: Any, scale: float) -> None:
    # The kernel's float32 erfc may be off in the last place, and with it a sample of its table.
    every_code(one_op, "GELU", DType.INT16, (scale, 0), (scale, 0), steps={"reference": 1})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(scales, zero_points, scales, zero_points)
def test_elu_matches_the_optimized_kernel(
    one_op: Any, scale: float, zero: int, out_scale: float, out_zero: int
) -> None:
    # LiteRT's reference kernels do not include ELU.
    x, y = one_op.tensor("x", (256,), scale, zero), one_op.tensor("y", (256,), out_scale, out_zero)
    model = one_op.model("ELU", [x], [y])
    values = {"x": CODES[DType.INT8]}
    one_op.check(model, values, reference=None, optimized=0, xnnpack=1)


def test_gelu_with_tanh_differs_from_gelu_with_erf(one_op: Any) -> None:
    ends = ((0.03, 5), (0.008, -100))
    exact = every_code(one_op, "GELU", DType.INT8, *ends, approximate=False)
    approximate = every_code(one_op, "GELU", DType.INT8, *ends, approximate=True)
    fine = [
        every_code(one_op, "GELU", DType.INT16, (2e-4, 0), (2e-4, 0), approximate=a, steps={"reference": 1})
        for a in (False, True)
    ]
    assert np.abs(exact.astype(int) - approximate).max() <= 1
    assert (fine[0] != fine[1]).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(scales, zero_points, st.floats(0.02, 200.0), zero_points)
def test_hard_swish(one_op: Any, scale: float, zero: int, ratio: float, out_zero: int) -> None:
    result = (scale / min(ratio, 120.0), out_zero)
    every_code(one_op, "HARD_SWISH", DType.INT8, (scale, zero), result, steps={"optimized": 0, "xnnpack": 0})


@pytest.mark.parametrize("ratio", [130.0, 1 / 600])
def test_hard_swish_refuses_scales_that_the_kernel_cannot_bring_together(one_op: Any, ratio: float) -> None:
    x, y = one_op.tensor("x", (4,), 0.1 * ratio), one_op.tensor("y", (4,), 0.1)
    with pytest.raises(ModelError, match=r"HARD_SWISH y.*127 times"):
        Reference(one_op.model("HARD_SWISH", [x], [y])).run({"x": np.zeros(4, np.int8)})


@settings(max_examples=15, deadline=None, derandomize=True)
@given(scales, zero_points, st.floats(0.3, 3.0), zero_points, st.floats(-1.5, 1.5))
def test_leaky_relu(one_op: Any, scale: float, zero: int, ratio: float, out_zero: int, alpha: float) -> None:
    every_code(one_op, "LEAKY_RELU", DType.INT8, (scale, zero), (scale * ratio, out_zero), alpha=alpha)
    every_code(one_op, "LEAKY_RELU", DType.INT16, (scale / 256, 0), (scale * ratio / 256, 0), alpha=alpha)


@pytest.mark.parametrize("zero", [0, -128, 17])
@pytest.mark.parametrize("op", ["SQRT", "RSQRT"])
def test_roots_of_what_is_not_negative(one_op: Any, op: str, zero: int) -> None:
    for scale, out_scale in ((0.05, 0.041), (0.003, 0.3)):
        every_code(one_op, op, DType.INT8, (scale, zero), (out_scale, -20), lowest=zero)
    every_code(one_op, op, DType.INT16, (0.0005, 0), (0.0004, 0), lowest=0)


@pytest.mark.parametrize("op", ["SQRT", "RSQRT"])
def test_roots_of_negative_values_are_refused(one_op: Any, op: str) -> None:
    x, y = one_op.tensor("x", (4,), 0.1, 3), one_op.tensor("y", (4,), 0.1)
    with pytest.raises(ModelError, match=f"^{op} y: it is only defined for values that are not negative"):
        Reference(one_op.model(op, [x], [y])).run({"x": np.array([3, 4, 2, 5], np.int8)})


@pytest.mark.parametrize("op", ["LOGISTIC", "TANH"])
def test_int16_scales_that_are_powers_of_two_take_another_optimized_kernel(one_op: Any, op: str) -> None:
    steps = {"reference": 0, "optimized": 12, "xnnpack": 12}
    # A scale that is almost a power of two counts as one.
    for scale in (2.0**-12, 2.0**-12 * 1.0004, 2.0**-11, 2.0**-13):
        every_code(one_op, op, DType.INT16, (scale, 0), (2.0**-15, 0), steps=steps)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16])
def test_prelu_with_a_slope_for_each_channel(one_op: Any, dtype: DType) -> None:
    scale = 0.05 if dtype is DType.INT8 else 0.0005
    for zero, slope_zero in ((0, 0), (3, -5)):
        x = one_op.tensor("x", (1, 4, 5, 8), scale, zero if dtype is DType.INT8 else 0, dtype=dtype)
        y = one_op.tensor("y", (1, 4, 5, 8), scale * 0.8, zero if dtype is DType.INT8 else 0, dtype=dtype)
        slopes = np.linspace(-128, 127, 8).astype(np.int8)
        alpha = one_op.tensor("alpha", (1, 1, 8), 0.004, slope_zero, data=slopes)
        one_op.check(one_op.model("PRELU", [x, alpha], [y]), optimized=0, xnnpack=1)


def test_prelu_refuses_slopes_that_the_kernel_would_read_as_bytes(one_op: Any) -> None:
    x, y = (one_op.tensor(name, (1, 2, 2, 8), 0.001, dtype=DType.INT16) for name in "xy")
    alpha = one_op.tensor("alpha", (1, 1, 8), 0.004, dtype=DType.INT16, data=np.arange(8))
    model = one_op.model("PRELU", [x, alpha], [y])
    with pytest.raises(ModelError, match=r"PRELU y.*int8"):
        Reference(model).run(one_op.values(model))


@pytest.mark.parametrize(
    "op",
    [
        "RELU",
        "RELU6",
        "RELU_N1_TO_1",
        "RELU_0_TO_1",
        "HARD_SWISH",
        "LOGISTIC",
        "TANH",
        "GELU",
        "EXP",
        "ABS",
        "NEG",
    ],
)
def test_float32(one_op: Any, op: str) -> None:
    x, y = (one_op.tensor(name, (1, 4, 5, 8), dtype=DType.FLOAT32) for name in "xy")
    one_op.check(one_op.model(op, [x], [y]))


@pytest.mark.parametrize("op", ["LOG", "SQRT", "RSQRT"])
def test_float32_of_positive_values(one_op: Any, op: str) -> None:
    x, y = (one_op.tensor(name, (50,), dtype=DType.FLOAT32) for name in "xy")
    one_op.check(one_op.model(op, [x], [y]), {"x": np.linspace(0.01, 9, 50).astype(np.float32)})


def test_float32_with_slopes(one_op: Any) -> None:
    x, y = (one_op.tensor(name, (1, 4, 5, 8), dtype=DType.FLOAT32) for name in "xy")
    alpha = one_op.tensor("alpha", (1, 1, 8), dtype=DType.FLOAT32, data=np.linspace(-1, 1, 8))
    one_op.check(one_op.model("PRELU", [x, alpha], [y]))
    one_op.check(one_op.model("LEAKY_RELU", [x], [y], alpha=0.1))


def test_halves_are_rounded_away_from_zero() -> None:
    values = np.array([0.5, -0.5, 1.5, 2.5, 0.49999997, np.inf], np.float32)
    assert round_away(values).tolist() == [1, -1, 2, 3, 0, np.inf]
    assert round_away(values).dtype == np.float32


def test_an_interpolated_table_follows_its_curve() -> None:
    table = int16_table((2.0**-12, 0), (2.0**-12, 0), np.tanh)
    found = look_up_int16(CODES[DType.INT16], table) / 4096
    assert np.abs(found - np.tanh(CODES[DType.INT16] / 4096)).max() < 3 / 4096
    exact = 65536 / (1 + np.exp(-np.arange(255) / 24))
    assert np.abs(sigmoid_table()[:255] - exact).max() < 1.5
