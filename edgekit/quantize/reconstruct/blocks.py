"""Cutting a network into blocks with one result each.

1. A tensor that several nodes read is a *fork*. The node at which all paths from it meet again (its immediate
   post-dominator) closes a *region*: the nodes on those paths. A region has one result, and nothing leaves it
   and comes back; two regions are nested or have no node in common. A residual block, a CSP block,
   attention, and a SiLU written as Sigmoid and Mul are regions.
2. Every region with at most ``most`` weighted nodes that no other such region holds is a block; with
   granularity ``layer``, only those without weights are.
3. Nodes outside of regions: weighted ones are blocks of one layer. Others join the block before them, or else
   the block behind them, as far as that leaves one result.
4. With granularity ``block``, a block joins the one before it while both together have at most ``most``
   weighted nodes and one result.

A layer inside of a region with too many weighted nodes, which has no cut, is handled alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgekit.graph import Graph
from edgekit.quantize.plan import name
from edgekit.quantize.reconstruct.options import Granularity


@dataclass(frozen=True)
class Block:
    """Nodes that are reconstructed together.

    Attributes:
        nodes: Names of all its nodes, in execution order.
        weighted: Those whose weights are quantized.
        outputs: Tensors that nodes outside read, or that are outputs of the graph; one, but for a block of a
            single node.
        uncut: Weighted nodes of the smallest region around it that is too large to be a block; 0 if none.
    """

    nodes: tuple[str, ...]
    weighted: tuple[str, ...]
    outputs: tuple[str, ...]
    uncut: int = 0


def find_blocks(
    graph: Graph, weighted: Collection[str], *, granularity: Granularity = Granularity.BLOCK, most: int = 6
) -> tuple[Block, ...]:
    """Every node of the graph in exactly one block; blocks are in an order in which they can run.

    Args:
        graph: A captured float graph.
        weighted: Names of the nodes whose weights are quantized.
        granularity: Whether layers stay alone.
        most: Most weighted nodes of a block.
    """
    flow = _Flow(graph, weighted)
    regions = flow.regions()
    limit = most if granularity == Granularity.BLOCK else 0
    units = _Units(flow, [r for r in regions if flow.count(r) <= limit])
    units.join_glue()
    if granularity == Granularity.BLOCK:
        units.join_chains(most)
    large = [r for r in regions if flow.count(r) > most] if granularity == Granularity.BLOCK else []
    blocks = []
    for members in units.in_order():
        around = [flow.count(r) for r in large if members <= r and flow.count(members) == 1]
        ordered = sorted(members)
        blocks.append(
            Block(
                tuple(flow.names[i] for i in ordered),
                tuple(flow.names[i] for i in ordered if flow.weighted[i]),
                tuple(flow.leaving(members)),
                min(around, default=0),
            )
        )
    return tuple(blocks)


class _Flow:
    """Nodes by number in execution order, and who reads whom; the graph's inputs are forks too."""

    def __init__(self, graph: Graph, weighted: Collection[str]) -> None:
        nodes = list(graph.nodes)
        self.names = [name(n) for n in nodes]
        self.weighted = [n in weighted for n in self.names]
        number = {node: i for i, node in enumerate(nodes)}
        self.made = [[str(v.name) for v in n.outputs] for n in nodes]
        self.read_by: dict[str, set[int]] = {}
        self.final = {str(v.name) for v in graph.model.graph.outputs}
        self.after: list[set[int]] = [set() for _ in nodes]
        self.before: list[set[int]] = [set() for _ in nodes]
        for node in nodes:
            for value in node.outputs:
                readers = {number[user] for user in value.consumers()}
                self.read_by[str(value.name)] = readers
                self.after[number[node]] |= readers
                for reader in readers:
                    self.before[reader].add(number[node])
        self.entries = [{number[u] for u in v.consumers()} for v in graph.model.graph.inputs]
        self.ends = {i for i, made in enumerate(self.made) if self.final & set(made) or not self.after[i]}

    def count(self, members: Iterable[int]) -> int:
        return sum(self.weighted[i] for i in members)

    def leaving(self, members: Collection[int]) -> list[str]:
        """Tensors made inside that are read outside, or outputs of the graph."""
        inside = set(members)
        return [
            tensor
            for i in sorted(inside)
            for tensor in self.made[i]
            if tensor in self.final or self.read_by[tensor] - inside
        ]

    def regions(self) -> list[frozenset[int]]:
        """All regions, each as the numbers of its nodes."""
        closing = self._post_dominators()
        found: dict[frozenset[int], None] = {}
        for readers in (*self.entries, *self.after):
            meeting = _meeting(readers, closing) if len(readers) > 1 else None
            if meeting is not None:
                found[self._between(readers, meeting)] = None
        return list(found)

    def _post_dominators(self) -> list[int | None]:
        """For each node the first that every path from it goes through; None is the end of the network."""
        closing: list[int | None] = [None] * len(self.names)
        for i in reversed(range(len(self.names))):
            closing[i] = None if i in self.ends else _meeting(self.after[i], closing)
        return closing

    def _between(self, start: Iterable[int], end: int) -> frozenset[int]:
        waiting, found = list(start), {end}
        while waiting:
            i = waiting.pop()
            if i not in found:
                found.add(i)
                waiting.extend(self.after[i])
        return frozenset(found)


