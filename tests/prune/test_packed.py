"""Sparse weights written down and read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.prune.packed import (
    decode_bitmask,
    decode_blocks,
    encode_bitmask,
    encode_blocks,
    fits_blocks,
    index_bits,
)
from edgekit.prune.sparsity import block_mask

Array = np.ndarray[Any, Any]
DTYPES = st.sampled_from([np.float32, np.float16, np.int8])


def values(shape: tuple[int, ...], dtype: Any, seed: int, density: float) -> Array:
    random = np.random.default_rng(seed)
    found = random.integers(-100, 100, shape) * (random.random(shape) < density)
    return found.astype(dtype)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), DTYPES, st.integers(0, 99), st.floats(0, 1))
def test_bitmask_round_trip(shape: list[int], dtype: Any, seed: int, density: float) -> None:
    before = values(tuple(shape), dtype, seed, density)
    data = encode_bitmask(before)
    after = decode_bitmask(data, before.shape, dtype)
    assert after.dtype == before.dtype
    assert after.tobytes() == before.tobytes()
    assert len(data) == -(-before.size // 8) + int((before != 0).sum()) * before.itemsize


def test_negative_zero_survives() -> None:
    before = np.array([0.0, -0.0, 1.0], np.float32)
    assert decode_bitmask(encode_bitmask(before), (3,), np.float32).tobytes() == before.tobytes()


@given(
    st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(n + 1, 9))),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    DTYPES,
    st.floats(0, 1),
    st.data(),
)
def test_blocks_round_trip(
    pattern: tuple[int, int], shape: list[int], dtype: Any, density: float, data: st.DataObject
) -> None:
    kept, block = pattern
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = [n * block if i == axis else n for i, n in enumerate(shape)]
    full = values(tuple(sizes), dtype, data.draw(st.integers(0, 99)), density)
    before = (full * block_mask(np.abs(full.astype(np.float32)), kept, block, axis)).astype(dtype)
    assert fits_blocks(before, kept, block, axis)
    coded = encode_blocks(before, kept, block, axis)
    assert (decode_blocks(coded, before.shape, dtype, kept, block, axis) == before).all()
    count = before.size // block * kept
    assert len(coded) == count * before.itemsize + -(-count * index_bits(block) // 8)


def test_two_of_four_takes_two_bits_a_value() -> None:
    assert [index_bits(m) for m in (2, 4, 5, 8, 16)] == [1, 2, 3, 3, 4]
    weight = np.tile(np.array([0, 1, 0, 2], np.int8), 16)
    # 32 values of a byte, 32 indices of 2 bits.
    assert len(encode_blocks(weight, 2, 4, 0)) == 32 + 8


def test_what_does_not_fit_is_refused() -> None:
    dense = np.ones((2, 8), np.float32)
    assert not fits_blocks(dense, 2, 4, 1)
    assert not fits_blocks(np.zeros((2, 6), np.float32), 2, 4, 1)
    with pytest.raises(UsageError, match="more than 2 of 4"):
        encode_blocks(dense, 2, 4, 1)
    with pytest.raises(UsageError, match="do not make blocks of 3"):
        encode_blocks(dense, 2, 3, 1)
    with pytest.raises(UsageError, match="bytes do not fit"):
        decode_bitmask(encode_bitmask(dense)[:-1], (2, 8), np.float32)
    with pytest.raises(UsageError, match="bytes do not fit"):
        decode_blocks(b"123", (2, 8), np.float32, 2, 4, 1)
