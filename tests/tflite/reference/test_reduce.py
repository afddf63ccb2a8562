"""Reductions of the integer reference, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, TfliteModel
from edgekit.tflite.reference.run import Reference

TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]
SHAPE = (2, 5, 7, 9)


def reduction(
    one_op: Any, op: str, dtype: DType, axes: list[int], keep: bool, out_scale: float | None = None
) -> TfliteModel:
    gone = {axis % 4 for axis in axes}
    shape = tuple(1 if i in gone else n for i, n in enumerate(SHAPE) if keep or i not in gone)
    step, asymmetric = (0.07, 1) if dtype is DType.INT8 else (0.0003, 0)
    scales = (None, None) if dtype is DType.FLOAT32 else (step, out_scale or step)
    same = out_scale is None
    return one_op.model(  # type: ignore[no-any-return]
        op,
        [one_op.tensor("x", SHAPE, scales[0], 5 * asymmetric, dtype=dtype), one_op.constant("axes", axes)],
        [one_op.tensor("y", shape, scales[1], (5 if same else -8) * asymmetric, dtype=dtype)],
        keepDims=keep,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axes", [[1, 2], [3], [-1], [1], [0, 1, 2, 3], [2, 1, 2]])
@pytest.mark.parametrize("keep", [True, False])
def test_mean(one_op: Any, dtype: DType, axes: list[int], keep: bool) -> None:
    # The multiplier that the reference divides by the count loses bits: up to a third of the other kernels'
    # codes are one step off.
    one_op.check(reduction(one_op, "MEAN", dtype, axes, keep, 0.02 if dtype is DType.INT8 else 0.0001))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axes", [[1, 2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("keep", [True, False])
def test_sum(one_op: Any, dtype: DType, axes: list[int], keep: bool) -> None:
    # LiteRT 2.3's reference kernel never sets the multiplier of quantized sums, so its codes mean nothing.
    reference = 0 if dtype is DType.FLOAT32 else None
    one_op.check(
        reduction(one_op, "SUM", dtype, axes, keep, 0.5 if dtype is DType.INT8 else 0.002),
        reference=reference,
    )


@pytest.mark.parametrize("op", ["REDUCE_MAX", "REDUCE_MIN"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axes", [[1, 2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("keep", [True, False])
def test_extremum(one_op: Any, op: str, dtype: DType, axes: list[int], keep: bool) -> None:
    one_op.check(reduction(one_op, op, dtype, axes, keep))


def test_scales_that_differ_are_refused(one_op: Any, refused: Callable[..., str]) -> None:
    model = reduction(one_op, "REDUCE_MAX", DType.INT8, [1], True, 0.5)
    message = refused(ModelError, Reference(model).run, one_op.values(model))
    assert "REDUCE_MAX y: REDUCE_MAX copies codes" in message
