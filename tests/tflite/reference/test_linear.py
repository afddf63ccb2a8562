"""Matrix products of the integer reference, against LiteRT."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgekit.tflite.model import DType

BIAS = {DType.INT8: DType.INT32, DType.INT16: DType.INT64, DType.FLOAT32: DType.FLOAT32}
TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("activation", ["NONE", "RELU6"])
def test_fully_connected(
    one_op: Any, dtype: DType, per_channel: bool, bias: bool, keep: bool, activation: str
) -> None:
    rng = np.random.default_rng(0)
    is_float = dtype is DType.FLOAT32
    scales = rng.uniform(0.002, 0.01, 16 if per_channel else 1)
    step, asymmetric = (0.05, 1) if dtype is DType.INT8 else (0.0002, 0)

    def quantized(scale: Any, zero: int = 0) -> tuple[Any, int]:
        return (None, 0) if is_float else (scale, zero * asymmetric)

    weight_type = DType.FLOAT32 if is_float else DType.INT8
    inputs = [
        one_op.tensor("x", (2, 15, 40), *quantized(step, 5), dtype=dtype),
        one_op.tensor(
            "w", (16, 40), *quantized(scales), dtype=weight_type, data=rng.integers(-127, 128, (16, 40))
        ),
        None,
    ]
    if bias:
        values = rng.integers(-3000, 3000, 16)
        inputs[2] = one_op.tensor("b", (16,), *quantized(step * scales), dtype=BIAS[dtype], data=values)
    shape = (2, 15, 16) if keep else (30, 16)
    model = one_op.model(
        "FULLY_CONNECTED",
        inputs,
        [one_op.tensor("y", shape, *quantized(step * 2, -9), dtype=dtype)],
        keepNumDims=keep,
        fusedActivationFunction=activation,
    )
    one_op.check(model)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("left", "right"), [((2, 6, 20), (2, 20, 7)), ((3, 2, 6, 20), (2, 20, 7)), ((6, 20), (20, 7))]
)
def test_batch_matmul(one_op: Any, dtype: DType, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    is_float = dtype is DType.FLOAT32
    step, asymmetric = (0.05, 1) if dtype is DType.INT8 else (0.0002, 0)

    def swap(shape: tuple[int, ...], swapped: bool) -> tuple[int, ...]:
        return (*shape[:-2], shape[-1], shape[-2]) if swapped else shape

    for left_swapped, right_swapped in itertools.product((False, True), repeat=2):
        scales = (None, None, None) if is_float else (step, step / 2, step * 3)
        model = one_op.model(
            "BATCH_MATMUL",
            [
                one_op.tensor("x", swap(left, left_swapped), scales[0], 5 * asymmetric, dtype=dtype),
                one_op.tensor("z", swap(right, right_swapped), scales[1], -40 * asymmetric, dtype=dtype),
            ],
            [one_op.tensor("y", (*left[:-1], right[-1]), scales[2], 9 * asymmetric, dtype=dtype)],
            adjX=left_swapped,
            adjY=right_swapped,
        )
        one_op.check(model)
