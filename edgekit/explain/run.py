"""The whole of ``edgekit debug``: preprocessing, explanation, repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.base import Sample
from edgekit.errors import UsageError
from edgekit.explain.case import Case, check_feeds, known_inputs
from edgekit.explain.cause import REMEDIES, Cause, Finding, Fix
from edgekit.explain.debug import Explanation, Setting, explain
from edgekit.explain.fix import Repair, repair
from edgekit.explain.inputs import Mismatch, convert, find_mismatch
from edgekit.explain.plain import finite_masks, quantize_plainly
from edgekit.explain.sites import read_sites, read_weights, strip, with_weights
from edgekit.explain.switchboard import Bench
from edgekit.graph import Graph
from edgekit.progress import Reporter

#: Samples that the outputs are judged on: of large inputs, and of inputs below so many bytes.
JUDGED, JUDGED_SMALL, SMALL = 4, 8, 500_000
#: The data's range over that of the codes of an input, or the other way round, from which they do not belong
#: together.
OTHER_SCALE = 8.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and done.

    Attributes:
        case: What was looked at.
        explanation: Of the int8 network.
        findings: All, those of the preprocessing first.
        mismatch: A preprocessing that fits better.
        repair: What ``--fix`` made; None without it.
        repaired: The explanation that the repair began with, where another preprocessing came first.
    """

    case: Case
    explanation: Explanation
    findings: tuple[Finding, ...]
    mismatch: Mismatch | None
    repair: Repair | None
    repaired: Explanation | None = None

    def sentence(self) -> str:
        """The summary."""
        text = self.explanation.sentence()
        if any(f.cause is Cause.PREPROCESSING for f in self.findings):
            text = f"the inputs are not what the network was trained on: first of all repair that. {text}"
        return text

    def to_json(self) -> dict[str, Any]:
        e = self.explanation
        content: dict[str, Any] = {
            "model": self.case.source,
            "target": self.case.target,
            "preprocess": self.case.note,
            "samples": len(self.case.samples),
            "judged": e.samples,
            "summary": self.sentence(),
            "db": e.db,
            "db_without_causes": e.best_db,
            "db_activations": e.activations_db,
            "db_weights": e.weights_db,
            "cosine": e.cosine,
            "cosine_min": e.cosine_min,
            "shares": {str(c): s for c, s in e.shares.items()},
            "findings": [f.to_json() for f in self.findings],
            "layers": [asdict(r) for r in e.rows],
            "preprocessing": None if self.mismatch is None else _mismatch_json(self.mismatch),
            "fix": None,
        }
        if self.repair is not None:
            content["fix"] = _repair_json(self)
        return content


def _mismatch_json(found: Mismatch) -> dict[str, Any]:
    return {
        "better": found.candidate.label,
        "option": found.candidate.option,
        "reasons": list(found.reasons),
        "samples": found.samples,
        "imbalance": found.imbalance,
        "evidence": found.evidence,
    }


def _repair_json(found: Diagnosis) -> dict[str, Any]:
    if found.repair is None:
        return {}
    before = found.repaired or found.explanation
    return {
        "preprocess": found.mismatch.candidate.option if found.repaired and found.mismatch else None,
        "db_before": before.db,
        "db_after": found.repair.noise.db,
        "cosine_before": before.cosine,
        "cosine_after": found.repair.noise.cosine,
        "cosine_min_before": before.cosine_min,
        "cosine_min_after": found.repair.noise.cosine_min,
        "steps": [{**asdict(s), "fix": str(s.fix), "cause": str(s.cause)} for s in found.repair.steps],
    }


def run(case: Case, *, fix: bool = False, threads: int = 0, reporter: Reporter | None = None) -> Diagnosis:
    """Explain a case, and repair it.

    Args:
        case: Of :func:`~edgekit.explain.case.open_case`.
        fix: Whether to repair.
        threads: Samples that run at the same time; 0 is one per core.
        reporter: Tells how far it is.

    Raises:
        UsageError: A QDQ file without its float network cannot be repaired.
        ModelError: The network cannot be used.
        DataError: The samples cannot be used.
    """
    reporter = reporter or Reporter()
    if fix and case.original is None:
        raise UsageError(
            "a QDQ file alone cannot be repaired",
            where="--fix",
            hint="Give its float network with --float FILE",
        )
    check_feeds((*case.samples, *case.against), case.inputs)
    reporter.step("preprocessing")
    mismatch = find_mismatch(
        _float_of(case), case.samples, case.preprocess, threads=threads, progress=reporter.update
    )
    reporter.step("effects of the layers")
    setting = make_setting(case, threads)
    explanation = explain(setting, report=reporter.status)
    findings = (*_of_inputs(case, setting.graph, mismatch), *explanation.findings)
    if not fix:
        return Diagnosis(case, explanation, findings, mismatch, None)
    repaired = None
    if mismatch is not None:
        reporter.step("effects with the other preprocessing")
        case_now = _converted(case, mismatch)
        setting = make_setting(replace(case_now, quantized=None), threads)
        repaired = explain(setting, report=reporter.status)
    else:
        case_now = case
    reporter.step("repairs")
    made = _repair(case_now, setting, repaired or explanation, threads, reporter)
    return Diagnosis(case, explanation, findings, mismatch, made, repaired)


