"""Sparse weights written down without their zeros, and read back.

Two forms. A *bit mask*: one bit a weight, then the values that are not zero. An *N:M* form: of every M
successive weights along the input channels exactly N values, each with its place in the block in
``ceil(log2 M)`` bits; zeros fill up blocks that hold fewer. For 2:4 these are the two-bit indices that sparse
tensor cores read (arXiv:2104.08378, section 3). Both are encoded for real, so that their sizes are counted
and not estimated; neither holds name, shape or type, which are the file's to keep.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgekit.errors import UsageError

Array = np.ndarray[Any, Any]


def encode_bitmask(values: Array) -> bytes:
    """One bit for each weight in memory order, the first highest, then the non-zero values."""
    flat = values.reshape(-1)
    # A negative zero is a zero to any kernel, but keeping it makes the way back exact.
    present = flat.view(f"u{flat.dtype.itemsize}") != 0
    return bytes(np.packbits(present).tobytes() + flat[present].tobytes())


def decode_bitmask(data: bytes, shape: tuple[int, ...], dtype: Any) -> Array:
    """The inverse of :func:`encode_bitmask`.

    Raises:
        UsageError: The data has another length than shape and type ask for.
    """
    count, kind = prod(shape), np.dtype(dtype)
    head = -(-count // 8)
    present = np.unpackbits(np.frombuffer(data[:head], np.uint8), count=count).astype(bool)
    if len(data) != head + int(present.sum()) * kind.itemsize:
        raise UsageError(f"{len(data)} bytes do not fit {list(shape)} of {kind}", where="bit mask")
    found = np.zeros(count, kind)
    found[present] = np.frombuffer(data[head:], kind)
    return found.reshape(shape)


def encode_blocks(values: Array, kept: int, block: int, axis: int) -> bytes:
    """N:M form along ``axis``: all values, then all indices, packed. Negative zeros lose their sign.

    Raises:
        UsageError: A block holds more than ``kept`` non-zero weights, or the axis makes no whole blocks.
    """
    blocks = _blocks(values, block, axis)
    present = blocks != 0
    if int(present.sum(1).max(initial=0)) > kept:
        raise UsageError(f"a block holds more than {kept} of {block} weights", where="N:M form")
    # Present ones first and in order, then as many zeros as are missing.
    places = np.sort(np.argsort(~present, axis=1, kind="stable")[:, :kept], axis=1)
    chosen = np.take_along_axis(blocks, places, axis=1)
    width = index_bits(block)
    bits = (places.reshape(-1, 1) >> np.arange(width - 1, -1, -1)) & 1
    return chosen.tobytes() + np.packbits(bits.astype(np.uint8)).tobytes()


def decode_blocks(data: bytes, shape: tuple[int, ...], dtype: Any, kept: int, block: int, axis: int) -> Array:
    """The inverse of :func:`encode_blocks`.

    Raises:
        UsageError: The data has another length than shape, type and pattern ask for.
    """
    kind, width = np.dtype(dtype), index_bits(block)
    count = prod(shape) // block * kept
    head = count * kind.itemsize
    if len(data) != head + -(-count * width // 8):
        raise UsageError(f"{len(data)} bytes do not fit {list(shape)} of {kind}", where="N:M form")
    chosen = np.frombuffer(data[:head], kind).reshape(-1, kept)
    bits = np.unpackbits(np.frombuffer(data[head:], np.uint8), count=count * width).reshape(count, width)
    places = (bits.astype(np.int64) << np.arange(width - 1, -1, -1)).sum(1).reshape(-1, kept)
    found = np.zeros((prod(shape) // block, block), kind)
    np.put_along_axis(found, places, chosen, axis=1)
    moved = [n for i, n in enumerate(shape) if i != axis % len(shape)] + [shape[axis]]
    return np.ascontiguousarray(np.moveaxis(found.reshape(moved), -1, axis))


def index_bits(block: int) -> int:
    """Bits that tell a place in a block."""
    return max(1, (block - 1).bit_length())


def fits_blocks(values: Array, kept: int, block: int, axis: int) -> bool:
    """Whether every block along ``axis`` holds at most ``kept`` non-zero weights."""
    if values.shape[axis] % block:
        return False
    return int((_blocks(values, block, axis) != 0).sum(1).max(initial=0)) <= kept


def _blocks(values: Array, block: int, axis: int) -> Array:
    if values.shape[axis] % block:
        raise UsageError(f"{values.shape[axis]} weights do not make blocks of {block}", where=f"axis {axis}")
    return np.ascontiguousarray(np.moveaxis(values, axis, -1)).reshape(-1, block)
