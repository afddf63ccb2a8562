"""Which positions of every tensor go, worked out and checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.edit import bypass, can_bypass, static_shape
from edgekit.passes.remove_unused import remove_unused
from edgekit.prune.channels import Bools, Channels, Fixed, Ints, analyse
from edgekit.prune.groups import Groups, collect
from edgekit.prune.plan import DroppedBlock, Stage


@dataclass(frozen=True)
class Cut:
    """The atom classes of a graph that are removed.

    Attributes:
        graph: The graph, dropped blocks left out.
        channels: Its labels.
        removed: For each atom whether it goes.
        heads: Whether attention heads are units.
    """

    graph: Graph
    channels: Channels
    removed: Bools
    heads: bool

    def kept(self, tensor: str, axis: int) -> Ints | None:
        """Indices along an axis that stay; None where all do."""
        classes = self.channels.classes(tensor, axis)
        if classes is None:
            return None
        gone = self.removed[classes]
        return np.flatnonzero(~gone) if gone.any() else None

    def shape(self, tensor: str, shape: Sequence[int]) -> list[int]:
        """A tensor's shape afterwards."""
        if tensor not in self.channels.labels.axes:
            return list(shape)
        kept = (self.kept(tensor, axis) for axis in range(len(shape)))
        return [size if k is None else len(k) for size, k in zip(shape, kept, strict=True)]

    def tensors(self) -> dict[str, tuple[list[int], dict[int, list[int]]]]:
        """Shape and kept indices of each initializer that gets smaller."""
        found = {}
        for name, value in self.graph.model.graph.initializers.items():
            shape = static_shape(value)
            if shape is None or name not in self.channels.labels.axes:
                continue
            kept = {
                axis: k.tolist() for axis in range(len(shape)) if (k := self.kept(name, axis)) is not None
            }
            if kept:
                found[str(name)] = (list(shape), kept)
        return found

    @cached_property
    def groups(self) -> Groups:
        """The groups of the graph without the dropped blocks."""
        return collect(self.graph, self.channels, self.heads)

    def kept_units(self, groups: Groups) -> dict[str, list[int]]:
        """The units that stay of each group that loses any."""
        found = {}
        for group in groups.groups:
            site = group.producers[0]
            classes = self.channels.classes(site.tensor, site.axis)
            if classes is None:
                continue
            gone = self.removed[classes]
            kept = [unit for unit, where in enumerate(site.positions) if not gone[list(where)].any()]
            if len(kept) < group.size:
                found[group.name] = kept
        return found

    def check_nonempty(self) -> None:
        """Raise where an axis would have no position left.

        Raises:
            ModelError: It would.
        """
        for name, axes in self.channels.labels.axes.items():
            for axis, label in enumerate(axes):
                if isinstance(label, Fixed) or len(label) == 0:
                    continue
                if self.removed[label].all():
                    raise ModelError(f"nothing of axis {axis} would stay", where=f"tensor '{name}'")


def removed_by(graph: Graph, groups: Groups, keep: Mapping[str, Sequence[int]]) -> Cut:
    """What goes when only some units of the groups stay.

    Raises:
        ModelError: A unit that stays shares a tensor's position with one that goes; a tensor would be empty.
    """
    channels = analyse(graph, heads=groups.heads)
    removed = np.zeros(len(channels.root), bool)
    initializers = graph.model.graph.initializers
    for name, units in keep.items():
        group = groups.by_name[name]
        gone = sorted(set(range(group.size)) - set(units))
        for site in (*group.producers, *group.consumers):
            classes = channels.classes(site.tensor, site.axis) if site.tensor in initializers else None
            if classes is not None and gone:
                removed[classes[[p for unit in gone for p in site.positions[unit]]]] = True
    removed = removed[channels.root]
    for group in groups.groups:
        kept = keep.get(group.name, range(group.size))
        for site in (*group.producers, *group.consumers):
            classes = channels.classes(site.tensor, site.axis) if site.tensor in initializers else None
            if classes is None:
                continue
            lost = removed[classes]
            if lost.any() and any(lost[list(site.positions[unit])].any() for unit in kept):
                raise ModelError(
                    "it loses units that other groups joined with it give up; keep the same units in both, "
                    "or leave the block out first and find the groups then",
                    where=f"group '{group.name}'",
                )
    cut = Cut(graph, channels, removed, groups.heads)
    _check_free(cut)
    cut.check_nonempty()
    return cut


