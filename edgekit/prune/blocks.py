"""Parts of a network that can be left out whole: residual blocks and repeated layers.

1. ``(x, y)`` is a block when ``x`` dominates ``y`` (all ways from the inputs to ``y`` lead through ``x``),
   both have the same shape and type, multiply-accumulates lie between them, and nothing between them is read
   elsewhere. Then ``x`` can stand in for ``y``. ``y = x + f(x)``, with an activation behind or not, is one
   case; any layer with as many channels out as in is another.
2. Of the blocks that end in ``y`` the smallest counts; larger ones are several dropped after one another. Of
   two with the same input and the same work the later end counts, so that an activation goes with its layer.
3. Which are dropped is measured: each is bypassed, and the one that changes the outputs least for what it
   saves goes. The others are then measured again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.edit import is_constant, static_shape
from edgekit.prune.effect import Effect
from edgekit.stats import node_macs

Progress = Callable[[int, int | None], None]
Figure = Callable[[Graph], float]


@dataclass(frozen=True)
class Block:
    """A part that can be left out.

    Attributes:
        input: The tensor that stands in.
        output: The tensor that it stands in for.
        macs: Multiply-accumulates between them.
        nodes: Names of the nodes between them.
        residual: Whether the block adds its input to its result.
    """

    input: str
    output: str
    macs: int
    nodes: tuple[str, ...]
    residual: bool


@dataclass(frozen=True)
class Drop:
    """A block and what leaving it out does.

    Attributes:
        block: The block.
        distance: Relative distance of the outputs from the original's.
        saved: Share of the whole network's cost.
    """

    block: Block
    distance: float
    saved: float

    def to_json(self) -> dict[str, Any]:
        return {
            "input": self.block.input, "output": self.block.output, "macs": self.block.macs,
            "nodes": len(self.block.nodes), "residual": self.block.residual,
            "distance": self.distance, "saved": self.saved,
        }  # fmt: skip


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """Every block of a captured graph, in graph order; the rules are those of the module."""
    above = _dominators(graph)
    found: dict[tuple[str, int], Block] = {}
    for node in graph.nodes:
        end = node.outputs[0]
        if len(node.outputs) != 1 or end.is_graph_output() or static_shape(end) is None:
            continue
        for start in _chain(above, end):
            if static_shape(start) != static_shape(end) or start.dtype != end.dtype:
                continue
            inner = _between(start, end)
            macs = sum(node_macs(n) for n in inner)
            if macs and _closed(inner, start, end):
                found[str(start.name), macs] = _block(start, end, macs, inner)  # (2): the later end stays
            if macs:
                break
    order = {str(v.name): i for i, n in enumerate(graph.nodes) for v in n.outputs}
    return tuple(sorted(found.values(), key=lambda block: order[block.output]))


def bypass_blocks(graph: Graph, blocks: Sequence[Block]) -> Graph:
    """The graph without the blocks."""
    from edgekit.prune.cut import drop_blocks as leave_out
    from edgekit.prune.plan import DroppedBlock

    return leave_out(graph, [DroppedBlock(input=b.input, output=b.output) for b in blocks])


def drop_blocks(
    graph: Graph,
    effect: Effect,
    figure: Figure,
    *,
    count: int = 0,
    share: float | None = None,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
    status: Callable[[str], None] | None = None,
) -> tuple[list[Drop], list[Drop]]:
    """Choose blocks greedily by distance per cost saved, measuring the rest again after each.

    Args:
        graph: The graph.
        effect: Compares with it.
        figure: The cost of a graph.
        count: Most blocks to drop; 0 for as many as ``share`` needs.
        share: Drop until so small a share of the cost is left.
        exclude: Shell patterns of blocks, by the tensor they end in, that stay.
        progress: Called with the blocks measured and in all.
        status: Called with a line on every block that was chosen.

    Returns:
        The chosen ones in order, and all blocks as measured alone.

    Raises:
        UsageError: There are not that many blocks, or dropping all of them does not reach the share.
    """
    start = figure(graph)
    chosen: list[Drop] = []
    alone: list[Drop] = []
    current = graph
    while (count and len(chosen) < count) or (share is not None and figure(current) > share * start):
        candidates = list(_measured(current, effect, figure, start, progress, exclude))
        alone = alone or candidates
        useful = [drop for drop in candidates if drop.saved > 0]
        if not useful:
            raise UsageError(
                f"{len(chosen)} blocks can be left out, and {figure(current) / start:.3f} of the cost stays",
                where="drop_layers" if count else "drop_to",
                hint="Ask for less; what can be left out has the same shape at both ends",
            )
        best = min(useful, key=lambda drop: drop.distance / drop.saved)
        chosen.append(best)
        current = bypass_blocks(current, [best.block])
        if status is not None:
            status(
                f"left out {best.block.output}: distance {best.distance:.4f}, saves {100 * best.saved:.1f} %"
            )
    return chosen, alone


def measure_blocks(
    graph: Graph, effect: Effect, figure: Figure, *, progress: Progress | None = None
) -> list[Drop]:
    """What leaving out each block alone does."""
    return list(_measured(graph, effect, figure, figure(graph), progress))


def _measured(
    graph: Graph,
    effect: Effect,
    figure: Figure,
    start: float,
    progress: Progress | None,
    exclude: Sequence[str] = (),
) -> Iterator[Drop]:
    now = figure(graph)
    blocks = [b for b in find_blocks(graph) if not any(fnmatch.fnmatch(b.output, p) for p in exclude)]
    for done, block in enumerate(blocks, start=1):
        without = bypass_blocks(graph, [block])
        yield Drop(block, effect.distance(without), (now - figure(without)) / start)
        if progress is not None:
            progress(done, len(blocks))


def _block(start: ir.Value, end: ir.Value, macs: int, inner: Sequence[ir.Node]) -> Block:
    joins = [n for n in inner if n.op_type == "Add" and any(v is start for v in n.inputs)]
    return Block(str(start.name), str(end.name), macs, tuple(str(n.name) for n in inner), bool(joins))


def _dominators(graph: Graph) -> dict[ir.Value, ir.Value | None]:
    """The nearest tensor that all ways to each computed tensor lead through; None where there is none.

    One pass in graph order is enough, since a graph has no cycles (Cooper, Harvey and Kennedy, "A Simple,
    Fast Dominance Algorithm", 2001).
    """
    above: dict[ir.Value, ir.Value | None] = dict.fromkeys(graph.model.graph.inputs)
    depth: dict[ir.Value, int] = dict.fromkeys(above, 1)
    for node in graph.nodes:
        sources = list(dict.fromkeys(v for v in node.inputs if v is not None and not is_constant(v)))
        meet: ir.Value | None = sources[0] if sources else None
        for other in sources[1:]:
            meet = _meet(meet, other, above, depth)
        for value in node.outputs:
            above[value] = meet
            depth[value] = 1 + (depth[meet] if meet is not None else 0)
    return above


def _meet(
    a: ir.Value | None, b: ir.Value | None, above: dict[ir.Value, ir.Value | None], depth: dict[ir.Value, int]
) -> ir.Value | None:
    while a is not b:
        if a is None or b is None:
            return None
        if depth[a] >= depth[b]:
            a = above[a]
        else:
            b = above[b]
    return a


def _chain(above: dict[ir.Value, ir.Value | None], value: ir.Value) -> Iterator[ir.Value]:
    """The dominators of a tensor, the nearest first."""
    at = above[value]
    while at is not None:
        yield at
        at = above[at]


def _between(start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """Nodes from ``start`` to ``end``, the latter's producer included."""
    found: dict[ir.Node, None] = {}
    waiting = [end]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value is start or node is None or node in found:
            continue
        found[node] = None
        waiting.extend(v for v in node.inputs if v is not None)
    return list(found)


def _closed(inner: Sequence[ir.Node], start: ir.Value, end: ir.Value) -> bool:
    """Whether nothing between the two ends is read elsewhere or leaves the graph."""
    members = set(inner)
    return all(
        value is end or (not value.is_graph_output() and all(use.node in members for use in value.uses()))
        for node in inner
        for value in node.outputs
    )
