"""Which positions of which axes belong together: symbolic labels on every axis of every tensor.

An axis that may get shorter carries one *atom* (an integer) per position; an axis that keeps its size is
:class:`Fixed`. Rules for the operators (``rules_*.py``) give each node's outputs their labels and say which
atoms have to be equal. Two positions with equal atoms can only be removed together; what is removed for one
atom class is all positions with that class, in every tensor of the graph.

Equalities are only collected on the way. Classes are the connected components of all of them, found once at
the end (minimum label hooking with pointer jumping, as in Shiloach and Vishkin, "An O(log n) parallel
connectivity algorithm", 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import is_constant, static_shape

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fixed:
    """An axis that keeps its size.

    Attributes:
        reason: Why, in words for the user.
    """

    reason: str


Axis = Ints | Fixed
Axes = list[Axis]

#: An axis of one position: it broadcasts, and nothing can be taken from it.
ONE = Fixed("it has one position only")


class Role(StrEnum):
    """What an initializer's axis does to the channels along it."""

    MAKES = "makes"  # output channels of a layer
    FOLLOWS = "follows"  # per-channel parameter: bias, slope, batch normalization, depthwise weight
    READS = "reads"  # input channels of a layer


@dataclass(frozen=True)
class Use:
    """One initializer axis at one node."""

    tensor: str
    axis: int
    node: str
    role: Role


@dataclass(frozen=True)
class Contraction:
    """A computed tensor that the node that makes ``output`` sums over along one axis."""

    output: str
    input: int
    tensor: str
    axis: int


@dataclass(frozen=True)
class Split:
    """A Reshape with more than one way to follow the channels through it.

    Attributes:
        before: Labelled axes of the input, by axis.
        after: Stand-in atoms for the output's axes.
    """

    before: dict[int, Ints]
    after: dict[int, Ints]


@dataclass(frozen=True)
class Choice:
    """How a :class:`Split` is to be followed, from what became of its stand-ins.

    Attributes:
        heads: Axes (``"b0"`` before, ``"a2"`` after) that are batch axes of a product of two tensors.
        locked: Axes that keep their size.
    """

    heads: frozenset[str]
    locked: frozenset[str]


def node_name(node: ir.Node) -> str:
    """The name of a node for the user; that of its first output where it has none."""
    return str(node.name or next((out.name for out in node.outputs if out.name), node.op_type))


