"""Channels through operators that lay them out anew: Reshape and its kind, depth and space, Expand, Tile,
Resize, Pad.

A Reshape falls into the smallest runs of axes with equal numbers of elements. In a run one axis before and
one axis after carry the channels: positions of the new axis whose slices share a channel are made the same.
A split (C) → (A, B) therefore has the units A (each B channels in a row) or B (each A channels, one from
each row):

1. an axis that later is a batch axis of a product of two tensors (attention heads), else
2. one that is not kept whole by what follows, else any;
3. among those the one with the most units, and of equals the last: B for a channel shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import int_attribute
from edgekit.prune.channels import (
    ONE,
    Axes,
    Axis,
    Choice,
    Fixed,
    Ints,
    Labels,
    Split,
    components,
    node_name,
)
from edgekit.prune.rules import axes_of, first, fixed, given, lock_axes, optional, rule, shape_of

#: A run with more elements than this is not followed; a flattened feature map has some ten thousand.
_LIMIT = 1 << 22


@rule("Reshape", "Flatten")
def _reshape(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    value, out = first(node), node.outputs[0]
    before, after = shape_of(value), shape_of(out)
    result: list[Axis] = [ONE] * len(after)
    if 0 in before:
        lock_axes(labels, value, None, f"'{value.name}' is empty")
        return [fixed(out, "it is empty")]
    for index, (left, right) in enumerate(runs(before, after)):
        for axis, label in _run(node, labels, index, left, right).items():
            result[axis] = label

    return [result]


def runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes with the same number of elements before and after, without axes of one."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    found = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        size_a, size_b = before[a[0]], after[b[0]]
        while size_a != size_b:
            if size_a < size_b:
                a.append(left.pop(0))
                size_a *= before[a[-1]]
            else:
                b.append(right.pop(0))
                size_b *= after[b[-1]]
        found.append((a, b))
    return found


def _run(node: ir.Node, labels: Labels, index: int, left: list[int], right: list[int]) -> dict[int, Axis]:
    value, out = first(node), node.outputs[0]
    axes, before, after = labels.of(value), shape_of(value), shape_of(out)
    labelled: dict[int, Ints] = {}
    for axis in left:
        label = axes[axis]
        if not isinstance(label, Fixed):
            labelled[axis] = label
    if not labelled:
        reason = next((label.reason for label in (axes[a] for a in left) if isinstance(label, Fixed)), "")
        return {axis: Fixed(reason) for axis in right}
    if len(left) == len(right) == 1:
        return {right[0]: labelled[left[0]]}
    sizes_in, sizes_out = [before[a] for a in left], [after[a] for a in right]
    reason = f"{node.op_type} '{node_name(node)}' {before} → {after} mixes it with other axes"
    if np.prod(sizes_in) > _LIMIT:
        for label in labelled.values():
            labels.lock(label, reason)
        return {axis: Fixed(reason) for axis in right}
    key = (str(out.name), index)
    ambiguous = len(labelled) > 1 or len(right) > 1
    if ambiguous and labels.choices is None:
        stand_ins: dict[int, Ints] = {
            a: label for a in right if not isinstance(label := labels.fresh(after[a]), Fixed)
        }
        labels.splits[key] = Split(labelled, stand_ins)
        return dict(stand_ins)
    choice = (labels.choices or {}).get(key, Choice(frozenset(), frozenset()))
    source = max(labelled, key=lambda a: (*_rank(choice, f"b{a}"), len(labelled[a]), a))
    for axis, label in labelled.items():
        if axis != source:
            labels.lock(label, reason)
    place = [1] * len(left)
    place[left.index(source)] = -1
    spread = np.broadcast_to(labelled[source].reshape(place), sizes_in).reshape(sizes_out)
    slices = {a: np.moveaxis(spread, i, 0).reshape(after[a], -1) for i, a in enumerate(right)}
    target = max(right, key=lambda a: (*_rank(choice, f"a{a}"), _units(slices[a]), a))
    rows = slices[target]
    if rows.shape[1] > 1:
        labels.equal(*_ties(rows))
    return {axis: rows[:, 0].copy() if axis == target else Fixed(reason) for axis in right}


def _rank(choice: Choice, mark: str) -> tuple[bool, bool]:
    return mark in choice.heads, mark not in choice.locked


def _ties(rows: Ints) -> tuple[Ints, Ints]:
    """Pairs of atoms that share a row, each once."""
    pairs = np.stack([np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1)], axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return pairs[:, 0], pairs[:, 1]


def _units(rows: Ints) -> int:
    """How many units remain when the atoms of each row are made the same."""
    values, flat = np.unique(rows, return_inverse=True)
    root = components(len(values), [_ties(flat.reshape(rows.shape).astype(np.int64))])
    return len(np.unique(root))


@rule("Transpose")
def _transpose(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = labels.of(first(node))
    attribute = node.attributes.get("perm")
    order = list(attribute.as_ints()) if attribute is not None else list(range(len(axes)))[::-1]
    return [[axes[axis] for axis in order]]


@rule("Squeeze")
def _squeeze(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes, sizes = labels.of(first(node)), shape_of(first(node))
    which = axes_of(node, 1, len(axes))
    gone = [a for a, size in enumerate(sizes) if size == 1] if which is None else which
    return [[axis for a, axis in enumerate(axes) if a not in gone]]


@rule("Unsqueeze")
def _unsqueeze(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    rest = list(labels.of(first(node)))
    rank = len(shape_of(node.outputs[0]))
    new = axes_of(node, 1, rank) or []
    return [[ONE if axis in new else rest.pop(0) for axis in range(rank)]]


@rule("DepthToSpace", "SpaceToDepth")
def _depth_space(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Blocks of b x b pixels: a pixel's channels are (b·b, C) in order, or (C, b·b) for mode CRD."""
    axes = labels.of(first(node))
    squared = int_attribute(node, "blocksize", 1) ** 2
    for axis in axes[2:]:
        labels.lock(axis, f"{node.op_type} '{node_name(node)}' works over it")
    channels = axes[1]
    rest = [Fixed("it is a spatial axis")] * 2
    if isinstance(channels, Fixed):
        return [[axes[0], channels, *rest]]
    if node.op_type == "SpaceToDepth":
        return [[axes[0], np.tile(channels, squared), *rest]]
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() == "CRD":
        rows = channels.reshape(-1, squared)
    else:
        rows = channels.reshape(squared, -1).T
    labels.equal(np.repeat(rows[:, 0], squared), rows.reshape(-1))
    return [[axes[0], rows[:, 0].copy(), *rest]]


