"""Raising single tensors above 8 bits, chosen by measured effect.

1. From the most damaging down, tensors are raised one after the other, also where a single step gains nothing: the noise of
   one tensor can hide behind that of its neighbour, so that only both together help. The best set on the way is taken.
2. Each of its tensors, the least damaging first, must show that the result is worse without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit.graph import Graph
from edgekit.quantize.damage import Damage

#: Gain that a raised tensor must bring, in dB of the outputs.
MIN_GAIN_DB = 0.4
#: Tensors in a row that gain nothing, after which the search ends.
PATIENCE = 3


@dataclass(frozen=True)
class Raised:
    """A tensor that is kept above 8 bits.

    Attributes:
        tensor: Its name.
        op: Type of the node that computes it.
        format: What it is now.
        reason: Why, in words.
        gain_db: How much worse the outputs get when it alone goes back to 8 bits.
    """

    tensor: str
    op: str
    format: str
    reason: str
    gain_db: float


def raise_tensors(
    graph: Graph,
    damage: Mapping[str, Damage],
    try_raised: Callable[[tuple[str, ...]], float],
    *,
    target_db: float,
    limit: int,
    raised_format: str,
) -> tuple[Raised, ...]:
    """Choose the tensors to raise.

    Args:
        graph: The float graph that is quantized.
        damage: What each tensor alone does to the outputs.
        try_raised: Quality of the outputs, in dB, with the given tensors raised.
        target_db: Quality at which to stop.
        limit: Most tensors to raise.
        raised_format: For the result.
    """
    order = sorted(damage, key=lambda t: -damage[t].noise)[:limit]
    best, chosen = try_raised(()), 0
    for count in range(1, len(order) + 1):
        if best >= target_db or count - chosen > PATIENCE:
            break
        found = try_raised(tuple(order[:count]))
        if found >= best + MIN_GAIN_DB:
            best, chosen = found, count
    return _needed(graph, order[:chosen], best, try_raised, damage, raised_format)


def _needed(
    graph: Graph,
    chosen: list[str],
    best: float,
    try_raised: Callable[[tuple[str, ...]], float],
    damage: Mapping[str, Damage],
    raised_format: str,
) -> tuple[Raised, ...]:
    producers = {str(v.name): node.op_type for node in graph.nodes for v in node.outputs}
    gains: dict[str, float] = {}
    for tensor in list(reversed(chosen)):
        without = try_raised(tuple(t for t in chosen if t != tensor))
        if best - without >= MIN_GAIN_DB / 2:
            gains[tensor] = best - without
        else:
            chosen.remove(tensor)
            best = without
    return tuple(
        Raised(
            tensor,
            producers.get(tensor, "input"),
            raised_format,
            f"8 bits in this tensor alone put {damage[tensor].noise:.1%} noise on the outputs",
            gain,
        )
        for tensor, gain in reversed(gains.items())
    )