def read_stage(graph: Graph, plan: Stage) -> Cut:
    """What one pruning removes from a graph, with its dropped blocks left out.

    Raises:
        ModelError: The plan was made on another network.
    """
    rest = drop_blocks(graph, plan.dropped)
    channels = analyse(rest, heads=plan.heads)
    removed = np.zeros(len(channels.root), bool)
    originals, values = graph.model.graph.initializers, rest.model.graph.initializers
    for name, tensor in plan.tensors.items():
        if name not in originals:
            raise _foreign(f"it has no tensor '{name}'")
        shape = static_shape(originals[name])
        if shape is None or list(shape) != tensor.shape:
            raise _foreign(f"'{name}' has shape {shape}, not {tuple(tensor.shape)}")
        if name not in values:
            continue  # it went with a block
        for axis, kept in tensor.keep.items():
            if not 0 <= axis < len(shape) or any(not 0 <= index < shape[axis] for index in kept):
                raise _foreign(f"axis {axis} of '{name}' has no such indices")
            gone = np.setdiff1d(np.arange(shape[axis]), kept)
            classes = channels.classes(name, axis)
            if classes is None:
                raise _foreign(f"axis {axis} of '{name}' keeps its size")
            removed[classes[gone]] = True
    cut = Cut(rest, channels, removed[channels.root], plan.heads)
    _check_free(cut)
    cut.check_nonempty()
    for name, (_, axes) in cut.tensors().items():
        wanted = plan.tensors[name].keep if name in plan.tensors else {}
        if axes != {
            axis: sorted(kept) for axis, kept in wanted.items() if len(kept) < plan.tensors[name].shape[axis]
        }:
            raise _foreign(f"in '{name}' other channels belong together")
    return cut


def _check_free(cut: Cut) -> None:
    held = np.flatnonzero(cut.removed & (cut.channels.lock >= 0))
    if held.size:
        raise _foreign(cut.channels.labels.reasons[int(cut.channels.lock[held[0]])])


def _foreign(reason: str) -> ModelError:
    return ModelError(
        f"the pruning plan does not fit this network: {reason}", hint="Make a plan on this network"
    )


def drop_blocks(graph: Graph, dropped: Sequence[DroppedBlock]) -> Graph:
    """The graph without blocks, dead nodes removed; the graph itself with none to drop.

    Raises:
        ModelError: A tensor does not exist, the shapes differ, or the block is where an output is made.
    """
    if not dropped:
        return graph
    result = graph.copy()
    stands_in: dict[str, ir.Value] = {}  # for the end of a block that is gone, where the next one begins
    for block in dropped:
        values = {**result.values(), **stands_in}
        for name in (block.input, block.output):
            if name not in values:
                raise ModelError(
                    "no such tensor", where=f"block '{block.input}' → '{block.output}': '{name}'"
                )
        source, target = values[block.input], values[block.output]
        where = f"block '{block.input}' → '{block.output}'"
        shapes = static_shape(source), static_shape(target)
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise ModelError(f"its ends have shapes {shapes[0]} and {shapes[1]}", where=where)
        node = target.producer()
        if node is None or source is target:
            raise ModelError("it has no node to leave out", where=where)
        shared = any(out is not target and (out.uses() or out.is_graph_output()) for out in node.outputs)
        if not can_bypass(source, target) or (shared and target.is_graph_output()):
            raise ModelError("its end is an output of the model that nothing else can take over", where=where)
        if shared:
            target.replace_all_uses_with(source)
        else:
            bypass(source, target)
        stands_in = {name: source if value is target else value for name, value in stands_in.items()}
        stands_in[block.output] = source
    return remove_unused(result)
