"""Taking chosen places along one axis with the cheapest operators that do it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import static_shape
from edgekit.passes.subgraph import Builder

#: With more pieces than this, one Gather is cheaper than slices that are joined again.
_MAX_PIECES = 4


def pick(build: Builder, x: ir.Value, axis: int, indices: Sequence[int]) -> ir.Value:
    """``x`` with ``indices`` along ``axis``: itself, a Slice, a Concat of slices or a Gather.

    Args:
        build: Where the nodes come.
        x: A tensor of known shape.
        axis: 0 or more.
        indices: At least one, each inside the axis; any order, repeats allowed.
    """
    size = (static_shape(x) or ())[axis]
    if list(indices) == list(range(size)):
        return x
    pieces = runs(indices)
    if len(pieces) > _MAX_PIECES:
        places = build.constant("places", indices, np.int64)
        return build.node("Gather", "picked", x, places, axis=axis)
    parts = [_slice(build, x, axis, piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else build.node("Concat", "picked", *parts, axis=axis)


def runs(indices: Sequence[int]) -> list[range]:
    """The sequence cut into rising runs of equal steps, each as long as it can be from its start."""
    found: list[range] = []
    start = 0
    while start < len(indices):
        end, step = start + 1, 1
        if end < len(indices) and indices[end] > indices[start]:
            step = indices[end] - indices[start]
            while end < len(indices) and indices[end] - indices[end - 1] == step:
                end += 1
        found.append(range(indices[start], indices[end - 1] + 1, step))
        start = end
    return found


def _slice(build: Builder, x: ir.Value, axis: int, piece: range) -> ir.Value:
    numbers = {"first": piece.start, "end": piece.stop, "axis": axis, "step": piece.step}
    constants = [build.constant(label, [number], np.int64) for label, number in numbers.items()]
    return build.node("Slice", "slice", x, *constants)
