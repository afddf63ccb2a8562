"""How much of the answer each group and each block holds, against what removing it saves.

For every group the least important units are masked (zeroed where they are read) at a few ratios, and the
outputs compared with the original's. One entry per group, JSON-ready, for the chart in the report.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph
from edgekit.prune.cost import cost_of
from edgekit.prune.effect import Effect, Feeds
from edgekit.prune.options import Aim, CostKind

if TYPE_CHECKING:
    from edgekit.prune.groups import ChannelGroup, Groups
    from edgekit.target import CostModel

#: Shares of a group's units that are masked.
RATIOS = (0.125, 0.25, 0.5)
Metric = Callable[[Graph], float]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Point:
    """One ratio of one group, or one block left out.

    Attributes:
        removed: Units masked.
        distance: Relative distance of the outputs from the original's; 0 is the same.
        macs: Share of the network's multiply-accumulates that removing them saves.
        latency: Share of its latency, where the target has a cost model; otherwise None.
        metric: The task metric with the units masked, where one was given; otherwise None.
    """

    removed: int
    distance: float
    macs: float
    latency: float | None = None
    metric: float | None = None

    def to_json(self) -> dict[str, Any]:
        # JSON knows no infinity, which is the distance of outputs that are not finite.
        distance = self.distance if np.isfinite(self.distance) else None
        return {"removed": self.removed, "distance": distance, "macs": self.macs, "latency": self.latency,
                "metric": self.metric}  # fmt: skip


def sensitivity(
    graph: Graph,
    groups: Groups,
    scores: Mapping[str, np.ndarray[Any, Any]],
    feeds: Sequence[Feeds],
    *,
    ratios: Sequence[float] = RATIOS,
    exclude: Sequence[str] = (),
    metric: Metric | None = None,
    model: CostModel | None = None,
    align: int = 1,
    blocks: bool = True,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure every group at every ratio, and every block.

    Args:
        graph: The graph.
        groups: Its groups.
        scores: Importance of every unit; groups without scores are left out.
        feeds: Samples.
        ratios: Shares of the units to mask.
        exclude: Shell patterns of group names to leave out.
        metric: The task metric of a graph; it runs once for each ratio of each group.
        model: The target's cost model, for the latency saved.
        align: Widths at which kernels are timed are multiples of it.
        blocks: Whether layers that can be left out are measured too.
        progress: Called with graphs measured and in all.

    Returns:
        Entries ``{"name", "kind", "units", "points": [...]}`` in graph order, blocks last.
    """
    chosen = [
        g for g in groups.groups if g.name in scores and not any(fnmatch.fnmatch(g.name, p) for p in exclude)
    ]
    scale = _Scale(graph, groups, chosen, scores, model, align)
    effect = Effect(graph, feeds)
    entries: list[dict[str, Any]] = []
    total = len(chosen) * len(ratios)
    for index, group in enumerate(chosen):
        points = []
        for ratio in ratios:
            count = min(group.size - 1, max(1, round(ratio * group.size)))
            points.append(scale.point(index, count, effect, metric))
            if progress is not None:
                progress(len(entries) * len(ratios) + len(points), total)
        entries.append(
            {
                "name": group.name,
                "kind": str(group.kind),
                "units": group.size,
                "points": [p.to_json() for p in points],
            }
        )
    return [*entries, *(_block_entries(graph, effect, metric, model) if blocks else [])]


class _Scale:
    """What masking the least important units of one group costs and saves."""

    def __init__(
        self,
        graph: Graph,
        groups: Groups,
        chosen: Sequence[ChannelGroup],
        scores: Mapping[str, np.ndarray[Any, Any]],
        model: CostModel | None,
        align: int,
    ) -> None:
        self.graph, self.groups, self.chosen = graph, groups, chosen
        self.orders = {g.name: np.argsort(scores[g.name], kind="stable").tolist() for g in chosen}
        self.macs = cost_of(graph, chosen, self.orders, Aim.MACS)
        self.latency = (
            None
            if model is None
            else cost_of(
                graph, chosen, self.orders, Aim.LATENCY, kind=CostKind.FLOAT, model=model, align=align
            )
        )

    def point(self, index: int, count: int, effect: Effect, metric: Metric | None) -> Point:
        from edgekit.prune.apply import mask
        from edgekit.prune.plan import make_plan

        name = self.chosen[index].name
        kept = sorted(self.orders[name][count:])
        masked = mask(self.graph, make_plan(self.graph, self.groups, {name: kept}))
        return Point(
            count,
            effect.distance(masked),
            self.macs.saved(index, count) / max(self.macs.value, 1e-12),
            None if self.latency is None else self.latency.saved(index, count) / self.latency.value,
            None if metric is None else metric(masked),
        )


def _block_entries(
    graph: Graph, effect: Effect, metric: Metric | None, model: CostModel | None
) -> list[dict[str, Any]]:
    from edgekit.prune.blocks import bypass_blocks, measure_blocks
    from edgekit.stats import count

    whole = None if model is None else model.predict(graph).value
    entries = []
    for drop in measure_blocks(graph, effect, lambda g: float(count(g).macs)):
        without = bypass_blocks(graph, [drop.block]) if metric is not None or model is not None else None
        latency = value = None
        if without is not None and model is not None and whole:
            latency = (whole - model.predict(without).value) / whole
        if without is not None and metric is not None:
            value = metric(without)
        point = Point(1, drop.distance, drop.saved, latency, value)
        entries.append({"name": drop.block.output, "kind": "block", "units": 1, "points": [point.to_json()]})
    return entries
