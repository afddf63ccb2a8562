"""The algebra of orders, held against NumPy: an order tells which ONNX element lies where."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.tflite.lower.layout import (
    NHWC,
    Atom,
    Order,
    atoms_of,
    axes_of,
    canonical,
    common_runs,
    element_order,
    from_atoms,
    from_axes,
    linear,
    permutable_dims,
    permutation,
    runs_of,
    stored,
    transposed,
)


def memory(order: Order) -> list[int]:
    """Row-major ONNX indices as they lie in memory."""
    index = np.zeros(1, np.int64)
    for size, stride in order:
        index = (index[:, None] + np.arange(size) * stride).ravel()
    return [int(i) for i in index]


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def shapes_and_axes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = draw(SHAPES)
    return shape, tuple(draw(st.permutations(range(len(shape)))))


def test_an_image_stored_as_nhwc() -> None:
    assert from_axes((1, 3, 4, 5), NHWC) == ((20, 1), (3, 20))
    assert linear((1, 3, 4, 5)) == ((60, 1),)
    assert from_axes((1, 7, 1, 1), NHWC) == linear((1, 7, 1, 1))


@given(shapes_and_axes())
def test_stored_axes_lie_as_numpy_transposes(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, axes = case
    elements = np.arange(math.prod(shape)).reshape(shape)
    order = from_axes(shape, axes)
    assert memory(order) == elements.transpose(axes).ravel().tolist()
    found = axes_of(order, shape)
    assert found is not None
    assert from_axes(shape, found) == order
    atoms = atoms_of(order, shape)
    assert atoms is not None
    assert from_atoms(shape, atoms) == order


@given(shapes_and_axes(), st.data())
def test_a_transpose_keeps_the_memory(
    case: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    shape, axes = case
    perm = data.draw(st.permutations(range(len(shape))))
    elements = np.arange(math.prod(shape)).reshape(shape)
    laid = elements.transpose(axes).ravel()
    order = transposed(from_axes(shape, axes), shape, perm)
    assert order is not None
    # What lies where is the same; the row-major index of the result tells it.
    result = elements.transpose(perm).ravel()
    assert result[memory(order)].tolist() == laid.tolist()


@given(shapes_and_axes(), st.data())
def test_one_transpose_brings_any_layout_to_any_other(
    case: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    shape, axes = case
    other = tuple(data.draw(st.permutations(range(len(shape)))))
    source, target = from_axes(shape, axes), from_axes(shape, other)
    cut = common_runs(source, target)
    assert cut is not None
    sizes, perm = cut
    moved = np.array(memory(source)).reshape(sizes or [1]).transpose(perm or [0]).ravel()
    assert moved.tolist() == memory(target)
    dims = tuple(shape[a] for a in other)
    near = permutable_dims(source, target, dims)
    assert near is not None
    one = permutation(source, near, target, dims)
    assert one is not None
    laid = np.array(memory(source)).reshape(near).transpose(one)
    assert laid.shape == dims
    assert laid.ravel().tolist() == memory(target)


def test_a_shuffle_of_channels_is_seen_as_atoms() -> None:
    order = transposed(from_axes((1, 2, 4, 3, 5), (0, 3, 4, 1, 2)), (1, 2, 4, 3, 5), (0, 2, 1, 3, 4))
    assert order is not None
    atoms = atoms_of(order, (1, 8, 3, 5))
    assert atoms == (Atom(2, 3, 1), Atom(3, 5, 1), Atom(1, 2, 1), Atom(1, 4, 2))
    assert element_order(atoms[2:]).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert axes_of(order, (1, 8, 3, 5)) is None


def test_a_run_that_straddles_axes_unevenly_has_no_atoms() -> None:
    order = from_axes((2, 6), (1, 0))
    assert atoms_of(order, (3, 4)) is None
    assert atoms_of(order, (2, 2, 3)) is not None


def test_units_fit_anywhere() -> None:
    order = from_axes((1, 4, 1, 5), (0, 2, 3, 1))
    assert axes_of(order, (1, 4, 1, 5), (1, 1, 5, 4)) == (0, 2, 3, 1)
    assert axes_of(linear((1, 4, 1, 1)), (1, 4, 1, 1), (1, 1, 1, 4)) == NHWC
    assert axes_of(linear((1, 4)), (1, 4)) == (0, 1)
    assert canonical([(1, 7), (3, 4), (4, 1), (1, 1)]) == ((12, 1),)


def test_dimensions_over_runs() -> None:
    order = from_axes((1, 6, 2, 2), NHWC)
    assert runs_of(order, (1, 2, 2, 6)) == ((1, 0), (2, 2), (2, 1), (6, 4))
    assert runs_of(order, (4, 2, 3)) == ((4, 1), (2, 12), (3, 4))
    assert runs_of(order, (8, 3)) is None


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1), (4,), (1, 3, 4), (1, 1, 1)])
def test_constants_follow_their_operand(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    out = (2, 3, 4)
    rng = np.random.default_rng(0)
    whole, part = rng.normal(size=out), rng.normal(size=shape)
    atoms = atoms_of(from_axes(out, axes), out)
    assert atoms is not None
    # One dimension for each run: neighbours that continue each other are cut at the axes.
    laid = whole.transpose(axes).reshape([a.size for a in atoms])
    assert np.array_equal(laid * stored(part, out, atoms), (whole * part).transpose(axes).reshape(laid.shape))