@rule("Expand")
def _expand(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Axes grown from one position get atoms of their own: the target shape can be rewritten."""
    sizes, result = shape_of(first(node)), shape_of(node.outputs[0])
    axes = labels.of(first(node))
    new = len(result) - len(sizes)
    if array(optional(node, 1)) is None:
        lock_axes(labels, first(node), None, f"the shape of Expand '{node_name(node)}' is computed")
        return []
    return [
        [
            labels.fresh(size) if axis < new or sizes[axis - new] != size else axes[axis - new]
            for axis, size in enumerate(result)
        ]
    ]


@rule("Tile")
def _tile(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = labels.of(first(node))
    repeats = array(optional(node, 1))
    if repeats is None:
        lock_axes(labels, first(node), None, f"the repeats of Tile '{node_name(node)}' are computed")
        return []
    return [
        [
            (axis if isinstance(axis, Fixed) else np.tile(axis, count))
            if size != 1 or count == 1
            else Fixed(f"Tile '{node_name(node)}' makes it")
            for axis, size, count in zip(axes, shape_of(first(node)), repeats.tolist(), strict=True)
        ]
    ]


@rule("Resize", "Upsample")
def _resize(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Axes whose size stays pass, the others are interpolated over."""
    axes = labels.of(first(node))
    before, after = shape_of(first(node)), shape_of(node.outputs[0])
    constant = all(v is None or array(v) is not None for v in node.inputs[1:])
    scales = _scales(node, len(axes))
    result: list[Axis] = []
    for axis, label in enumerate(axes):
        if constant and before[axis] == after[axis] and scales[axis] == 1 and not _crops(node):
            result.append(label)
        else:
            labels.lock(label, f"{node.op_type} '{node_name(node)}' works over it")
            result.append(Fixed("it is a spatial axis"))
    return [result]


def _crops(node: ir.Node) -> bool:
    mode = node.attributes.get("coordinate_transformation_mode")
    return mode is not None and mode.as_string() == "tf_crop_and_resize"


def _scales(node: ir.Node, rank: int) -> list[float]:
    value = array(optional(node, 1 if node.op_type == "Upsample" else 2))
    if value is None or value.size == 0:
        return [1.0] * rank
    attribute = node.attributes.get("axes")
    where = list(range(rank)) if attribute is None else [int(a) % rank for a in attribute.as_ints()]
    found = [1.0] * rank
    for axis, scale in zip(where, value.tolist(), strict=False):
        found[axis] = scale
    return found


@rule("Pad")
def _pad(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Channels padded with a constant (shortcuts of some ResNets) can go too: the widths are rewritten."""
    value = first(node)
    axes, before, after = labels.of(value), shape_of(value), shape_of(node.outputs[0])
    begin = pad_begin(node, len(axes))
    mode = node.attributes.get("mode")
    constant = mode is None or mode.as_string() == "constant"
    result: list[Axis] = []
    for axis, label in enumerate(axes):
        if begin is None:
            labels.lock(label, f"the widths of Pad '{node_name(node)}' are computed")
            result.append(Fixed(f"Pad '{node_name(node)}' makes it"))
        elif before[axis] == after[axis] and begin[axis] == 0:
            result.append(label)
        elif (
            isinstance(label, Fixed)
            or not constant
            or begin[axis] < 0
            or after[axis] < before[axis] + begin[axis]
        ):
            labels.lock(label, f"Pad '{node_name(node)}' works over it")
            result.append(Fixed(f"Pad '{node_name(node)}' works over it"))
        else:
            end = after[axis] - before[axis] - begin[axis]
            parts = [_atoms(labels, begin[axis]), label, _atoms(labels, end)]
            result.append(np.concatenate(parts))
    return [result]


def pad_begin(node: ir.Node, rank: int) -> list[int] | None:
    """Positions that a Pad puts before each axis; None where they are computed."""
    attribute = node.attributes.get("pads")
    values = np.array(attribute.as_ints()) if attribute is not None else array(given(node, 1))
    if values is None:
        return None
    try:
        which = axes_of(node, 3, rank) if attribute is None else None
    except ValueError:
        return None
    begin = [0] * rank
    for axis, size in zip(which or range(rank), values.tolist(), strict=False):
        begin[axis] = size
    return begin


def _atoms(labels: Labels, size: int) -> Ints:
    """New atoms, one position included."""
    labels.count += size
    return np.arange(labels.count - size, labels.count, dtype=np.int64)
