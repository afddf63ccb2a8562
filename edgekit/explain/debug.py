"""Why an int8 network answers differently: from a float graph, its QDQ form and samples to a ranked list.

The line: sites -> scan -> ranges of the worst -> hypotheses -> what leaving them out gains -> sentence. Sites
are scanned in blocks: only a block that puts noise on the outputs is looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgekit.explain.cause import REMEDIES, Cause, Finding, Fix
from edgekit.explain.causes import Ranges, choose, flat_tensors, hypotheses
from edgekit.explain.seen import look
from edgekit.explain.sites import Unit, Weight, group_sites, read_sites, read_weights
from edgekit.explain.switchboard import Bench, Board, Noise, decibels
from edgekit.explain.weights import find_saturation, weight_findings
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Range
from edgekit.quantize.observe import observe
from edgekit.session import Arrays

Array = np.ndarray[Any, Any]

#: Units that one session has switches for while scanning, and that are rounded together at first.
SEGMENT, BLOCK = 48, 8
#: Noise from which a unit is looked into (30 dB), and named (27 dB).
WORTH, NAMED = 1e-3, 2e-3
#: Share of the worst unit's noise below which a unit is not looked into.
BESIDE_WORST = 0.05
#: Units that are looked into, the worst first.
LOOKED_INTO = 16
#: Outputs above this are healthy whatever the rounding, in dB.
HEALTHY_DB = 20.0

#: Causes that lie in weights.
_WEIGHTS = (Cause.PER_TENSOR, Cause.ONE_SCALE, Cause.WEIGHTS)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What is explained.

    Attributes:
        graph: The QDQ graph.
        original: The float graph, where it is known.
        feeds: All samples, for ranges.
        names: Their names.
        judged: Those that the outputs are compared on.
        given: Whether the QDQ graph's ranges come from elsewhere.
        threads: Samples that run at the same time; 0 is one per core.
    """

    graph: Graph
    original: Graph | None
    feeds: Sequence[Arrays]
    names: tuple[str, ...]
    judged: Sequence[Arrays]
    given: bool
    threads: int = 0


@dataclass(frozen=True)
class Row:
    """The effect of one unit.

    Attributes:
        where: Its tensor, or the Concat that it meets in.
        op: Type of the node.
        alone_db: Signal-to-noise ratio of the outputs with it alone rounded.
    """

    where: str
    op: str
    alone_db: float


