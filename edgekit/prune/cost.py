"""What a network costs as a function of how many units each channel group keeps.

The cost is a sum of terms. A term is a coefficient times the sizes of a few tensor axes
(multiply-accumulates, parameters, bytes), or a table over them (milliseconds of a kernel). An axis shrinks
with the groups whose channels lie along it; in which order a group loses its units is fixed beforehand, so
the size after ``k`` of them is a prefix sum. Removing units then touches only the terms of one group, which
is what makes thousands of greedy moves cheap. The figures are those of :func:`edgekit.stats.count` on the
pruned graph, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, is_constant, size_bytes, static_shape
from edgekit.prune.options import Aim, CostKind
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest

if TYPE_CHECKING:
    from edgekit.prune.groups import ChannelGroup
    from edgekit.target import CostModel

Shape = tuple[int, ...]
#: Axes of one kernel that may vary at once in its table.
_TABLE_AXES = 2


@dataclass(frozen=True)
class Dim:
    """Size of a tensor axis.

    Attributes:
        base: With every unit kept.
        parts: By group number, what the axis loses with the first ``k`` units of the group's order.
    """

    base: int
    parts: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Product:
    """``coefficient`` times the sizes of the axes ``dims`` (positions in :attr:`Cost.dims`)."""

    coefficient: float
    dims: tuple[int, ...]

    def value(self, sizes: Sequence[int]) -> float:
        result = self.coefficient
        for dim in self.dims:
            result *= sizes[dim]
        return result


@dataclass(frozen=True)
class Table:
    """A figure known at some sizes of one or two axes, linear in between.

    Attributes:
        dims: The axes.
        levels: Ascending sizes of each axis.
        values: The figure at every combination, the last axis fastest.
        align: Sizes are rounded up to multiples of it: kernels work in blocks.
    """

    dims: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    align: int = 1

    def value(self, sizes: Sequence[int]) -> float:
        corners = [(1.0, 0)]
        for dim, levels in zip(self.dims, self.levels, strict=True):
            size = min(-(-sizes[dim] // self.align) * self.align, levels[-1])
            low, share = _place(levels, size)
            corners = [
                (weight * part, index * len(levels) + low + step)
                for weight, index in corners
                for step, part in ((0, 1.0 - share), (1, share))
                if part
            ]
        return sum(weight * self.values[index] for weight, index in corners)


class Cost:
    """The cost of a network, kept up to date while units are removed.

    Args:
        dims: Axes that vary.
        terms: What is summed up.
        fixed: The part that does not vary.
        groups: Number of groups.
    """

    def __init__(
        self, dims: Sequence[Dim], terms: Sequence[Product | Table], fixed: float, groups: int
    ) -> None:
        self.dims = tuple(dims)
        self._sizes = [dim.base for dim in dims]
        self._terms = _merge(terms)
        self._values = [term.value(self._sizes) for term in self._terms]
        self.removed = [0] * groups
        self._axes: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(groups)]
        for index, dim in enumerate(dims):
            for group, lost in dim.parts:
                self._axes[group].append((index, lost))
        owners = [{group for d in term.dims for group, _ in dims[d].parts} for term in self._terms]
        self._touched = [[t for t, own in enumerate(owners) if g in own] for g in range(groups)]
        self.neighbours = [
            sorted(set().union({g}, *(own for own in owners if g in own))) for g in range(groups)
        ]
        self.fixed = fixed
        self.value = fixed + sum(self._values)

    def saved(self, group: int, count: int) -> float:
        """What removing the next ``count`` units of a group saves; negative ``count`` restores."""
        old = self._move(group, count)
        result = sum(self._values[t] - self._terms[t].value(self._sizes) for t in self._touched[group])
        for index, size in old:
            self._sizes[index] = size
        return result

    def remove(self, group: int, count: int) -> None:
        """Remove the next ``count`` units of a group; negative ``count`` restores the latest."""
        self._move(group, count)
        self.removed[group] += count
        for term in self._touched[group]:
            new = self._terms[term].value(self._sizes)
            self.value += new - self._values[term]
            self._values[term] = new

    def _move(self, group: int, count: int) -> list[tuple[int, int]]:
        """Change the axes; returns what they were."""
        done = self.removed[group]
        old = []
        for index, lost in self._axes[group]:
            old.append((index, self._sizes[index]))
            self._sizes[index] -= lost[done + count] - lost[done]
        return old


def cost_of(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    orders: Mapping[str, Sequence[int]],
    aim: Aim,
    *,
    kind: CostKind = CostKind.FLOAT,
    model: CostModel | None = None,
    align: int = 1,
) -> Cost:
    """The cost of ``graph`` as a function of the units that ``groups`` lose.

    Args:
        graph: A captured graph.
        groups: Its groups, or some of them.
        orders: For each group the units in the order in which they go.
        aim: Which figure.
        kind: Decides the bytes of weights.
        model: The target's cost model; needed for latency only.
        align: Widths at which kernels are timed are multiples of it.
    """
    builder = _Builder(graph, groups, orders)
    if aim is Aim.KEEP:
        builder.units()
    elif aim is Aim.MACS:
        builder.macs()
    elif aim is Aim.LATENCY:
        if model is None:
            raise ValueError("latency needs a cost model")
        builder.latency(model, align)
    else:
        builder.weights(None if aim is Aim.PARAMS else kind)
    return Cost(builder.dims, builder.terms, builder.fixed, len(groups))


def weight_bytes(graph: Graph, kind: CostKind) -> int:
    """Bytes of all constants: as they are, or with one byte for every weight of a Conv, Gemm or MatMul."""
    return sum(_item_bytes(v, kind) * math.prod(static_shape(v) or ()) for v in _initializers(graph))


class _Builder:
    """Collects the axes that vary and the terms over them."""

    def __init__(
        self, graph: Graph, groups: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]]
    ) -> None:
        self.graph = graph
        self.sizes = [group.size for group in groups]
        self.lost = _losses(groups, orders)
        self.dims: list[Dim] = []
        self.terms: list[Product | Table] = []
        self.fixed: float = 0
        self._known: dict[Dim, int] = {}

    def units(self) -> None:
        for index, size in enumerate(self.sizes):
            self.terms.append(Product(1, (self._dim(Dim(size, ((index, tuple(range(size + 1))),))),)))

    def weights(self, kind: CostKind | None) -> None:
        """Parameters (``kind`` None) or bytes of the constants."""
        for value in _initializers(self.graph):
            if kind is None:
                if value.dtype is not None and value.dtype.is_floating_point():
                    self._product(1, [(value, axis) for axis in range(len(_shape(value)))])
            else:
                self._product(_item_bytes(value, kind), [(value, axis) for axis in range(len(_shape(value)))])

    def macs(self) -> None:
        """As :func:`edgekit.stats.node_macs` counts."""
        for node in self.graph.nodes:
            if node.op_type not in MAC_OPS or node.domain:
                continue
            left, right, out = node.inputs[0], node.inputs[1], node.outputs[0]
            if left is None or right is None:
                continue
            axes = [(right, a) for a in range(1, len(_shape(right)))]
            if node.op_type in ("Conv", "ConvTranspose"):
                whole = out if node.op_type == "Conv" else left
                self._product(1, [*((whole, a) for a in range(len(_shape(whole)))), *axes])
            else:
                inner = 0 if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else -1
                rank = len(_shape(left))
                self._product(1, [*((out, a) for a in range(len(_shape(out)))), (left, inner % rank)])

    def latency(self, model: CostModel, align: int) -> None:
        """Kernels of Conv, Gemm and MatMul by table, the others by the bytes they move."""
        jobs: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...], list[NodeRequest]]] = []
        for node in self.graph.nodes:
            if node.op_type in MAC_OPS and not node.domain:
                jobs.append(self._grid(node, align, model.parts))
            rate = model.byte_ms(node)
            for value in (
                dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None) if rate else ()
            ):
                if not is_constant(value) and value.dtype is not None:
                    axes = [(value, axis) for axis in range(len(_shape(value)))]
                    self._product(rate * value.dtype.itemsize, axes)
        times = iter(model.node_ms([request for *_, requests in jobs for request in requests]))
        for dims, levels, requests in jobs:
            values = tuple(next(times) for _ in requests)
            if dims:
                self.terms.append(Table(dims, levels, values, align))
            else:
                self.fixed += values[0]
        self.fixed += model.fixed_ms

    def _grid(
        self, node: ir.Node, align: int, parts: int
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], list[NodeRequest]]:
        """The combinations of widths at which a node is timed."""
        axes = {
            (str(v.name), axis): dim
            for v in (*node.inputs, *node.outputs)
            if v is not None and v.name
            for axis in range(len(_shape(v)))
            if (dim := self._axis(v, axis)) is not None
        }
        dims = tuple(dict.fromkeys(axes.values()))
        # Axes beyond the first two move along with the second: such nodes are rare and their tables are
        # large.
        driver = {dim: min(i, _TABLE_AXES - 1) for i, dim in enumerate(dims)}
        levels = [_levels(self.dims[dim].base, align, parts) for dim in dims[:_TABLE_AXES]]
        requests = []
        for point in product(*levels):
            changed = {}
            for key, dim in axes.items():
                full = self.dims[dims[driver[dim]]].base
                changed[key] = max(1, self.dims[dim].base * point[driver[dim]] // full)
            requests.append(node_request(node, changed))
        return dims[:_TABLE_AXES], tuple(levels), requests

    def _product(self, coefficient: float, axes: Sequence[tuple[ir.Value, int]]) -> None:
        dims = []
        for value, axis in axes:
            dim = self._axis(value, axis)
            if dim is None:
                coefficient *= _shape(value)[axis]
            else:
                dims.append(dim)
        if dims:
            self.terms.append(Product(coefficient, tuple(sorted(dims))))
        else:
            self.fixed += coefficient

    def _axis(self, value: ir.Value, axis: int) -> int | None:
        """Number of the axis among those that vary, or None where it does not."""
        parts = self.lost.get((str(value.name), axis))
        return None if parts is None else self._dim(Dim(_shape(value)[axis], parts))

    def _dim(self, dim: Dim) -> int:
        if dim not in self._known:
            self._known[dim] = len(self.dims)
            self.dims.append(dim)
        return self._known[dim]


def node_request(node: ir.Node, changed: Mapping[tuple[str, int], int] | None = None) -> NodeRequest:
    """A node with other sizes of some axes, by tensor name and axis."""
    sizes = changed or {}

    def shape(value: ir.Value | None) -> Shape | None:
        if value is None or not value.name:
            return None
        return tuple(sizes.get((str(value.name), axis), size) for axis, size in enumerate(_shape(value)))

    return NodeRequest(
        node, tuple(shape(v) for v in node.inputs), tuple(shape(v) or () for v in node.outputs)
    )


def _losses(
    groups: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], tuple[tuple[int, tuple[int, ...]], ...]]:
    """What every axis of every tensor loses, by group number, with the first ``k`` units of the order."""
    found: dict[tuple[str, int], dict[int, list[set[int]]]] = {}
    for index, group in enumerate(groups):
        for site in (*group.producers, *group.consumers, *group.activations):
            units = found.setdefault((site.tensor, site.axis), {}).setdefault(
                index, [set() for _ in range(group.size)]
            )
            # One tensor can be reached on two ways: a position counts once.
            for unit, positions in enumerate(site.positions):
                units[unit].update(positions)
    return {
        key: tuple(
            (index, _prefix([len(units[unit]) for unit in orders[groups[index].name]]))
            for index, units in sorted(parts.items())
        )
        for key, parts in found.items()
    }


def _prefix(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))


def _merge(terms: Sequence[Product | Table]) -> list[Product | Table]:
    """One product for all that run over the same axes."""
    sums: dict[tuple[int, ...], float] = {}
    for term in terms:
        if isinstance(term, Product):
            sums[term.dims] = sums.get(term.dims, 0) + term.coefficient
    return [*(Product(c, dims) for dims, c in sums.items()), *(t for t in terms if isinstance(t, Table))]


def _levels(full: int, align: int, parts: int) -> tuple[int, ...]:
    """Widths at which kernels are timed; between them time is interpolated."""
    shares = [part / parts for part in range(parts + 1)]
    rounded = {min(full, max(align, math.ceil(full * share / align) * align)) for share in shares}
    return tuple(sorted(rounded))


def _place(levels: Sequence[int], size: int) -> tuple[int, float]:
    """Index of the level at or below ``size`` and how far it is to the next one; extrapolates below."""
    if len(levels) == 1:
        return 0, 0.0
    low = 0
    while low + 2 < len(levels) and levels[low + 1] <= size:
        low += 1
    return low, (size - levels[low]) / (levels[low + 1] - levels[low])


def _initializers(graph: Graph) -> list[ir.Value]:
    return [v for v in graph.model.graph.initializers.values() if not v.is_graph_input()]


def _item_bytes(value: ir.Value, kind: CostKind) -> int:
    """Bytes of one element; a weight that is multiplied and accumulated has one in int8."""
    shape = _shape(value)
    item = size_bytes(value) // math.prod(shape) if math.prod(shape) else 0
    if kind is CostKind.INT8 and len(shape) > 1:
        readers: list[Any] = [use.node for use in value.uses() if use.idx == 1]
        if readers and all(node.op_type in MAC_OPS for node in readers):
            return 1
    return item


def _shape(value: ir.Value) -> Shape:
    return static_shape(value) or ()
