"""How the elements of an ONNX tensor lie in memory.

An :data:`Order` lists the runs of a tensor's memory from the slowest to the fastest, each as
``(size, stride)``: the stride is the distance of its neighbours in the row-major order of the ONNX tensor. An
image of shape ``[1, C, H, W]`` stored as NHWC has the order ``((H * W, 1), (C, H * W))``; as ONNX has it,
``((C * H * W, 1),)``.

1. Units have no run and neighbours that continue each other are one run, so equal memories have equal
   orders.
2. A Reshape changes no order, for it changes no row-major index; a Transpose changes strides, no memory.
3. Seen through a shape, a run falls into *atoms*, each within one axis (:func:`atoms_of`). A run that
   straddles axes unevenly has none; such a tensor has to be brought to another order first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edgekit.tflite.model import Array

Shape = tuple[int, ...]
#: Runs of memory from the slowest to the fastest: (size, stride in the row-major order of the ONNX tensor).
Order = tuple[tuple[int, int], ...]

#: Stored axes of an image, as axes of the ONNX tensor.
NHWC = (0, 2, 3, 1)


@dataclass(frozen=True)
class Atom:
    """A run of memory within one axis of a shape.

    Attributes:
        axis: The axis.
        size: Elements.
        step: Distance of neighbours along the axis.
    """

    axis: int
    size: int
    step: int


def canonical(runs: Sequence[tuple[int, int]]) -> Order:
    """The order of runs that may hold units and continue each other (case 1)."""
    found: list[tuple[int, int]] = []
    for size, stride in runs:
        if size == 1:
            continue
        if found and found[-1][1] == stride * size:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    return tuple(found)


def strides_of(shape: Sequence[int]) -> Shape:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def linear(shape: Sequence[int]) -> Order:
    """The order of ONNX itself: row-major."""
    return canonical([(math.prod(shape), 1)])


def from_axes(shape: Sequence[int], axes: Sequence[int]) -> Order:
    """The order of a tensor whose stored axis i is axis ``axes[i]``."""
    strides = strides_of(shape)
    return canonical([(shape[a], strides[a]) for a in axes])


def from_atoms(shape: Sequence[int], atoms: Sequence[Atom]) -> Order:
    """The order of a tensor of ``shape`` whose memory is those atoms."""
    strides = strides_of(shape)
    return canonical([(a.size, a.step * strides[a.axis]) for a in atoms])


def atoms_of(order: Order, shape: Sequence[int]) -> tuple[Atom, ...] | None:
    """The memory seen through ``shape``, or None where a run straddles axes unevenly (case 3)."""
    strides = strides_of(shape)
    found: list[Atom] = []
    for run, run_stride in order:
        pieces, size, stride = [], run, run_stride
        while size > 1:
            axis = next(
                (a for a, n in enumerate(shape) if n > 1 and strides[a] <= stride < strides[a] * n), None
            )
            if axis is None or stride % strides[axis]:
                return None
            step = stride // strides[axis]
            if shape[axis] % step:
                return None
            piece = min(size, shape[axis] // step)
            if size % piece:
                return None
            pieces.append(Atom(axis, piece, step))
            size, stride = size // piece, stride * piece
        found.extend(reversed(pieces))
    return tuple(found)


def transposed(order: Order, shape: Sequence[int], perm: Sequence[int]) -> Order | None:
    """The order of ONNX's ``Transpose(x, perm)`` when nothing moves in memory; None in case 3."""
    atoms = atoms_of(order, shape)
    if atoms is None:
        return None
    moved = [Atom(list(perm).index(a.axis), a.size, a.step) for a in atoms]
    return from_atoms([shape[p] for p in perm], moved)


def axes_of(order: Order, shape: Shape, dims: Shape | None = None) -> tuple[int, ...] | None:
    """Stored axes when the memory is a permutation of whole axes, else None.

    Units fit anywhere: the permutation that gives ``dims`` comes first, then ONNX's own, then NHWC.
    """
    rank = len(shape)
    known = [tuple(range(rank))]
    if rank == 4:
        known.append(NHWC)
    fitting = [axes for axes in known if from_axes(shape, axes) == order]
    for axes in fitting:
        if dims is None or tuple(shape[a] for a in axes) == dims:
            return axes
    if rank <= 6 and dims is not None and sorted(dims) == sorted(shape):
        for axes in permutations(range(rank)):
            if tuple(shape[a] for a in axes) == dims and from_axes(shape, axes) == order:
                return axes
    if fitting:
        return fitting[0]
    atoms = atoms_of(order, shape)
    if atoms is None or len({a.axis for a in atoms}) < len(atoms):
        return None
    # Units go before the axis that follows them in ONNX, so that leading ones stay in front.
    result = [a.axis for a in atoms]
    for axis in reversed([a for a in range(rank) if a not in result]):
        later = [i for i, a in enumerate(result) if a > axis]
        result.insert(0 if axis == 0 else min(later, default=len(result)), axis)
    return tuple(result)


