"""Pooling of the integer reference, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, TfliteModel
from edgekit.tflite.reference.run import Reference

TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]
SIZE = (8, 13)


def pooling(
    one_op: Any,
    op: str,
    dtype: DType,
    padding: str = "SAME",
    taps: tuple[int, int] = (3, 3),
    stride: int = 1,
    activation: str = "NONE",
    out_scale: float = 0.05,
) -> TfliteModel:
    sizes = [
        -(-n // stride) if padding == "SAME" else -(-(n - k + 1) // stride)
        for n, k in zip(SIZE, taps, strict=True)
    ]
    scales = (None, None) if dtype is DType.FLOAT32 else (0.05, out_scale)
    zero_point = 3 if dtype is DType.INT8 else 0
    return one_op.model(  # type: ignore[no-any-return]
        op,
        [one_op.tensor("image", (2, *SIZE, 5), scales[0], zero_point, dtype=dtype)],
        [one_op.tensor("out", (2, *sizes, 5), scales[1], zero_point, dtype=dtype)],
        padding=padding,
        strideH=stride,
        strideW=stride,
        filterHeight=taps[0],
        filterWidth=taps[1],
        fusedActivationFunction=activation,
    )


@pytest.mark.parametrize("op", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("taps", "stride"), [((5, 5), 1), ((2, 2), 2), ((3, 2), 2), ((8, 13), 1), ((1, 1), 2)]
)
def test_pooling(
    one_op: Any, op: str, dtype: DType, padding: str, taps: tuple[int, int], stride: int
) -> None:
    one_op.check(pooling(one_op, op, dtype, padding, taps, stride))


@pytest.mark.parametrize("op", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("dtype", TYPES)
def test_fused_activation(one_op: Any, op: str, dtype: DType) -> None:
    one_op.check(pooling(one_op, op, dtype, activation="RELU_N1_TO_1"))


def test_halves_are_rounded_away_from_zero(one_op: Any) -> None:
    model = pooling(one_op, "AVERAGE_POOL_2D", DType.INT8, "VALID", (1, 2), 1)
    image = np.zeros((2, *SIZE, 5), np.int8)
    image[0, 0, 0], image[0, 1, 0] = 1, -1
    out = one_op.check(model, {"image": image})["out"]
    assert (out[0, 0, 0, 0], out[0, 1, 0, 0]) == (1, -1)


@pytest.mark.parametrize("op", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_scales_that_differ_are_refused(one_op: Any, refused: Callable[..., str], op: str) -> None:
    model = pooling(one_op, op, DType.INT8, out_scale=0.06)
    message = refused(ModelError, Reference(model).run, one_op.values(model))
    assert f"{op} out: {op} copies codes, so input and output need one scale and zero point" in message