def _meeting(nodes: Iterable[int], closing: list[int | None]) -> int | None:
    """The first node that all paths from ``nodes`` go through, the nodes themselves counted."""
    front = set(nodes)
    while len(front) > 1:
        # Paths only go forward: the earliest cannot be the meeting point.
        first = min(front)
        front.discard(first)
        following = closing[first]
        if following is None:
            return None
        front.add(following)
    return front.pop() if front else None


class _Units:
    """A partition of the nodes that grows coarser."""

    def __init__(self, flow: _Flow, regions: list[frozenset[int]]) -> None:
        self.flow = flow
        self.unit = list(range(len(flow.names)))
        self.members = {i: {i} for i in self.unit}
        for region in sorted(regions, key=len, reverse=True):
            # They are nested or disjoint; the largest come first.
            if len({self.unit[i] for i in region}) == len(region):
                self._set(max(region), region)

    def _set(self, unit: int, nodes: Iterable[int]) -> None:
        members = set(nodes)
        for i in members:
            self.members.pop(self.unit[i], None)
        for i in members:
            self.unit[i] = unit
        self.members[unit] = members

    def before(self, unit: int) -> list[int]:
        """Units that this one reads, the latest first."""
        found = {self.unit[j] for i in self.members[unit] for j in self.flow.before[i]} - {unit}
        return sorted(found, key=lambda u: -max(self.members[u]))

    def after(self, unit: int) -> list[int]:
        """Units that read this one, the earliest first."""
        found = {self.unit[j] for i in self.members[unit] for j in self.flow.after[i]} - {unit}
        return sorted(found, key=lambda u: min(self.members[u]))

    def join_glue(self) -> None:
        """Rule 3."""
        for unit in sorted(self.members, key=lambda u: max(self.members[u])):
            if self.flow.count(self.members[unit]) == 0:
                self._join_first(unit, self.before(unit))
        for unit in sorted(self.members, key=lambda u: -max(self.members[u])):
            if self.flow.count(self.members[unit]) == 0:
                self._join_first(unit, self.after(unit))

    def join_chains(self, most: int) -> None:
        """Rule 4."""
        for unit in sorted(self.members, key=lambda u: max(self.members[u])):
            here = self.flow.count(self.members[unit])
            near = [u for u in self.before(unit) if here + self.flow.count(self.members[u]) <= most]
            self._join_first(unit, near)

    def _join_first(self, unit: int, others: list[int]) -> None:
        for other in others:
            both = self.members[unit] | self.members[other]
            if len(self.flow.leaving(both)) == 1 and not self._detour(unit, other):
                self._set(max(both), both)
                return

    def _detour(self, one: int, two: int) -> bool:
        """Whether some path leaves the two and comes back."""
        inside = {one, two}
        waiting = [u for unit in inside for u in self.after(unit) if u not in inside]
        seen: set[int] = set()
        while waiting:
            unit = waiting.pop()
            if unit in inside:
                return True
            if unit not in seen:
                seen.add(unit)
                waiting.extend(self.after(unit))
        return False

    def in_order(self) -> list[set[int]]:
        """The units so that each comes after those that it reads."""
        done: set[int] = set()
        ordered: list[set[int]] = []
        waiting = sorted(self.members, key=lambda u: max(self.members[u]))
        while waiting:
            ready = next(u for u in waiting if all(b in done for b in self.before(u)))
            waiting.remove(ready)
            done.add(ready)
            ordered.append(self.members[ready])
        return ordered
