"""Kernels that only move codes against LiteRT's: not one code may differ in any of its implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, Tensor
from edgekit.tflite.reference.run import Reference

TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]
IMAGE = (1, 4, 6, 8)


def data(one_op: Any, name: str, shape: Sequence[int], dtype: DType) -> Tensor:
    """A tensor of the scale that all of a model share."""
    if dtype is DType.FLOAT32:
        return one_op.tensor(name, shape, dtype=dtype)  # type: ignore[no-any-return]
    return one_op.tensor(name, shape, 0.05, 3 if dtype is DType.INT8 else 0, dtype=dtype)  # type: ignore[no-any-return]


def moved(
    one_op: Any,
    op: str,
    dtype: DType,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    constants: Sequence[Any] = (),
    *,
    reference: int | None = 0,
    **options: Any,
) -> None:
    """Check a model whose constants stand behind its data."""
    xs = [data(one_op, f"x{i}", shape, dtype) for i, shape in enumerate(inputs)]
    ys = [data(one_op, f"y{i}", shape, dtype) for i, shape in enumerate(outputs)]
    behind = [one_op.constant(f"c{i}", values) for i, values in enumerate(constants)]
    one_op.check(one_op.model(op, [*xs, *behind], ys, **options), reference=reference, optimized=0, xnnpack=0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [1, 3, -1])
def test_concatenation(one_op: Any, dtype: DType, axis: int) -> None:
    shapes = [list(IMAGE), list(IMAGE)]
    shapes[1][axis] = 5
    whole = list(IMAGE)
    whole[axis] += 5
    moved(one_op, "CONCATENATION", dtype, shapes, [whole], axis=axis)


def test_concatenation_refuses_other_scales(one_op: Any) -> None:
    x, y = data(one_op, "x", (1, 4), DType.INT8), data(one_op, "y", (1, 8), DType.INT8)
    other = one_op.tensor("other", (1, 4), 0.06, 3)
    model = one_op.model("CONCATENATION", [x, other], [y], axis=1)
    with pytest.raises(ModelError, match=r"CONCATENATION y: the scale or zero point of 'other'"):
        Reference(model).run(one_op.values(model))


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes(one_op: Any, dtype: DType) -> None:
    moved(one_op, "RESHAPE", dtype, [IMAGE], [(1, 24, 8)], [[1, 24, 8]], newShape=(1, 24, 8))
    moved(one_op, "TRANSPOSE", dtype, [IMAGE], [(1, 8, 4, 6)], [[0, 3, 1, 2]])
    moved(one_op, "TRANSPOSE", dtype, [(2, 3, 4)], [(4, 2, 3)], [[2, 0, 1]])
    moved(one_op, "BROADCAST_TO", dtype, [(1, 1, 6, 1)], [IMAGE], [list(IMAGE)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_stacks(one_op: Any, dtype: DType, axis: int) -> None:
    part, whole = (3, 4), [3, 4]
    whole.insert(axis if axis >= 0 else 2, 2)
    moved(one_op, "PACK", dtype, [part, part], [whole], axis=axis, valuesCount=2)
    moved(one_op, "UNPACK", dtype, [whole], [part, part], axis=axis, num=2)


@pytest.mark.parametrize("dtype", TYPES)
def test_slices(one_op: Any, dtype: DType) -> None:
    moved(one_op, "SLICE", dtype, [IMAGE], [(1, 2, 4, 3)], [[0, 1, 2, 5], [1, 2, -1, 3]])
    moved(one_op, "STRIDED_SLICE", dtype, [IMAGE], [(1, 2, 3, 8)], [[0, 1, 0, 0], [1, 3, 6, 8], [1, 1, 2, 1]])
    # Backwards, with an open end, and an axis that goes away.
    ranges = [[0, 0, 4, 2], [1, 4, 0, 3], [1, 2, -2, 1]]
    moved(one_op, "STRIDED_SLICE", dtype, [IMAGE], [(1, 2, 2)], ranges, endMask=1, shrinkAxisMask=8)
    # Ends counted from the back, and beyond the tensor.
    ranges = [[0, -3, 1, 0], [1, 99, -1, 8], [1, 1, 2, 1]]
    moved(one_op, "STRIDED_SLICE", dtype, [IMAGE], [(1, 3, 2, 8)], ranges, beginMask=1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_strided_slices_of_any_range(one_op: Any, data: st.DataObject) -> None:
    extents, ranges, shape = (5, 7), [], []
    for extent in extents:
        stride = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        ends = sorted(data.draw(st.lists(st.integers(0, extent - 1), min_size=2, max_size=2, unique=True)))
        begin, end = ends if stride > 0 else ends[::-1]
        ranges.append((begin, end, stride))
        shape.append(len(range(begin, end, stride)))
    moved(one_op, "STRIDED_SLICE", DType.INT8, [extents], [shape], list(zip(*ranges, strict=True)))


def test_masks_that_no_lowering_writes_are_refused(one_op: Any) -> None:
    x, y = data(one_op, "x", (4, 4), DType.INT8), data(one_op, "y", (4, 4), DType.INT8)
    ranges = [one_op.constant(name, value) for name, value in (("b", [0, 0]), ("e", [4, 4]), ("s", [1, 1]))]
    model = one_op.model("STRIDED_SLICE", [x, *ranges], [y], ellipsisMask=1)
    with pytest.raises(ModelError, match=r"STRIDED_SLICE y: ellipsisMask"):
        Reference(model).run(one_op.values(model))


@pytest.mark.parametrize("dtype", TYPES)
def test_splits(one_op: Any, dtype: DType) -> None:
    x = data(one_op, "x", IMAGE, dtype)
    parts = [data(one_op, f"y{i}", (1, 4, 6, 2), dtype) for i in range(4)]
    model = one_op.model("SPLIT", [one_op.constant("axis", 3), x], parts, numSplits=4)
    one_op.check(model, optimized=0, xnnpack=0)
    moved(
        one_op,
        "SPLIT_V",
        dtype,
        [IMAGE],
        [(1, 4, 6, 1), (1, 4, 6, 5), (1, 4, 6, 2)],
        [[1, -1, 2], 3],
        numSplits=3,
    )


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT32])
@pytest.mark.parametrize("block", [2, 3])
def test_blocks(one_op: Any, dtype: DType, block: int) -> None:
    small, deep = (1, 2 * block, 3 * block, 2), (1, 2, 3, 2 * block**2)
    moved(one_op, "SPACE_TO_DEPTH", dtype, [small], [deep], blockSize=block)
    # LiteRT registers the reference kernel for fewer versions than the optimized one.
    moved(one_op, "DEPTH_TO_SPACE", dtype, [deep], [small], blockSize=block)


@pytest.mark.parametrize("dtype", TYPES)
def test_tile(one_op: Any, dtype: DType) -> None:
    # As with DEPTH_TO_SPACE.
    moved(one_op, "TILE", dtype, [IMAGE], [(1, 8, 6, 24)], [[1, 2, 1, 3]])


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT32])
@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("index", [DType.INT32, DType.INT64])
def test_arg_max(one_op: Any, dtype: DType, axis: int, index: DType) -> None:
    shape = tuple(extent for i, extent in enumerate(IMAGE) if i != axis)
    y = one_op.tensor("y", shape, dtype=index)
    x, where = data(one_op, "x", IMAGE, dtype), one_op.constant("axis", [axis])
    one_op.check(one_op.model("ARG_MAX", [x, where], [y], outputType=index.name))


def test_arg_max_takes_the_first_of_equal_codes(one_op: Any) -> None:
    x, y = data(one_op, "x", (1, 5), DType.INT8), one_op.tensor("y", (1,), dtype=DType.INT32)
    model = one_op.model("ARG_MAX", [x, one_op.constant("axis", [1])], [y], outputType="INT32")
    assert one_op.check(model, {"x": np.array([[1, 7, 3, 7, 7]], np.int8)})["y"].tolist() == [1]


@pytest.mark.parametrize(("source", "result"), [("int8", "int32"), ("int16", "float32"), ("float32", "int8")])
def test_cast(one_op: Any, source: str, result: str) -> None:
    x, y = (one_op.tensor(name, (3, 7), dtype=DType(kind)) for name, kind in (("x", source), ("y", result)))
    one_op.check(one_op.model("CAST", [x], [y]))
