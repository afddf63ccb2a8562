"""Channels through operators that join and pick positions: Concat, Split, Slice, Gather."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import int_attribute, is_constant
from edgekit.prune.channels import ONE, Axes, Axis, Fixed, Ints, Labels, Role, node_name
from edgekit.prune.rules import first, fixed, given, lock_axes, optional, rule, shape_of


@rule("Concat")
def _concat(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    values = [v for v in node.inputs if v is not None]
    rank = len(shape_of(node.outputs[0]))
    along = int_attribute(node, "axis", 0) % rank
    result: Axes = []
    for axis in range(rank):
        parts = [labels.of(v)[axis] for v in values]
        for value in values:
            if is_constant(value) and shape_of(value)[axis] != 1:
                labels.use(value, axis, Role.FOLLOWS, node)
        if axis != along:
            label = parts[0]
            for other in parts[1:]:
                label = labels.merge(label, other, node)
            result.append(label)
        elif all(isinstance(part, Fixed) for part in parts):
            result.append(
                next((p for p in parts if p is not ONE), Fixed(f"Concat '{node_name(node)}' makes it"))
            )
        else:
            sizes = [shape_of(v)[axis] for v in values]
            result.append(np.concatenate([_whole(labels, p, n) for p, n in zip(parts, sizes, strict=True)]))
    return [result]


def _whole(labels: Labels, part: Axis, size: int) -> Ints:
    """Atoms for a part; one that keeps its size gets locked ones."""
    if not isinstance(part, Fixed):
        return part
    labels.count += size
    found = np.arange(labels.count - size, labels.count, dtype=np.int64)
    labels.lock(found, part.reason)
    return found


@rule("Split")
def _split(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = labels.of(first(node))
    along = int_attribute(node, "axis", 0) % len(axes)
    sizes = [shape_of(out)[along] for out in node.outputs]
    result = []
    start = 0
    for size in sizes:
        label = axes[along]
        part = label if isinstance(label, Fixed) else label[start : start + size]
        result.append([part if axis == along else other for axis, other in enumerate(axes)])
        start += size
    return result


@rule("Slice")
def _slice(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    axes = list(labels.of(first(node)))
    sizes = shape_of(first(node))
    picked = slices(node, sizes)
    if picked is None:
        lock_axes(labels, first(node), None, f"the limits of Slice '{node_name(node)}' are computed")
        return [fixed(node.outputs[0], f"Slice '{node_name(node)}' makes it")]
    for axis, positions in picked.items():
        label = axes[axis]
        whole = positions == range(sizes[axis])
        if not isinstance(label, Fixed) and not whole:
            axes[axis] = label[np.asarray(positions, np.int64)]
    return [axes]


def slices(node: ir.Node, sizes: Sequence[int]) -> dict[int, range] | None:
    """The positions a Slice takes, by axis; None where they are computed."""
    names = ("starts", "ends", "axes")
    if "starts" in node.attributes:
        given_: list[list[int] | None] = [
            list(node.attributes[name].as_ints()) if name in node.attributes else None for name in names
        ]
        given_.append(None)
    else:
        given_ = []
        for index in range(1, 5):
            value = optional(node, index)
            found = array(value)
            if value is not None and found is None:
                return None
            given_.append(None if found is None else [int(v) for v in found.reshape(-1)])
    starts, ends, which, steps = given_
    if starts is None or ends is None:
        return None
    which = list(range(len(starts))) if which is None else [a % len(sizes) for a in which]
    steps = [1] * len(starts) if steps is None else steps
    return {
        axis: range(*slice(start, end, step).indices(sizes[axis]))
        for axis, start, end, step in zip(which, starts, ends, steps, strict=True)
    }


@rule("Gather")
def _gather(node: ir.Node, labels: Labels) -> Sequence[Axes]:
    """Constant indices pick positions; computed ones keep the axis they pick from (an embedding's rows)."""
    data, indices = first(node), given(node, 1)
    axes = labels.of(data)
    along = int_attribute(node, "axis", 0) % len(axes)
    for axis in range(len(axes)):
        if axis != along:
            labels.use(data, axis, Role.MAKES, node)
    found = array(indices)
    label = axes[along]
    middle: Axes
    if found is None or found.ndim > 1:
        reason = f"Gather '{node_name(node)}' picks from it"
        labels.lock(label, reason)
        middle = list(labels.of(indices)) if found is None else fixed(indices, reason)
    elif isinstance(label, Fixed):
        middle = [Fixed(label.reason)] * found.ndim
    else:
        picked = label[found.reshape(-1).astype(np.int64)]
        if found.ndim == 0:
            labels.lock(picked, f"Gather '{node_name(node)}' picks one position")
        middle = [picked] * found.ndim
    return [[*axes[:along], *middle, *axes[along + 1 :]]]
