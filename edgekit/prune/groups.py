"""What can be removed from a network, one unit at a time: channel groups.

A unit is whatever has to go together: one output channel with its bias, its normalization parameters and
the weights that read it; the same channel in every branch of a residual stage; one channel in each group of
a grouped convolution; an attention head with its rows of the query, key and value projections. Units that
live in the same tensors form a group, the thing that widths are chosen for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from edgekit.graph import Graph, Refusal
from edgekit.prune.channels import Channels, Fixed, Ints, Role, Use, analyse, node_name

Kind = Literal["channels", "heads"]


@dataclass(frozen=True)
class Site:
    """An axis of a tensor that a group's units have positions on.

    Attributes:
        tensor: Name of an initializer or a computed tensor.
        axis: The axis, counted from 0.
        node: For an initializer the node that uses it, for a computed tensor the node that makes it.
        positions: For each unit its indices along the axis, ascending; maybe none.
    """

    tensor: str
    axis: int
    node: str
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Units that live in the same tensors; each can be removed without the others.

    Attributes:
        name: The tensor that first makes them, without ``.weight``; ``#2`` … where that has several groups;
            the node's where exporters lost the tensor's name.
        size: Number of units. At least one has to stay.
        producers: Initializer axes that make the channels: weights first, in execution order, then biases,
            slopes, normalization parameters and depthwise weights.
        consumers: Initializer axes that read them: removing a unit is the same as zeros there.
        activations: Computed tensors that carry them.
        kind: ``"heads"`` where the units are entries of a batch axis of a product of two computed tensors.
    """

    name: str
    size: int
    producers: tuple[Site, ...]
    consumers: tuple[Site, ...]
    activations: tuple[Site, ...]
    kind: Kind = "channels"


