"""Structured pruning of a graph: rank the units, decide how many each group keeps, remove the others.

The line: drop blocks -> (rank -> allocate -> apply -> recover) x steps -> verify -> measure. Every step's
plan is composed with those before, so that the result is one plan on the original.
"""

from __future__ import annotations

import fnmatch
import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data.base import spread
from edgekit.errors import UsageError
from edgekit.graph import Graph, Refusal
from edgekit.prune.allocate import allocate, keep_share, make_track, widths
from edgekit.prune.cost import Cost, cost_of
from edgekit.prune.figures import Timing, can_measure, figures, measure, open_cost_model, slower
from edgekit.prune.importance import importance
from edgekit.prune.options import DEFAULT_ALIGN, Aim, Importance, PruneOptions, PruneResult, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekit.data.base import Samples
    from edgekit.prune.groups import ChannelGroup, Groups
    from edgekit.prune.plan import PruningPlan
    from edgekit.target import CostModel, Target
    from edgekit.train.match import Match

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Progress = Callable[[int, int | None], None]
#: Given the pruned graph, the original and the plan that leads from one to the other; returns the pruned
#: graph with other weights.
Recover = Callable[[Graph, Graph, "PruningPlan"], Graph]
#: Samples on which blocks are compared.
_BLOCK_SAMPLES = 16
#: Times that a latency target is tightened because the measured latency misses it, and by how much it may.
_CORRECTIONS = 2
_MISS = 0.03


def prune(
    graph: Graph,
    samples: Samples,
    options: PruneOptions,
    target: Target | None = None,
    *,
    match: Match | None = None,
    progress: Progress | None = None,
    status: Callable[[str], None] | None = None,
    recover: Recover | None = None,
) -> PruneResult:
    """Remove what matters least until the target figure is reached.

    Args:
        graph: A captured float graph; stays as it is.
        samples: Unlabelled inputs. Not read for magnitudes, unless blocks are dropped.
        options: What to reach and how.
        target: Where the network will run: its alignment, and its cost for ``latency``.
        match: What the outputs are; by default guessed.
        progress: Called while samples are gone through.
        status: Called with a line on what was found.
        recover: Called after each step but the last one, which the caller recovers.

    Raises:
        UsageError: The share cannot be reached, the target has no cost model for ``latency``, or nothing in
            the network can be pruned.
        DataError: There are no samples.
        ModelError: The pruned graph differs from the masked original.
        ToolError: A latency measurement failed.
    """
    return _Line(graph, samples, options, target, match, progress, status, recover).run()


