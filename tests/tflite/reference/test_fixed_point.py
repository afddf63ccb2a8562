"""Fixed-point arithmetic, against exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, Quantization, Tensor
from edgekit.tflite.reference import fixed_point as fp

INT32 = st.integers(-(2**31), 2**31 - 1)


@given(st.floats(2.0**-30, 2.0**20))
def test_multipliers_are_31_bits_and_close(real: float) -> None:
    multiplier, shift = (int(part) for part in fp.quantize_multiplier(real))
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) / Fraction(real) - 1) <= Fraction(1, 2**31)


def test_multipliers_at_the_ends() -> None:
    multiplier, shift = fp.quantize_multiplier([0.0, 2.0**-40, 1.0, 0.5, np.nextafter(1.0, 0)])
    assert multiplier.tolist() == [0, 0, 2**30, 2**30, 2**30]
    assert shift.tolist() == [0, 0, 1, 0, 1]


def test_halves_go_away_from_zero() -> None:
    assert fp.round_half_away([0.5, 1.5, -0.5, -2.5, 0.49999999999999994]).tolist() == [1, 2, -1, -3, 0]


@given(INT32, INT32)
def test_high_mul(a: int, b: int) -> None:
    found = int(fp.saturating_rounding_doubling_high_mul(np.int64(a), np.int64(b)))
    exact = Fraction(a * b, 2**31)
    assert found == min(2**31 - 1, int((exact + Fraction(1, 2)) // 1))


@given(INT32, st.integers(0, 31))
def test_shift(x: int, exponent: int) -> None:
    exact = Fraction(x, 2**exponent)
    nearest = int(abs(exact) + Fraction(1, 2)) * (1 if x >= 0 else -1)
    assert int(fp.rounding_divide_by_pot(np.int64(x), exponent)) == nearest


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-20, 2.0**6))
def test_multiply(x: int, real: float) -> None:
    found = int(fp.multiply(np.int64(x), *fp.quantize_multiplier(real)))
    # Two roundings: half a step each, the first before the shift.
    assert abs(found - x * real) <= 1.0 + abs(x * real) * 2**-30


@given(st.integers(-(2**40), 2**40), st.floats(2.0**-31, 2.0**-20))
def test_multiply_wide(x: int, real: float) -> None:
    found = int(fp.multiply_wide(np.int64(x), *fp.quantize_multiplier(real)))
    # The multiplier keeps 15 bits.
    assert abs(found - x * real) <= 0.5 + abs(x * real) * 2**-15


@pytest.mark.parametrize(
    ("activation", "codes"),
    [("NONE", (-128, 127)), ("RELU", (-10, 127)), ("RELU6", (-10, 50)), ("RELU_N1_TO_1", (-20, 0))],
)
def test_activation_range(activation: str, codes: tuple[int, int]) -> None:
    tensor = Tensor("y", (1,), DType.INT8, Quantization.single(0.1, -10))
    assert fp.activation_range(activation, tensor) == codes


def test_refusals(refused: Callable[..., str]) -> None:
    plain: Any = Tensor("y", (1,), DType.INT8)
    assert "kernels do not fuse the activation 'TANH' (valid: NONE, RELU" in refused(
        ModelError, fp.activation_bounds, "TANH"
    )
    assert "tensor 'y': the kernel needs a tensor with one scale" in refused(ModelError, fp.scale_of, plain)
    assert "tensor 'y': integer kernels need quantized weights" in refused(
        ModelError, fp.effective_scales, plain, plain, plain
    )