@dataclass(frozen=True)
class Groups:
    """Everything that can be removed from a graph, and what cannot and why.

    Attributes:
        groups: In execution order of their first producers.
        locked: Output channels of layers that stay whole or in part, with the reason.
        heads: Whether attention heads are units.
    """

    groups: tuple[ChannelGroup, ...]
    locked: tuple[Refusal, ...]
    heads: bool = True

    @cached_property
    def by_name(self) -> Mapping[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def find_groups(graph: Graph, *, heads: bool = True) -> Groups:
    """Find what can be removed.

    Args:
        graph: As captured: static shapes.
        heads: Remove attention heads whole; otherwise the same channels inside every head.

    Raises:
        ModelError: A tensor has no static shape.
    """
    quantized = next((n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")), None)
    if quantized is not None:
        reason = "the network is quantized; prune it before, then quantize"
        return Groups((), (Refusal(node_name(quantized), reason),), heads)
    return collect(graph, analyse(graph, heads=heads), heads)


@dataclass
class _Sites:
    """Every labelled axis of the graph, initializers in use first, then computed tensors."""

    uses: list[Use | None] = field(default_factory=list)
    keys: list[tuple[str, int, str]] = field(default_factory=list)
    classes: list[Ints] = field(default_factory=list)

    def add(self, use: Use | None, key: tuple[str, int, str], classes: Ints) -> None:
        self.uses.append(use)
        self.keys.append(key)
        self.classes.append(classes)


def collect(graph: Graph, channels: Channels, heads: bool) -> Groups:
    """Gather the classes of an analysis into groups."""
    order = {node_name(node): index for index, node in enumerate(graph.nodes)}
    sites = _all_sites(graph, channels, order)
    members = _partition(channels, sites)
    batch = np.zeros(max(len(channels.root), 1), bool)
    for atoms in channels.labels.batch:
        batch[channels.root[atoms]] = True
    groups, locked = [], _locked(channels, sites)
    names = _Names()
    for classes, where in members:
        made = [sites.uses[i] for i in where]
        maker = next((use for use in made if use is not None and use.role is not Role.READS), None)
        if maker is None:
            continue  # padding, or a computed constant: nothing makes these channels
        name = names.next(maker)
        if len(classes) < 2:
            locked.append(Refusal(maker.tensor, "its channels can only go all together, so none can"))
            continue
        kind: Kind = "heads" if batch[classes].any() else "channels"
        groups.append(_group(name, kind, classes, where, sites))
    return Groups(tuple(groups), tuple(locked), heads)


class _Names:
    """A group's name: that of the tensor that makes it, and a count where it makes several."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, maker: Use) -> str:
        base = maker.tensor.removesuffix(".weight")
        if base == maker.tensor:
            base = maker.node  # exporters number the weights whose names they lose
        count = self._seen.get(base, 0) + 1
        self._seen[base] = count
        return base if count == 1 else f"{base}#{count}"


def _all_sites(graph: Graph, channels: Channels, order: Mapping[str, int]) -> _Sites:
    sites = _Sites()
    rank = {Role.MAKES: 0, Role.FOLLOWS: 1, Role.READS: 2}
    uses = channels.labels.uses.values()
    for use in sorted(uses, key=lambda u: (rank[u.role], order.get(u.node, 0), u.tensor, u.axis)):
        classes = channels.classes(use.tensor, use.axis)
        if classes is not None:
            sites.add(use, (use.tensor, use.axis, use.node), classes)
    for node in graph.nodes:
        for out in node.outputs:
            for axis, label in enumerate(channels.labels.axes.get(str(out.name), [])):
                if not isinstance(label, Fixed):
                    sites.add(None, (str(out.name), axis, node_name(node)), channels.root[label])
    return sites


def _partition(channels: Channels, sites: _Sites) -> list[tuple[Ints, list[int]]]:
    """Free classes by the sites they are at: (classes in order, indices of the sites), ordered by site."""
    count = len(channels.root)
    # One random number a site; their sum tells sets of sites apart.
    marks = np.random.default_rng(0).integers(1, 2**63, len(sites.keys), dtype=np.uint64)
    signature = np.zeros(count, np.uint64)
    first = np.full(count, -1, np.int64)
    place = np.zeros(count, np.int64)
    for index, classes in enumerate(sites.classes):
        found, positions = np.unique(classes, return_index=True)
        signature[found] += marks[index]
        new = first[found] < 0
        first[found[new]] = index
        place[found[new]] = positions[new]
    free = np.flatnonzero((first >= 0) & (channels.lock < 0))
    free = free[np.lexsort((place[free], first[free]))]
    groups: dict[int, list[int]] = {}
    for atom in free.tolist():
        groups.setdefault(int(signature[atom]), []).append(atom)
    where: dict[int, list[int]] = {key: [] for key in groups}
    head = {members[0]: key for key, members in groups.items()}
    heads = np.zeros(count, bool)
    heads[list(head)] = True
    for index, classes in enumerate(sites.classes):
        for atom in np.unique(classes[heads[classes]]).tolist():
            where[head[atom]].append(index)
    return [(np.array(members, np.int64), where[key]) for key, members in groups.items()]


def _group(name: str, kind: Kind, classes: Ints, where: Sequence[int], sites: _Sites) -> ChannelGroup:
    producers, consumers, activations = [], [], []
    order = np.argsort(classes)
    ascending = classes[order]
    for index in where:
        site = Site(*sites.keys[index], _positions(ascending, order, sites.classes[index]))
        use = sites.uses[index]
        if use is None:
            activations.append(site)
        elif use.role is Role.READS:
            consumers.append(site)
        else:
            producers.append(site)
    return ChannelGroup(name, len(classes), tuple(producers), tuple(consumers), tuple(activations), kind)


def _positions(ascending: Ints, order: Ints, classes: Ints) -> tuple[tuple[int, ...], ...]:
    """For each unit the positions with its class."""
    found = np.minimum(np.searchsorted(ascending, classes), len(ascending) - 1)
    held = np.flatnonzero(ascending[found] == classes)
    unit = order[found[held]]
    counts = np.bincount(unit, minlength=len(order))
    by_unit = held[np.argsort(unit, kind="stable")]
    if counts.min() == counts.max():
        return tuple(map(tuple, by_unit.reshape(len(order), -1).tolist()))
    return tuple(tuple(part.tolist()) for part in np.split(by_unit, np.cumsum(counts)[:-1]))


def _locked(channels: Channels, sites: _Sites) -> list[Refusal]:
    """Layers whose output channels stay, whole or in part."""
    found = []
    for use, classes in zip(sites.uses, sites.classes, strict=True):
        if use is None or use.role is not Role.MAKES:
            continue
        held = channels.lock[classes]
        if not (held >= 0).any():
            continue
        reasons = [channels.labels.reasons[i] for i in dict.fromkeys(held[held >= 0].tolist())]
        share = "" if (held >= 0).all() else f"{int((held >= 0).sum())} of {len(held)} channels: "
        found.append(Refusal(use.tensor, share + "; ".join(reasons[:2])))
    return found