class Labels:
    """The labels of a graph while they are being worked out."""

    def __init__(self, choices: dict[tuple[str, int], Choice] | None = None, *, heads: bool = True) -> None:
        """With ``choices`` None, ambiguous Reshapes are cut open and noted in ``splits``."""
        self.choices = choices
        self.heads = heads
        self.axes: dict[str, Axes] = {}
        self.uses: dict[tuple[str, int, bool], Use] = {}
        self.contractions: list[Contraction] = []
        self.splits: dict[tuple[str, int], Split] = {}
        self.batch: list[Ints] = []
        self.count = 0
        self.reasons: list[str] = []
        self._edges: list[tuple[Ints, Ints]] = []
        self._locks: list[tuple[Ints, int]] = []
        self._reason_index: dict[str, int] = {}

    def fresh(self, size: int) -> Axis:
        """New atoms for an axis; an axis of one position needs none."""
        if size == 1:
            return ONE
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def of(self, value: ir.Value) -> Axes:
        """Labels of a tensor, by axis. An initializer gets new atoms when it is first met."""
        name = str(value.name)
        found = self.axes.get(name)
        if found is None:
            shape = static_shape(value)
            if shape is None:
                raise ValueError(f"'{name}' has no static shape")
            if is_constant(value):
                found = [self.fresh(size) for size in shape]
            else:
                found = [Fixed(f"'{name}' is an input of the model") for _ in shape]
            self.axes[name] = found
        return found

    def put(self, value: ir.Value, axes: Sequence[Axis]) -> None:
        """Set the labels of a node's output."""
        shape = static_shape(value)
        if shape is None or len(shape) != len(axes):
            raise ValueError(f"'{value.name}' has other axes than labels")
        done: Axes = []
        for size, axis in zip(shape, axes, strict=True):
            if isinstance(axis, Fixed):
                done.append(axis)
                continue
            if len(axis) != size:
                raise ValueError(f"'{value.name}' has {size} positions along an axis, not {len(axis)}")
            if size == 1:
                self.lock(axis, f"'{value.name}' has this position only")
            done.append(axis if size != 1 else ONE)
        self.axes[str(value.name)] = done

    def merge(self, a: Axis, b: Axis, node: ir.Node) -> Axis:
        """Make two axes of equal size the same, position by position."""
        if isinstance(a, Fixed):
            if not isinstance(b, Fixed):
                self.lock(
                    b, f"{node.op_type} '{node_name(node)}' joins it with an axis that stays: {a.reason}"
                )
            return a
        if isinstance(b, Fixed):
            return self.merge(b, a, node)
        if a is not b:
            self.equal(a, b)
        return a

    def equal(self, a: Ints, b: Ints) -> None:
        """Note that atoms are the same, one by one."""
        if len(a) != len(b):
            raise ValueError(f"{len(a)} and {len(b)} positions cannot be the same")
        self._edges.append((a, b))

    def lock(self, axis: Axis, reason: str) -> None:
        """Keep every position of an axis."""
        if isinstance(axis, Fixed) or len(axis) == 0:
            return
        index = self._reason_index.setdefault(reason, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        self._locks.append((axis, index))

    def use(self, value: ir.Value | None, axis: int, role: Role, node: ir.Node) -> None:
        """Note what an initializer's axis does; nothing for a computed tensor except a sum over it."""
        if value is None:
            return
        axis %= max(len(self.of(value)), 1)
        if not is_constant(value):
            return
        # A tied weight can make channels at one node and read them at another, so these are two uses.
        key = (str(value.name), axis, role is Role.READS)
        present = self.uses.get(key)
        if present is None or (role is Role.MAKES and present.role is Role.FOLLOWS):
            self.uses[key] = Use(str(value.name), axis, node_name(node), role)

    def use_all(self, node: ir.Node) -> None:
        """Note the labelled axes of a node's initializers that its rule said nothing about."""
        for value in node.inputs:
            if value is None or not is_constant(value):
                continue
            name = str(value.name)
            for axis in range(len(self.axes.get(name, ()))):
                if (name, axis, True) not in self.uses and (name, axis, False) not in self.uses:
                    self.use(value, axis, Role.FOLLOWS, node)

    def contract(self, node: ir.Node, index: int, axis: int) -> None:
        """Note that a node sums over an axis of its input ``index``."""
        value = node.inputs[index]
        if value is None:
            return
        axis %= len(self.of(value))
        if is_constant(value):
            self.use(value, axis, Role.READS, node)
        else:
            self.contractions.append(Contraction(str(node.outputs[0].name), index, str(value.name), axis))

    def solve(self) -> Channels:
        """Find the classes."""
        if not self.heads:
            for atoms in self.batch:
                self.lock(atoms, "heads stay, only the channels inside them may go")
        root = components(self.count, self._edges)
        reason = np.full(self.count, -1, np.int64)
        for atoms, index in reversed(self._locks):
            reason[root[atoms]] = index  # reversed, so that the first reason stays
        return Channels(self, root, reason[root] if self.count else reason)


@dataclass(frozen=True)
class Channels:
    """The labels of a graph with their classes.

    Attributes:
        labels: The atoms of every axis, and what each initializer axis does.
        root: Class of each atom: the smallest atom in it.
        lock: Why the class of an atom stays, as an index into ``labels.reasons``; −1 where it may go.
    """

    labels: Labels
    root: Ints
    lock: Ints

    def classes(self, tensor: str, axis: int) -> Ints | None:
        """Class of each position of an axis; None where the axis keeps its size or is unknown."""
        axes = self.labels.axes.get(tensor)
        label = None if axes is None else axes[axis]
        if label is None or isinstance(label, Fixed):
            return None
        return self.root[label]


def components(count: int, edges: Sequence[tuple[Ints, Ints]]) -> Ints:
    """The smallest member of each atom's connected component."""
    parent = np.arange(count, dtype=np.int64)
    if not edges:
        return parent
    a = np.concatenate([e[0] for e in edges])
    b = np.concatenate([e[1] for e in edges])
    while a.size:
        low, high = np.minimum(parent[a], parent[b]), np.maximum(parent[a], parent[b])
        apart = low != high
        a, b, low, high = a[apart], b[apart], low[apart], high[apart]
        np.minimum.at(parent, high, low)
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
    return parent


def analyse(graph: Graph, *, heads: bool = True) -> Channels:
    """Label every tensor of a graph.

    Args:
        graph: With static shapes, as captured.
        heads: Whether the units of a product of two tensors' batch axes are whole heads; otherwise the
            channels inside the heads are, the same ones in each.

    Raises:
        ModelError: A tensor has no static shape.
    """
    from edgekit.prune.rules import walk

    first = walk(graph, Labels(heads=heads))
    if not first.labels.splits:
        return first
    return walk(graph, Labels(_choices(first), heads=heads))


def _choices(first: Channels) -> dict[tuple[str, int], Choice]:
    """What became of each ambiguous Reshape's stand-ins."""
    batch = np.zeros(len(first.root), bool)
    for atoms in first.labels.batch:
        batch[first.root[atoms]] = True
    found = {}
    for key, split in first.labels.splits.items():
        head, locked = set(), set()
        for prefix, side in (("b", split.before), ("a", split.after)):
            for axis, atoms in side.items():
                mark = f"{prefix}{axis}"
                if (first.lock[atoms] >= 0).all():
                    locked.add(mark)
                elif batch[first.root[atoms]].any():
                    head.add(mark)
        found[key] = Choice(frozenset(head), frozenset(locked))
    return found