@dataclass
class _Line:
    original: Graph
    samples: Samples
    options: PruneOptions
    target: Target | None
    match: Match | None
    progress: Progress | None
    status: Callable[[str], None] | None
    recover: Recover | None
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Array] = field(default_factory=dict)
    model: CostModel | None = None
    timing: Timing | None = None
    _feeds: list[Feeds] = field(default_factory=list)

    def run(self) -> PruneResult:
        from edgekit.prune.apply import verify
        from edgekit.prune.groups import find_groups
        from edgekit.prune.plan import make_plan

        options = self.options
        if options.aim is Aim.LATENCY:
            with self._clock("latency table"):
                self.model = open_cost_model(self.original, options, self.target)
            self.warnings += self.model.notes
        with self._clock("groups"):
            self.groups = find_groups(self.original)
        self.refused += self.groups.locked
        self.sizes = {g.name: g.size for g in self.groups}
        self.work, self.plan = self.original, make_plan(self.original, self.groups, {})
        self._drop_blocks()
        for step in range(1, options.steps + 1 if options.aim is not None else 1):
            self._step(step)
        if options.verify:
            with self._clock("verification"):
                verify(self.original, self.plan)
        return self._result()

    @property
    def align(self) -> int:
        if self.options.align is not None:
            return self.options.align
        return (self.target.profile.align if self.target is not None else 0) or DEFAULT_ALIGN

    @property
    def aim(self) -> Aim:
        return self.options.aim or Aim.MACS

    def _drop_blocks(self) -> None:
        """Leave out blocks, measured one by one."""
        if not self.options.drop_layers and self.options.drop_to is None:
            return
        from edgekit.prune.apply import apply
        from edgekit.prune.blocks import drop_blocks
        from edgekit.prune.effect import Effect
        from edgekit.prune.plan import DroppedBlock, make_plan

        with self._clock("blocks"):
            chosen, _ = drop_blocks(
                self.original,
                Effect(self.original, self._read()[:_BLOCK_SAMPLES], self.match),
                lambda graph: self._cost(graph, [], {}).value,
                count=self.options.drop_layers,
                share=self.options.drop_to,
                exclude=self.options.exclude,
                progress=self.progress,
                status=self.status,
            )
        dropped = [DroppedBlock(input=d.block.input, output=d.block.output) for d in chosen]
        self.plan = make_plan(self.original, self.groups, {}, dropped)
        self.work = apply(self.original, self.plan)
        self.history += [{"dropped": d.to_json()} for d in chosen]

    def _step(self, step: int) -> None:
        """Rank, allocate and remove once."""
        groups = self.groups if self.work is self.original else _find_groups(self.work)
        with self._clock("importance"):
            scores = self._scores(groups)
        chosen = self._chosen(groups, scores)
        # Equal factors: each step removes the same share of what the one before has left.
        share = self.options.share ** (step / self.options.steps)
        before, wanted = (self.work, self.plan), share
        for _ in range(_CORRECTIONS + 1):
            with self._clock("allocation"):
                entry = self._remove(before, groups, chosen, scores, wanted)
            self.history.append({"step": step, "target": share, **entry})
            if self.status is not None:
                self.status(f"step {step} of {self.options.steps}: {self.aim.value} {entry['reached']:.3f}")
            excess = self._excess(step, share)
            if excess is None:
                break
            wanted /= excess
        if self.recover is not None and step < self.options.steps:
            with self._clock("recovery"):
                self.work = self.recover(self.work, self.original, self.plan)

    def _remove(
        self,
        before: tuple[Graph, PruningPlan],
        groups: Groups,
        chosen: Sequence[ChannelGroup],
        scores: Mapping[str, Array],
        share: float,
    ) -> dict[str, Any]:
        """Bring ``before`` down to a share of the original's figure."""
        from edgekit.prune.apply import apply
        from edgekit.prune.plan import compose, make_plan

        graph, plan = before
        tracks = [
            make_track(
                g,
                scores[g.name],
                align=self.align,
                min_keep=self.options.min_keep,
                original=self.sizes.get(g.name),
            )
            for g in chosen
        ]
        cost = self._cost(graph, chosen, {t.name: t.order for t in tracks})
        scope = self.options.chosen_scope
        whole = self._whole({t.name for t in tracks})
        if self.aim is Aim.KEEP and scope is Scope.UNIFORM:
            found = keep_share(tracks, cost, share)
        else:
            found = allocate(tracks, cost, share * whole, scope, where=self.aim.value, whole=whole)
        latest = make_plan(graph, groups, found.keep)
        self.plan = compose(plan, latest) if graph is not self.original else latest
        self.work = apply(graph, latest)
        shrunk = widths(found, {t.name: t.size for t in tracks})
        removed = {name: size - kept for name, (kept, size) in shrunk.items()}
        return {"reached": found.cost / whole, "loss": found.loss, "removed": removed}

    def _whole(self, names: set[str]) -> float:
        """The original's figure."""
        if self.aim is Aim.KEEP:
            return float(sum(self.sizes.get(name, 0) for name in names))
        return float(self._cost(self.original, [], {}).value)

    def _cost(
        self, graph: Graph, groups: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]]
    ) -> Cost:
        kind = self.options.cost_kind
        return cost_of(graph, groups, orders, self.aim, kind=kind, model=self.model, align=self.align)

    def _excess(self, step: int, share: float) -> float | None:
        """Factor by which the measured latency misses the aim; None where it does not, or is unknown."""
        if self.aim is not Aim.LATENCY or step < self.options.steps or not self._can_measure():
            return None
        with self._clock("latency"):
            self.timing = measure(self.original, self.work, self.options, self.target)
        if not self.timing.steady:
            self.history[-1]["measured"] = None  # nothing to correct by: other work decided the figures
            return None
        left = self.timing.share
        self.history[-1]["measured"] = left
        return left / share if left > share * (1.0 + _MISS) else None

    def _can_measure(self) -> bool:
        return self.options.measure and self.target is not None and can_measure(self.target)

    def _scores(self, groups: Groups) -> dict[str, Array]:
        method = self.options.importance
        feeds = self._read() if method in (Importance.FISHER, Importance.ACTIVATION) else []
        scores = importance(
            self.work,
            groups,
            method,
            feeds,
            self.options.seed,
            projections=self.options.projections,
            match=self.match,
            teacher=None if self.work is self.original else self.original,
            progress=self.progress,
        )
        if not self.scores:
            self.scores = scores
            without = [g.name for g in groups if g.name not in scores]
            self.refused += [Refusal(name, "no BatchNormalization follows it") for name in without]
        return scores

    def _chosen(self, groups: Groups, scores: Mapping[str, Array]) -> list[ChannelGroup]:
        """Groups that may shrink."""
        patterns = self.options.exclude
        excluded = [g.name for g in groups if any(fnmatch.fnmatch(g.name, p) for p in patterns)]
        if groups is self.groups:
            self.refused += [Refusal(name, "excluded") for name in excluded]
            ends = [v.name or "" for node in self.work.nodes for v in node.outputs]
            for pattern in patterns:
                if not any(fnmatch.fnmatch(name, pattern) for name in (*(g.name for g in groups), *ends)):
                    names = [g.name for g in groups]
                    raise UsageError(f"'{pattern}' fits no group", where="exclude", valid=names[:12])
        chosen = [g for g in groups if g.name in scores and g.name not in excluded]
        if not chosen:
            reasons = "; ".join(f"{r.where}: {r.reason}" for r in self.refused[:3])
            raise UsageError("nothing in the network can be pruned", where="prune", hint=reasons)
        return chosen

    def _read(self) -> list[Feeds]:
        if not self._feeds:
            with self._clock("samples"):
                self._feeds = read_feeds(self.samples, self.options.samples)
        return self._feeds

    def _result(self) -> PruneResult:
        kind = self.options.cost_kind
        before, after = figures(self.original, kind), figures(self.work, kind)
        if self._can_measure():
            with self._clock("latency"):
                timing = self.timing or measure(self.original, self.work, self.options, self.target)
            self.warnings += timing.notes
            if timing.steady:
                before["latency"], after["latency"] = timing.before, timing.after
                self.warnings += slower(timing.before, timing.after)
        if "latency" not in before and self.model is not None:
            before["latency"], after["latency"] = (self.model.predict(g) for g in (self.original, self.work))
        reached = {name: after[name].value / before[name].value for name in before if before[name].value}
        kept = sum(len(self.plan.groups.get(name, range(size))) for name, size in self.sizes.items())
        reached["keep"] = kept / max(1, sum(self.sizes.values()))
        return PruneResult(
            graph=self.work,
            plan=self.plan,
            groups=self.groups,
            importance=self.scores,
            before=before,
            after=after,
            reached=reached,
            refused=tuple(self.refused),
            warnings=tuple(dict.fromkeys(self.warnings)),
            history=tuple(self.history),
            seconds=self.seconds,
        )

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def read_feeds(samples: Samples, count: int) -> list[Feeds]:
    """The inputs of ``count`` samples, spread over all of them where their number is known, else the first
    ones.

    Raises:
        DataError: There are none.
    """
    if samples.count is None:
        return [s.feeds for s in itertools.islice(samples, count)]
    wanted = set(spread(samples.count, count))
    feeds = [s.feeds for i, s in enumerate(samples) if i in wanted]
    # Unreadable samples are skipped, so that the last positions may not exist.
    return feeds or [s.feeds for s in itertools.islice(samples, count)]


def _find_groups(graph: Graph) -> Groups:
    from edgekit.prune.groups import find_groups

    return find_groups(graph)