@dataclass(frozen=True)
class Explanation:
    """The answer.

    Attributes:
        db: Signal-to-noise ratio of the int8 outputs.
        best_db: The same with everything that is named left in float.
        activations_db: With the weights in float.
        weights_db: With the activations in float; None where the float weights are not known.
        cosine: Of the outputs to those in float, mean.
        cosine_min: The worst.
        findings: Worst first.
        shares: What each cause has in the loss, 0 to 1, by cause; they add up to 1.
        rows: The effect of every unit that was measured alone, worst first.
        samples: Samples that the outputs were compared on.
        ranges: Ranges that repairs use, by tensor.
        saturation: Share of the sums that saturate without VNNI, by node.
    """

    db: float
    best_db: float
    activations_db: float
    weights_db: float | None
    cosine: float
    cosine_min: float
    findings: tuple[Finding, ...]
    shares: dict[Cause, float]
    rows: tuple[Row, ...]
    samples: int
    ranges: dict[str, Range] = field(default_factory=dict)
    saturation: dict[str, float] = field(default_factory=dict)

    @property
    def loss_db(self) -> float:
        return max(self.best_db - self.db, 0.0)

    def sentence(self) -> str:
        """The summary."""
        if not self.shares or self.loss_db < 0.5:
            if self.db >= HEALTHY_DB:
                return f"int8 keeps {self.db:.1f} dB: nothing is wrong with it"
            return f"int8 keeps {self.db:.1f} dB; no single cause stands out: {Cause.SPREAD}"
        parts = sorted(self.shares.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{share:.0%} of it is {cause}" for cause, share in parts if share >= 0.05)
        return (
            f"int8 loses {self.loss_db:.1f} dB ({self.db:.1f} where {self.best_db:.1f} dB are left without "
            f"what is named); {listed}"
        )


def explain(setting: Setting, *, report: Report | None = None) -> Explanation:
    """Rank the sites of a QDQ graph by what they do to the outputs and name the causes.

    Raises:
        ModelError: Nothing in the graph is quantized, or ONNX Runtime refuses it.
    """
    return _Line(setting, report or (lambda text: None)).run()


class _Line:
    def __init__(self, setting: Setting, report: Report) -> None:
        self.setting, self.report = setting, report
        self.sites = read_sites(setting.graph)
        self.weights = read_weights(setting.graph, setting.original)
        self.units = group_sites(setting.graph, self.sites)
        self.bench = Bench(
            setting.graph, self.sites, self.weights, setting.original, setting.judged, threads=setting.threads
        )

    def run(self) -> Explanation:
        self.report("int8 as it is")
        full = self.bench.full()
        activations = self.bench.board((), others=True, rounded=False).noise(())
        known = any(w.original is not None for w in self.weights)
        weights = self.bench.board((), others=False, rounded=True).noise(()) if known else None
        scanned = self._scan()
        worst = [(u, n) for u, n in scanned if n.mean >= WORTH][:LOOKED_INTO]
        found, ranges = self._look_into([u for u, _ in worst])
        self.report("weights")
        found += weight_findings(
            self.bench, self.weights, worth=NAMED, share=weights.mean if weights is not None else 0.0
        )
        found.sort(key=lambda f: f.alone_db if f.alone_db is not None else 0.0)
        found, best, shares = self._gains(found, full)
        saturation = find_saturation(self.setting.graph, self.sites, self.weights, self.setting.judged[0])
        found += _saturating(saturation.nodes, self.weights, here=saturation.here)
        rows = tuple(Row(u.where, u.op, n.db) for u, n in scanned)
        return Explanation(
            full.db,
            best,
            activations.db,
            weights.db if weights is not None else None,
            full.cosine,
            full.cosine_min,
            tuple(found),
            shares,
            rows,
            len(self.setting.judged),
            ranges,
            saturation.nodes,
        )

    def _scan(self) -> list[tuple[Unit, Noise]]:
        """The noise of every unit that puts some on the outputs, worst first."""
        found: list[tuple[Unit, Noise]] = []
        worst = 0.0
        for start in range(0, len(self.units), SEGMENT):
            segment = self.units[start : start + SEGMENT]
            self.report(f"layers {start + 1} to {start + len(segment)} of {len(self.units)}")
            board = self.bench.board(_keys(segment), others=False, rounded=False)
            for first in range(0, len(segment), BLOCK):
                block = segment[first : first + BLOCK]
                together = board.noise(_keys(block))
                if together.mean < max(WORTH, BESIDE_WORST * worst):
                    continue
                for unit in block:
                    noise = board.noise(_keys([unit]))
                    worst = max(worst, noise.mean)
                    found.append((unit, noise))
        least = max(1e-4, BESIDE_WORST * worst / 10)
        return sorted(((u, n) for u, n in found if n.mean >= least), key=lambda pair: -pair[1].mean)

    def _look_into(self, units: Sequence[Unit]) -> tuple[list[Finding], dict[str, Range]]:
        if not units:
            return [], {}
        self.report(f"ranges of the worst {len(units)}")
        setting, plain = self.setting, self.bench.plain
        values = plain.values()
        tensors = [s.tensor for u in units for s in u.sites if s.tensor in values]
        seen = look(plain, tensors, setting.feeds, threads=setting.threads)
        inner = [t for t in tensors if not values[t].is_graph_input()]
        histograms = observe(plain, inner, setting.feeds, threads=setting.threads).histograms if inner else {}
        known = Ranges(seen, histograms, flat_tensors(plain), setting.names, setting.given)
        board = self.bench.board(_keys(units), others=False, rounded=False)
        found: list[Finding] = []
        ranges: dict[str, Range] = {}
        for number, unit in enumerate(units, 1):
            self.report(f"cause {number} of {len(units)}: '{unit.where}'")
            finding, more = _explain(unit, board, known)
            if finding is not None:
                found.append(finding)
                ranges.update(more)
        return found, ranges

    def _gains(
        self, found: Sequence[Finding], full: Noise
    ) -> tuple[list[Finding], float, dict[Cause, float]]:
        """What leaving each finding out gains alone; each cause's share when they go one after the other."""
        self.report("what each costs")
        by_where = {u.where: u for u in self.units}
        acting = [f for f in found if f.where in by_where and f.alone_db is not None]
        keys = {f.where: set(_keys([by_where[f.where]])) for f in acting}
        everything = {k for found_keys in keys.values() for k in found_keys}
        board = self.bench.board(sorted(everything), others=True, rounded=True)
        single = {w: board.noise(everything - k).db - full.db for w, k in keys.items()}
        shares: dict[Cause, float] = {}
        left, before = set(everything), full.db
        for finding in acting:
            left -= keys[finding.where]
            after = board.noise(left).db
            shares[finding.cause] = shares.get(finding.cause, 0.0) + max(after - before, 0.0)
            before = max(before, after)
        before = self._without_weights(found, sorted(left), before, shares)
        total = sum(shares.values())
        shares = {c: s / total for c, s in shares.items()} if total > 0 else {}
        return [replace(f, effect_db=single.get(f.where)) for f in found], before, shares

    def _without_weights(
        self, found: Sequence[Finding], rounding: Sequence[str], before: float, shares: dict[Cause, float]
    ) -> float:
        """What the float weights of the nodes that were named gain on top."""
        named = [f for f in found if f.cause in _WEIGHTS]
        if not named or all(w.original is None for w in self.weights):
            return before
        sites = [s.key for s in self.sites]
        acting = {s.where for s in found if s.cause not in _WEIGHTS}
        out = set(_keys([u for u in self.units if u.where in acting])) - set(rounding)
        after = self.bench.without({f.where for f in named}, set(sites) - out).db
        shares[named[0].cause] = shares.get(named[0].cause, 0.0) + max(after - before, 0.0)
        return max(after, before)


def _keys(units: Sequence[Unit]) -> list[str]:
    return [s.key for u in units for s in u.sites]


def _explain(unit: Unit, board: Board, known: Ranges) -> tuple[Finding | None, dict[str, Range]]:
    before = board.noise(_keys([unit]))
    if before.mean < NAMED:
        return None, {}
    tensors = tuple(dict.fromkeys(s.tensor for s in unit.sources))
    chosen = choose(unit, board, before, hypotheses(unit, known))
    if chosen is None:
        text = f"8 bits in it alone put {before.mean:.1%} noise on the outputs"
        evidence: dict[str, Any] = {"noise": before.mean}
        cause = Cause.ROUNDING
        fixes: tuple[Fix, ...] = (Fix.RAISE,)
        ranges: dict[str, Range] = {}
    else:
        hypothesis, after = chosen
        cause, text, fixes, ranges = hypothesis.cause, hypothesis.text, hypothesis.fixes, hypothesis.ranges
        evidence = {**hypothesis.evidence, "noise": before.mean, "noise_without_cause": after.mean}
        text += f"; alone {decibels(before.typical):.1f} dB, without that {decibels(after.typical):.1f} dB"
    return (
        Finding(
            cause,
            unit.where,
            unit.op,
            text,
            REMEDIES[cause],
            alone_db=before.db,
            evidence=evidence,
            tensors=tensors,
            fixes=fixes,
        ),
        ranges,
    )


def _saturating(nodes: Mapping[str, float], weights: Sequence[Weight], *, here: bool) -> list[Finding]:
    if not nodes:
        return []
    ops = {w.node: w.op for w in weights}
    worst = max(nodes, key=lambda n: nodes[n])
    where = "on this machine" if here else "on x86 CPUs without VNNI; this machine is none"
    others = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
    text = f"{nodes[worst]:.1%} of its sums{others} exceed 16 bits {where}"
    evidence = {"share": nodes[worst], "nodes": dict(nodes), "here": here}
    remedy = REMEDIES[Cause.SATURATION]
    return [
        Finding(Cause.SATURATION, worst, ops[worst], text, remedy, evidence=evidence, fixes=(Fix.SEVEN_BITS,))
    ]
