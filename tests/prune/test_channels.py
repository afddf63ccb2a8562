"""Atoms, their classes, and how a Reshape falls apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.prune.channels import Fixed, Labels, components
from edgekit.prune.rules_shape import runs

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(PAIRS)
def test_components_are_the_smallest_members(pairs: list[tuple[int, int]]) -> None:
    root = components(20, [(np.array([a]), np.array([b])) for a, b in pairs])
    expected = list(range(20))
    for _ in range(20):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert root.tolist() == expected


def test_a_long_chain_is_one_component() -> None:
    chain = np.arange(9999)
    assert not components(10000, [(chain, chain + 1)]).any()


def test_no_atoms_and_no_edges() -> None:
    assert components(0, []).tolist() == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 12, 4), (1, 3, 4, 4), [([1], [1, 2]), ([2], [3])]),
        ((1, 3, 4, 4), (1, 48), [([1, 2, 3], [1])]),
        ((2, 6), (6, 2), [([0, 1], [0, 1])]),
        ((1, 8, 1, 1), (8,), [([1], [0])]),
        ((1, 1), (1,), []),
        ((4, 6, 5), (2, 2, 30), [([0], [0, 1]), ([1, 2], [2])]),
    ],
)
def test_runs_of_a_reshape(
    before: tuple[int, ...], after: tuple[int, ...], expected: list[tuple[list[int], list[int]]]
) -> None:
    assert runs(before, after) == expected


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_runs_hold_the_same_number_of_elements(sizes: list[int], random: object) -> None:
    after = [size for size in sizes if size != 1] + [1]
    for left, right in runs(sizes, after):
        assert math.prod(sizes[axis] for axis in left) == math.prod(after[axis] for axis in right)


def test_an_axis_of_one_position_has_no_atoms() -> None:
    labels = Labels()
    assert isinstance(labels.fresh(1), Fixed)
    assert labels.count == 0


def test_the_first_reason_stays() -> None:
    labels = Labels()
    atoms = labels.fresh(3)
    other = labels.fresh(3)
    assert not isinstance(atoms, Fixed)
    assert not isinstance(other, Fixed)
    labels.equal(atoms, other)
    labels.lock(other[:1], "one")
    labels.lock(atoms, "two")
    channels = labels.solve()
    assert channels.root.tolist() == [0, 1, 2, 0, 1, 2]
    assert [labels.reasons[i] for i in channels.lock] == ["one", "two", "two"] * 2


def test_axes_of_unequal_size_cannot_be_the_same() -> None:
    with pytest.raises(ValueError, match="2 and 3"):
        Labels().equal(np.arange(2), np.arange(3))