def make_setting(case: Case, threads: int) -> Setting:
    """What :func:`~edgekit.explain.debug.explain` needs; the QDQ graph is made where none was given."""
    feeds = [s.feeds for s in case.samples]
    original, quantized = case.original, case.quantized
    given = quantized is not None or bool(case.against)
    if quantized is None:
        if original is None:
            raise ValueError("a case has a graph")
        original, _ = finite_masks(original)
        known = known_inputs(case.inputs, case.preprocess, case.samples)
        quantized = quantize_plainly(original, case.scheme, feeds, known, threads=threads)
    looked_at = case.against or case.samples
    return Setting(
        quantized,
        original,
        [s.feeds for s in looked_at],
        tuple(s.name for s in looked_at),
        judged(looked_at),
        given,
        threads,
    )


def judged(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A few, evenly spread."""
    size = sum(v.nbytes for v in samples[0].feeds.values())
    count = min(len(samples), JUDGED_SMALL if size < SMALL else JUDGED)
    return [samples[(2 * i + 1) * len(samples) // (2 * count)].feeds for i in range(count)]


def _float_of(case: Case) -> Graph:
    if case.original is not None:
        return case.original
    if case.quantized is None:
        raise ValueError("a case has a graph")
    weights = read_weights(case.quantized, None)
    return strip(with_weights(case.quantized, weights, None, rounded=True))


def _of_inputs(case: Case, quantized: Graph, mismatch: Mismatch | None) -> list[Finding]:
    found = []
    if mismatch is not None:
        option = mismatch.candidate.option
        remedy = REMEDIES[Cause.PREPROCESSING].format(option=option) if option else mismatch.candidate.label
        text = f"'{mismatch.candidate.label}' fits the network better: {'; '.join(mismatch.reasons)}"
        evidence = {**mismatch.evidence, "option": option}
        where = case.inputs[0].name
        found.append(
            Finding(
                Cause.PREPROCESSING, where, "input", text, remedy, evidence=evidence, fixes=(Fix.PREPROCESS,)
            )
        )
    if case.quantized is None:
        return found
    for site in read_sites(quantized):
        if site.op != "input" or site.tensor not in case.samples[0].feeds:
            continue
        values = [s.feeds[site.tensor] for s in case.samples]
        seen = max(max(float(np.abs(v).max()) for v in values), 1e-9)
        reach = max(abs(v) for v in site.range)
        if max(seen / reach, reach / seen) >= OTHER_SCALE:
            low, high = site.range
            text = f"the samples reach {seen:.3g}, but the codes of the input span {low:.3g} to {high:.3g}"
            remedy = "preprocess the samples as those that the network was calibrated on"
            evidence = {"seen": seen, "codes": [low, high]}
            found.append(Finding(Cause.PREPROCESSING, site.tensor, "input", text, remedy, evidence=evidence))
    return found


def _converted(case: Case, mismatch: Mismatch) -> Case:
    graph = _float_of(case)
    samples, against = (
        tuple(convert(mismatch.candidate, s, graph) for s in part) for part in (case.samples, case.against)
    )
    how = mismatch.candidate.preprocess or case.preprocess
    return replace(case, samples=samples, against=against, preprocess=how)


def _repair(
    case: Case, setting: Setting, explanation: Explanation, threads: int, reporter: Reporter
) -> Repair:
    if case.original is None:
        raise ValueError("a repair needs the float graph")
    bench = Bench(
        setting.graph,
        read_sites(setting.graph),
        read_weights(setting.graph, setting.original),
        setting.original,
        setting.judged,
        threads=threads,
    )
    return repair(
        case.original,
        case.scheme,
        bench,
        explanation.findings,
        explanation.ranges,
        [s.feeds for s in (*case.samples, *case.against)],
        known_inputs(case.inputs, case.preprocess, case.samples),
        threads=threads,
        report=reporter.status,
    )


def out_file(out: Path) -> Path:
    """The file to write: ``int8.onnx`` where a folder is named."""
    return out if out.suffix == ".onnx" else out / "int8.onnx"
