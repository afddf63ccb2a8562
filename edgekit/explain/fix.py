"""Repairing what was named, one cause after the other, by means that the quantizer has.

Each repair is measured on the outputs and kept when it gains; else the next one that fits the cause is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgekit.explain.cause import Cause, Finding, Fix
from edgekit.explain.switchboard import Bench, Noise
from edgekit.graph import Graph
from edgekit.passes.bound_masks import bound_masks
from edgekit.quantize.bias import correct_biases, correctable
from edgekit.quantize.calibrators import Calibrator, Range
from edgekit.quantize.equalize import equalize, find_pairs
from edgekit.quantize.observe import Calibration, observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.probe import channel_means
from edgekit.quantize.qdq import all_weight_scales, insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.scheme import Scheme
from edgekit.session import Arrays

#: Gain in dB from which a repair is kept.
GAIN_DB = 0.1
#: Share of what a finding costs from which a repair of it is enough, so that no other is tried.
ENOUGH = 0.5
#: Repairs that are kept whatever the outputs say: their gain is elsewhere.
_ANYWAY = (Fix.BOUND, Fix.SEVEN_BITS)
#: Samples that channel means are taken from.
MEANS = 16


@dataclass(frozen=True)
class Step:
    """One repair that was tried.

    Attributes:
        fix: What was done.
        cause: Because of what.
        where: Where.
        db: Signal-to-noise ratio of the outputs with it.
        gain_db: Over the steps kept before.
        kept: Whether it is part of the result.
    """

    fix: Fix
    cause: Cause
    where: str
    db: float
    gain_db: float
    kept: bool


@dataclass(frozen=True)
class Repair:
    """The repaired network.

    Attributes:
        graph: The QDQ graph.
        noise: Of its outputs.
        steps: What was tried, in order.
    """

    graph: Graph
    noise: Noise
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _State:
    work: Graph
    raised: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()
    chosen: Mapping[str, Range] = field(default_factory=dict)
    calibrator: Calibrator = Calibrator.MINMAX
    seven_bits: frozenset[str] = frozenset()
    biases: bool = False


def repair(
    graph: Graph,
    scheme: Scheme,
    bench: Bench,
    findings: Sequence[Finding],
    ranges: Mapping[str, Range],
    feeds: Sequence[Arrays],
    inputs: Mapping[str, Range],
    *,
    threads: int = 0,
    report: Callable[[str], None] | None = None,
) -> Repair:
    """Repair the findings, the worst first.

    Args:
        graph: The float graph, as it is quantized.
        scheme: The target's number formats.
        bench: Measures against the float answers.
        findings: What was named.
        ranges: Ranges of single tensors that the findings suggest.
        feeds: The samples to calibrate on; those that stand for evaluation data included.
        inputs: Ranges of graph inputs that are known.
        threads: Samples that run at the same time; 0 is one per core.
        report: Told what is done.
    """
    line = _Repairs(graph, scheme, bench, dict(ranges), feeds, dict(inputs), threads)
    return line.run(findings, report or (lambda text: None))


class _Repairs:
    def __init__(
        self,
        graph: Graph,
        scheme: Scheme,
        bench: Bench,
        ranges: dict[str, Range],
        feeds: Sequence[Arrays],
        inputs: dict[str, Range],
        threads: int,
    ) -> None:
        self.scheme, self.bench, self.ranges = scheme, bench, ranges
        self.feeds, self.inputs, self.threads = feeds, inputs, threads
        self.start = _State(graph)
        self._calibrated: list[tuple[Graph, Calibration]] = []
        self._means: list[tuple[Graph, dict[str, Any]]] = []

    def run(self, findings: Sequence[Finding], report: Callable[[str], None]) -> Repair:
        state, graph = self.start, self._build(self.start)
        noise = self.bench.noise_of(graph)
        steps: list[Step] = []
        general = [
            Finding(Cause.SPREAD, "network", "", "", "", fixes=(Fix.CALIBRATOR,)),
            Finding(Cause.SPREAD, "network", "", "", "", fixes=(Fix.BIASES,)),
        ]
        for finding in (*findings, *general):
            if finding.cause is Cause.SATURATION and not finding.evidence.get("here"):
                continue
            tried: list[tuple[_State, Graph, Noise]] = []
            first = len(steps)
            for fix in finding.fixes:
                report(f"{fix}: '{finding.where}'")
                changed = self._changed(state, fix, finding)
                if changed is None or changed == state:
                    continue
                built = self._build(changed)
                found = self.bench.noise_of(built)
                gain = found.db - noise.db
                steps.append(Step(fix, finding.cause, finding.where, found.db, gain, kept=False))
                tried.append((changed, built, found))
                if gain >= max(GAIN_DB, ENOUGH * (finding.effect_db or 0.0)) or fix in _ANYWAY:
                    break
            best = self._best(tried, steps[first:], noise)
            if best is not None:
                state, graph, noise = tried[best]
                steps[first + best] = replace(steps[first + best], kept=True)
        return Repair(graph, noise, tuple(steps))

    def _best(
        self, tried: Sequence[tuple[_State, Graph, Noise]], steps: Sequence[Step], noise: Noise
    ) -> int | None:
        """The repair to keep; None when none gains."""
        for number, step in enumerate(steps):
            if step.fix in _ANYWAY:
                return number
        gaining = [i for i, (_, _, found) in enumerate(tried) if found.db >= noise.db + GAIN_DB]
        return max(gaining, key=lambda i: tried[i][2].db) if gaining else None

    def _changed(self, state: _State, fix: Fix, finding: Finding) -> _State | None:
        """The state with a repair; None where that cannot be done."""
        if fix is Fix.APART:
            return replace(state, apart=state.apart | {finding.where})
        if fix is Fix.CUT:
            cut = {t: self.ranges[t] for t in finding.tensors if t in self.ranges}
            return replace(state, chosen={**state.chosen, **cut}) if cut else None
        if fix is Fix.BOUND:
            bounded = bound_masks(state.work)
            return replace(state, work=bounded) if bounded.history[-1].details["bounded"] else None
        if fix is Fix.EQUALIZE:
            return self._equalized(state, finding)
        if fix is Fix.RAISE:
            return self._raised(state, finding)
        if fix is Fix.CALIBRATOR:
            return replace(state, calibrator=Calibrator.MSE)
        if fix is Fix.SEVEN_BITS:
            return replace(state, seven_bits=frozenset(finding.evidence["nodes"]))
        if fix is Fix.BIASES:
            return replace(state, biases=True)
        # Scales for each channel, and ranges that hold all data, are how the repaired graph begins.
        return None

    def _equalized(self, state: _State, finding: Finding) -> _State | None:
        able = {p.tensor for p in find_pairs(state.work)} & set(finding.tensors)
        if not able:
            return None
        work = equalize(state.work, self._calibration(state.work).histograms, sorted(able))
        if not work.history[-1].details["raised"]:
            return None
        chosen = {t: r for t, r in state.chosen.items() if not any(t.startswith(a) for a in able)}
        return replace(state, work=work, chosen=chosen)

    def _raised(self, state: _State, finding: Finding) -> _State | None:
        outputs = {str(n.name): str(n.outputs[0].name) for n in state.work.nodes}
        # Of a Concat, or a node with weights, what it makes; of a tensor, itself.
        made = outputs.get(finding.where)
        tensors = (made,) if made is not None else finding.tensors
        more = tuple(dict.fromkeys((*state.raised, *tensors)))
        return replace(state, raised=more) if len(more) <= self.scheme.max_raised else None

    def _calibration(self, work: Graph) -> Calibration:
        for known, found in self._calibrated:
            if known is work:
                return found
        wanted = unknown_ranges(work, self.scheme, make_plan(work, self.scheme), self.inputs)
        # Branches are equalized towards the largest channel of the Concat, which needs no range of its own.
        joined = [p.joined for p in find_pairs(work) if p.joined is not None]
        found = observe(work, [*wanted, *joined], self.feeds, threads=self.threads)
        self._calibrated.append((work, found))
        return found

    def _build(self, state: _State) -> Graph:
        work, scheme = state.work, self.scheme
        plan = make_plan(work, scheme, raised=state.raised, apart=state.apart)
        options = RangeOptions(
            state.calibrator,
            tails=state.calibrator is not Calibrator.MINMAX,
            inputs=self.inputs,
            chosen=dict(state.chosen),
        )
        params = choose_params(work, plan, scheme, self._calibration(work), options)
        scales = all_weight_scales(work, scheme)
        if state.biases:
            tensors = list(dict.fromkeys(correctable(work, plan).values()))
            step = max(1, len(self.feeds) // MEANS)
            means = channel_means(work, tensors, self.feeds[::step], threads=self.threads)
            work = correct_biases(work, plan, scheme, means, None, scales)
        scales = {n: s * 2 if n in state.seven_bits else s for n, s in scales.items()}
        return insert_qdq(work, plan, params, scheme, scales)
