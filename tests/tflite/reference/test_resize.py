"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR against LiteRT's, in every mode."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.tflite.model import DType

sizes = st.integers(1, 13)
MODES = [{}, {"alignCorners": True}, {"halfPixelCenters": True}]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, sizes, st.integers(0, 1000))
@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16])
@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("op", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_any_size_to_any_size(
    one_op: Any,
    op: str,
    modes: dict[str, bool],
    dtype: DType,
    h: int,
    w: int,
    to_h: int,
    to_w: int,
    seed: int,
) -> None:
    zero = 5 if dtype is DType.INT8 else 0
    x = one_op.tensor("x", (1, h, w, 3), 0.05, zero, dtype=dtype)
    y = one_op.tensor("y", (1, to_h, to_w, 3), 0.05, zero, dtype=dtype)
    model = one_op.model(op, [x, one_op.constant("size", [to_h, to_w])], [y], **modes)
    one_op.check(model, seed=seed, optimized=0, xnnpack=1)


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("op", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_float32(one_op: Any, op: str, modes: dict[str, bool]) -> None:
    x = one_op.tensor("x", (1, 4, 6, 3), dtype=DType.FLOAT32)
    y = one_op.tensor("y", (1, 7, 12, 3), dtype=DType.FLOAT32)
    one_op.check(one_op.model(op, [x, one_op.constant("size", [7, 12])], [y], **modes))
