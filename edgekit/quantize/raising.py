"""Raising single tensors above 8 bits, chosen by measured effect.

1. From the most damaging down, tensors are raised one after the other, also where a single step gains
   nothing: the noise of one tensor can hide behind that of its neighbour, so that only both together help.
   The best set on the way is taken.
2. Each of its tensors, the least damaging first, must show that without it the result misses the target, or,
   where the target is missed anyway, that it is worse.
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

TryRaised = Callable[[tuple[str, ...]], float]


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


def most_useful(
    damage: Mapping[str, Damage], try_raised: TryRaised, *, target_db: float, limit: int
) -> tuple[str, ...]:
    """Step 1: the tensors to raise, the most damaging first.

    Args:
        damage: What each tensor alone does to the outputs.
        try_raised: Quality of the outputs, in dB, with the given tensors raised.
        target_db: Quality at which to stop.
        limit: Most tensors to raise.
    """
    order = sorted(damage, key=lambda t: -damage[t].noise)[:limit]
    best, chosen = try_raised(()), 0
    for count in range(1, len(order) + 1):
        if best >= target_db or count - chosen > PATIENCE:
            break
        found = try_raised(tuple(order[:count]))
        if found >= best + MIN_GAIN_DB:
            best, chosen = found, count
    return tuple(order[:chosen])


def only_needed(
    graph: Graph,
    chosen: tuple[str, ...],
    best_db: float,
    damage: Mapping[str, Damage],
    try_raised: TryRaised,
    *,
    target_db: float,
    raised_format: str,
) -> tuple[Raised, ...]:
    """Step 2: the tensors of ``chosen`` that must stay raised.

    Args:
        graph: The float graph that is quantized.
        chosen: The tensors.
        best_db: Quality with all of them raised.
        damage: What each tensor alone does to the outputs.
        try_raised: Quality of the outputs, in dB, with the given tensors raised.
        target_db: Quality that is enough.
        raised_format: For the result.
    """
    producers = {str(v.name): node.op_type for node in graph.nodes for v in node.outputs}
    kept = list(chosen)
    gains: dict[str, float] = {}
    for tensor in reversed(chosen):
        without = try_raised(tuple(t for t in kept if t != tensor))
        if without >= target_db or best_db - without < MIN_GAIN_DB / 2:
            kept.remove(tensor)
            best_db = without
        else:
            gains[tensor] = best_db - without
    return tuple(
        Raised(
            tensor,
            producers.get(tensor, "input"),
            raised_format,
            f"8 bits in this tensor alone put {damage[tensor].noise:.1%} noise on the outputs",
            gains[tensor],
        )
        for tensor in kept
    )
