"""GATHER against LiteRT's."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import ModelError
from edgekit.tflite.model import DType
from edgekit.tflite.reference.run import Reference


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16, DType.FLOAT32])
@pytest.mark.parametrize(
    ("indices", "shape", "options"),
    [
        ([3, 0, 3], (2, 4, 3, 5), {"axis": 2}),
        ([[3, 0], [1, 1]], (2, 4, 2, 2, 5), {"axis": 2}),
        ([[3, 0], [1, 1]], (2, 4, 2, 5), {"axis": 2, "batchDims": 1}),
        (2, (2, 4, 5), {"axis": -2}),
    ],
)
def test_gather(
    one_op: Any, dtype: DType, indices: Any, shape: tuple[int, ...], options: dict[str, int]
) -> None:
    scale = None if dtype is DType.FLOAT32 else 0.05
    x, y = (one_op.tensor(n, s, scale, dtype=dtype) for n, s in (("x", (2, 4, 6, 5)), ("y", shape)))
    model = one_op.model("GATHER", [x, one_op.constant("indices", indices)], [y], **options)
    one_op.check(model, optimized=0, xnnpack=0)


@pytest.mark.parametrize("index", [-1, 6])
def test_indices_outside_of_the_axis_are_refused(one_op: Any, index: int) -> None:
    x, y = one_op.tensor("x", (6, 5), 0.05), one_op.tensor("y", (1, 5), 0.05)
    model = one_op.model("GATHER", [x, one_op.constant("indices", [index])], [y], axis=0)
    with pytest.raises(ModelError, match=r"GATHER y.*outside of 0 … 5"):
        Reference(model).run(one_op.values(model))