def runs_of(order: Order, dims: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Size and stride of each stored dimension, 0 for units; None where one is not evenly spaced."""
    rest = [list(run) for run in order]
    found: list[tuple[int, int]] = []
    for size in reversed(dims):
        if size == 1:
            found.append((1, 0))
            continue
        if not rest or rest[-1][0] % size:
            return None
        run, stride = rest[-1]
        found.append((size, stride))
        rest[-1] = [run // size, stride * size]
        if run == size:
            rest.pop()
    return tuple(reversed(found))


def permutation(source: Order, dims: Shape, target: Order, wanted: Shape) -> tuple[int, ...] | None:
    """The TRANSPOSE from one stored form to the other when one alone does it, else None."""
    have, want = runs_of(source, dims), runs_of(target, wanted)
    if have is None or want is None or len(have) != len(want):
        return None
    free = list(range(len(have)))
    result = []
    for run in want:
        match = next((i for i in free if have[i] == run), None)
        if match is None:
            return None
        free.remove(match)
        result.append(match)
    return tuple(result)


def permutable_dims(source: Order, target: Order, wanted: Shape) -> Shape | None:
    """Dimensions of the source from which one TRANSPOSE makes ``wanted``, units in front, or None."""
    want = runs_of(target, wanted)
    if want is None:
        return None
    runs = [run for run in want if run[0] > 1]
    have = _cut(source, {end for n, s in runs for end in (s, s * n)})
    if have is None or sorted(have) != sorted(runs):
        return None
    return (1,) * (len(want) - len(runs)) + tuple(n for n, _ in have)


def common_runs(source: Order, target: Order) -> tuple[list[int], list[int]] | None:
    """Sizes of the source's runs, cut so that the target's are a permutation of them, and that one."""
    ends = {end for order in (source, target) for n, s in order for end in (s, s * n)}
    have, want = _cut(source, ends), _cut(target, ends)
    if have is None or want is None or sorted(have) != sorted(want):
        return None
    perm = [have.index(run) for run in want]
    # Neighbours that stay neighbours move as one.
    groups: list[list[int]] = []
    for index in perm:
        if groups and groups[-1][-1] == index - 1:
            groups[-1].append(index)
        else:
            groups.append([index])
    by_source = sorted(groups)
    sizes = [math.prod(have[i][0] for i in group) for group in by_source]
    return sizes, [by_source.index(group) for group in groups]


def _cut(order: Order, ends: set[int]) -> list[tuple[int, int]] | None:
    found: list[tuple[int, int]] = []
    for run, run_stride in order:
        pieces, size, stride = [], run, run_stride
        for end in sorted(e for e in ends if run_stride < e < run_stride * run):
            if end % stride or size % (end // stride):
                return None
            pieces.append((end // stride, stride))
            size, stride = size // (end // stride), end
        pieces.append((size, stride))
        found.extend(reversed(pieces))
    return found


def stored(data: Array, shape: Shape, atoms: Sequence[Atom]) -> Array:
    """A constant that broadcasts to ``shape`` in the memory given by ``atoms``, one dimension for each atom.

    Args:
        data: Of at most the rank of ``shape``; its axes have the size of ``shape`` or 1.
        shape: ONNX shape of the operation's result.
        atoms: Memory of the result.
    """
    padded = data.reshape((1,) * (len(shape) - data.ndim) + data.shape)
    by_axis = sorted(range(len(atoms)), key=lambda i: (atoms[i].axis, -atoms[i].step))
    sizes = [1 if padded.shape[atoms[i].axis] == 1 else atoms[i].size for i in by_axis]
    return padded.reshape(sizes).transpose([by_axis.index(i) for i in range(len(atoms))])


def element_order(atoms: Sequence[Atom]) -> Array:
    """ONNX indices along one axis in the order in which they are stored; ``atoms`` are those of that axis."""
    index = np.zeros(1, np.int64)
    for atom in atoms:
        index = (index[:, None] + np.arange(atom.size) * atom.step).ravel()
    return index
