"""Kernel of GATHER."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array
from edgekit.tflite.reference.base import Call, kernel
from edgekit.tflite.schema import label


@kernel("GATHER")
def gather(call: Call) -> Sequence[Array]:
    """Slices at given indices of ``axis``; the first ``batchDims`` axes of both go together.

    Indices have to lie in the axis: unlike ONNX's, negative ones do not count from its end.
    """
    values, indices = call.value(0), call.value(1)
    batch = int(call.option("batchDims", 0))
    axis = int(call.option("axis", 0))
    axis += values.ndim if axis < 0 else 0
    batch += indices.ndim if batch < 0 else 0
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < values.shape[axis]:
        raise ModelError(
            f"it has indices outside of 0 … {values.shape[axis] - 1}",
            where=label(call.operator),
        )
    if batch == 0:
        return [np.take(values, indices, axis)]
    leading = values.shape[:batch]
    flat, picked = values.reshape(-1, *values.shape[batch:]), indices.reshape(-1, *indices.shape[batch:])
    rows = [np.take(row, index, axis - batch) for row, index in zip(flat, picked, strict=True)]
    return [np.stack(rows).reshape(*leading, *rows[0].shape)]
