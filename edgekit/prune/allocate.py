"""How many units each group keeps: greedy by what a unit is worth against what it costs.

Every move removes the least important units of one group, as many as bring its width to the next multiple of
the alignment (or further, where the cost is a staircase and one step alone saves nothing). The move with the
most cost saved for the importance lost comes first, across all groups, until the target is reached; then the
most important units come back for as long as the target still holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.prune.options import Scope

if TYPE_CHECKING:
    from edgekit.prune.cost import Cost
    from edgekit.prune.groups import ChannelGroup

Array = np.ndarray[Any, Any]
#: Blocks that one move may remove.
LOOK_AHEAD = 4


@dataclass(frozen=True)
class Track:
    """How one group may shrink.

    Attributes:
        name: The group.
        order: Its units, the least important first.
        stops: Numbers of removed units at which it may stand, ascending from 0.
        loss: Importance lost with the first ``k`` units.
        original: Units that the group had before any pruning; shares refer to it.
    """

    name: str
    order: tuple[int, ...]
    stops: tuple[int, ...]
    loss: tuple[float, ...]
    original: int

    @property
    def size(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class Allocation:
    """What each group keeps.

    Attributes:
        keep: Kept units of every group, ascending.
        cost: The cost that is left, in the unit of the :class:`~edgekit.prune.cost.Cost`.
        loss: Sum of the importance that is gone.
    """

    keep: dict[str, list[int]]
    cost: float
    loss: float


def make_track(
    group: ChannelGroup, scores: Array, *, align: int, min_keep: float, original: int | None = None
) -> Track:
    """Order a group's units and find the widths it may have.

    Args:
        group: The group.
        scores: Importance of its units [size].
        align: Multiples of so many channels are kept. A unit of several channels counts with all of them.
        min_keep: Share that stays; at least one alignment step does.
        original: Units that the group had before any pruning, which the share refers to.
    """
    step = unit_align(group, align)
    floor = max(step, math.ceil(min_keep * (original or group.size) / step) * step)
    kept = sorted({group.size, *range(floor, group.size, step)}, reverse=True)
    order = np.argsort(scores, kind="stable")
    loss = np.concatenate([[0.0], np.cumsum(np.maximum(scores[order], 0.0))])
    return Track(
        group.name,
        tuple(int(u) for u in order),
        tuple(group.size - k for k in kept if k <= group.size),
        tuple(float(v) for v in loss),
        original or group.size,
    )


def unit_align(group: ChannelGroup, align: int) -> int:
    """Units whose channels together are a multiple of ``align``; for heads one."""
    if group.kind == "heads":
        return 1
    widths = [len(p) for site in (*group.activations, *group.producers) for p in site.positions]
    width = max(widths, default=1) or 1
    return align // math.gcd(align, width)


def allocate(
    tracks: Sequence[Track],
    cost: Cost,
    target: float,
    scope: Scope,
    *,
    where: str,
    whole: float | None = None,
) -> Allocation:
    """Shrink groups until the cost is at most ``target``.

    Args:
        tracks: One for each group of the cost, in its order.
        cost: Starts with every unit kept; holds the result afterwards.
        target: In the cost's unit.
        scope: Whether groups compete or shrink alike.
        where: The option, for the message.
        whole: What shares in the message refer to; the cost now by default.

    Raises:
        UsageError: The target lies below what the floors allow; the message names the smallest share.
    """
    full = whole or cost.value
    reached = _greedy(tracks, cost, target) if scope is Scope.GLOBAL else _uniform(tracks, cost, target)
    if not reached:
        least = math.ceil(1000 * cost.value / full) / 1000
        floors = all(cost.removed[i] == track.stops[-1] for i, track in enumerate(tracks))
        how = "every group at its floor" if floors else "removing all that saves anything"
        raise UsageError(
            f"{target / full:.3f} cannot be reached: {how} leaves {least:.3f}",
            where=where,
            valid=(f"{least:.3f} to 1",),
            hint="Lower min_keep or align, or exclude fewer groups",
        )
    _give_back(tracks, cost, target)
    return result_of(tracks, cost)


def keep_share(tracks: Sequence[Track], cost: Cost, share: float) -> Allocation:
    """Keep the same share of every group, to the nearest width it may have."""
    _set_all(tracks, cost, share)
    return result_of(tracks, cost)


def result_of(tracks: Sequence[Track], cost: Cost) -> Allocation:
    """What the groups hold now."""
    keep = {t.name: sorted(t.order[cost.removed[i] :]) for i, t in enumerate(tracks)}
    return Allocation(keep, cost.value, sum(t.loss[cost.removed[i]] for i, t in enumerate(tracks)))


def _greedy(tracks: Sequence[Track], cost: Cost, target: float) -> bool:
    moves = [_best_move(track, cost, i) for i, track in enumerate(tracks)]
    while cost.value > target:
        best = max(range(len(moves)), key=lambda i: moves[i][0], default=-1)
        if best < 0 or moves[best][1] == 0:
            return False
        cost.remove(best, moves[best][1])
        for other in cost.neighbours[best]:
            moves[other] = _best_move(tracks[other], cost, other)
    return True


def _best_move(track: Track, cost: Cost, index: int) -> tuple[float, int]:
    """Cost saved for the importance lost, and the units to remove; ``(-inf, 0)`` where none helps."""
    done = cost.removed[index]
    at = track.stops.index(done)
    best = (-math.inf, 0)
    for stop in track.stops[at + 1 : at + 1 + LOOK_AHEAD]:
        saved = cost.saved(index, stop - done)
        if saved > 0:
            # Dead units lose nothing: they go first, the ones that save most before the others.
            worth = saved / max(track.loss[stop] - track.loss[done], 1e-30)
            best = max(best, (worth, stop - done))
    return best


def _uniform(tracks: Sequence[Track], cost: Cost, target: float) -> bool:
    _set_all(tracks, cost, 0.0)
    if cost.value > target:
        return False
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        _set_all(tracks, cost, middle)
        low, high = (low, middle) if cost.value > target else (middle, high)
    _set_all(tracks, cost, low)
    return True


def _set_all(tracks: Sequence[Track], cost: Cost, share: float) -> None:
    for index, track in enumerate(tracks):
        wanted = track.size - track.original * share
        # Of two stops at the same distance the one that keeps more.
        stop = min(track.stops, key=lambda s: (abs(s - wanted), s))
        cost.remove(index, stop - cost.removed[index])


def _give_back(tracks: Sequence[Track], cost: Cost, target: float) -> None:
    """Restore blocks, those worth most for their cost first, while the target holds."""

    def gain(index: int) -> tuple[float, int]:
        track, done = tracks[index], cost.removed[index]
        at = track.stops.index(done)
        if at == 0:
            return -math.inf, 0
        back = track.stops[at - 1] - done
        price = -cost.saved(index, back)
        if cost.value + price > target:
            return -math.inf, 0
        return (track.loss[done] - track.loss[done + back]) / max(price, 1e-30), back

    _repeat(gain, cost, len(tracks))


def _repeat(gain: Callable[[int], tuple[float, int]], cost: Cost, groups: int) -> None:
    while groups:
        best = max(((*gain(i), i) for i in range(groups)), key=lambda move: move[0])
        if best[1] == 0:
            return
        cost.remove(best[2], best[1])


def widths(allocation: Allocation, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Kept and original units of every group that lost any."""
    return {n: (len(k), sizes[n]) for n, k in allocation.keep.items() if len(k) < sizes[n]}
