"""PAD, PADV2 and MIRROR_PAD against LiteRT's."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.tflite.model import DType

WIDTHS = [[0, 0], [1, 2], [0, 3], [0, 0]]
SHAPES = ((1, 4, 6, 3), (1, 7, 9, 3))


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16, DType.FLOAT32])
@pytest.mark.parametrize("op", ["PAD", "PADV2", "MIRROR_PAD"])
def test_pads(one_op: Any, op: str, dtype: DType) -> None:
    scale, zero = (None if dtype is DType.FLOAT32 else 0.05), (3 if dtype is DType.INT8 else 0)
    x, y = (one_op.tensor(n, s, scale, zero, dtype=dtype) for n, s in zip("xy", SHAPES, strict=True))
    inputs = [x, one_op.constant("widths", WIDTHS)]
    if op == "PADV2":
        inputs.append(one_op.tensor("fill", (1,), scale, zero, dtype=dtype, data=[-100]))
    for options in [{"mode": "REFLECT"}, {"mode": "SYMMETRIC"}] if op == "MIRROR_PAD" else [{}]:
        one_op.check(one_op.model(op, inputs, [y], **options), optimized=0, xnnpack=0)


def test_pad_fills_with_real_zero(one_op: Any) -> None:
    x, y = (one_op.tensor(n, s, 0.05, 3) for n, s in zip("xy", SHAPES, strict=True))
    found = one_op.check(one_op.model("PAD", [x, one_op.constant("widths", WIDTHS)], [y]))["y"]
    assert (found[0, 0] == 3).all()
    assert (found[0, :, 6:] == 3).all()
