"""What a report says in short: the verdict and the table float | int8. Both views are built on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgekit.report.compare import (
    INCOMPARABLE,
    NOTABLE_LOSS,
    SAME,
    SEVERE_LOSS,
    cosine_label,
    difference,
    file_size,
    joined,
    loss_share,
    ratio,
    score_change,
)
from edgekit.report.numbers import Figure, figure, finite, items, signed, significant, spread_figure, table
from edgekit.report.stages import STAGES, Cell, Stage, Stages, stages


@dataclass(frozen=True)
class Row:
    """One line of the table float | int8.

    Attributes:
        label: What the figure is.
        float_: The float network's figure.
        int8: The int8 network's figure.
        change: From float to int8, in words.
        tone: ``good``, ``bad`` or empty: how to take the change.
        detail: True for a line that belongs to the one above.
        page_only: True for a line that only the HTML page has room to explain.
    """

    label: str
    float_: Figure | None
    int8: Figure | None
    change: str = ""
    tone: str = ""
    detail: bool = False
    page_only: bool = False


@dataclass(frozen=True)
class Verdict:
    """One sentence on a target.

    Attributes:
        target: The target's name.
        text: The sentence.
        tone: ``good``, ``warn`` or ``bad``.
        detail: Of a compressed network: how much each step of the line brought.
    """

    target: str
    text: str
    tone: str
    detail: str = ""


@dataclass(frozen=True)
class BudgetLine:
    """One limit of the recipe and what came of it."""

    name: str
    limit: str
    value: str
    ok: bool


def rows(target: dict[str, Any]) -> list[Row]:
    """The table float | int8 of one target; figures that the report lacks are left out."""
    compared = [] if _compares_outputs(target) else _parity_rows(target)  # the task's rows say the same
    found = [*_task_rows(target), *_latency_rows(target), *_size_rows(target), *compared]
    return [row for row in found if row.float_ is not None or row.int8 is not None]


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """One sentence for each target; a compressed network is compared with the original float.

    A missed budget is part of the verdict of a report with one target.
    """
    compressed = bool(table(report.get("compress")))
    found = [_verdict(target, compressed=compressed) for target in items(report.get("targets"))]
    missed = [line.name.lower() for line in budget_lines(report) if not line.ok]
    if len(found) == 1 and missed:
        text = f"{found[0].text} It misses the budget for {joined(missed)}."
        return [replace(found[0], text=text, tone="bad")]
    return found


def budget_lines(report: dict[str, Any]) -> list[BudgetLine]:
    """The recipe's limits in words."""
    return [
        BudgetLine(
            _BUDGET_NAMES.get(str(entry.get("name")), str(entry.get("name", ""))),
            _budget_text(str(entry.get("name")), entry.get("limit"), given=True),
            _budget_text(str(entry.get("name")), entry.get("value")),
            entry.get("ok") is True,
        )
        for entry in items(report.get("budget"))
    ]


def primary_metric(target: dict[str, Any]) -> str | None:
    """Name of the task's main score: ``mAP`` where there is one, else the first."""
    task = table(target.get("task"))
    names = [
        name for kind in ("float", "int8", "original", "original_int8") for name in table(task.get(kind))
    ]
    return next((name for name in names if name == "mAP"), names[0] if names else None)


def title(report: dict[str, Any]) -> str:
    """The network's name: the last part of its path, or the callable."""
    source = str(table(report.get("model")).get("source") or "network")
    return source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


_TASK_LABELS = {
    "cosine": "Cosine to float",
    "sqnr_db": "Signal to noise",
    "top1": "Same largest value (meaningful for classifiers)",
}
_WORST_SAMPLE = "worst sample"
_BUDGET_NAMES = {"latency_ms": "Latency", "size_mb": "Size", "max_drop": "Loss of the metric"}


def _budget_text(name: str, raw: object, *, given: bool = False) -> str:
    value = finite(raw)
    if value is None:
        return "not measured"
    unit = {"latency_ms": " ms", "size_mb": " MB"}.get(name, "")
    return f"{value:g}{unit}" if given else f"{significant(value)}{unit}"


def _task_rows(target: dict[str, Any]) -> Iterator[Row]:
    task = table(target.get("task"))
    before, after = table(task.get("float")), table(task.get("int8"))
    primary = primary_metric(target)
    names = sorted(dict.fromkeys([*before, *after]), key=lambda name: name != primary)
    for name in names:
        float_, int8 = (
            figure(scores.get(name), "" if name in _TASK_LABELS else name) for scores in (before, after)
        )
        change, tone = score_change(float_, int8)
        label = cosine_label(task) if name == "cosine" else _TASK_LABELS.get(name, name)
        yield Row(label, float_, int8, change, tone, detail=name != primary, page_only=name == "top1")
        if name == "cosine":
            float_, int8 = (spread_figure(scores.get(name), "min") for scores in (before, after))
            yield Row(_WORST_SAMPLE, float_, int8, detail=True)


def _compares_outputs(target: dict[str, Any]) -> bool:
    return "cosine" in table(table(target.get("task")).get("int8"))


def _latency_rows(target: dict[str, Any]) -> Iterator[Row]:
    latency = table(target.get("latency"))
    before, after = latency.get("float"), latency.get("int8")
    change, tone = ratio(figure(before, "ms"), figure(after, "ms"), "faster", "slower")
    yield Row("Latency, median", figure(before, "ms"), figure(after, "ms"), change, tone)
    slow_before, slow_after = spread_figure(before, "p95"), spread_figure(after, "p95")
    change, tone = ratio(slow_before, slow_after, "faster", "slower")
    yield Row("95th percentile", slow_before, slow_after, change, tone, detail=True)
    single = table(target.get("latency_1t"))
    before, after = single.get("float"), single.get("int8")
    change, tone = ratio(figure(before, "ms"), figure(after, "ms"), "faster", "slower")
    yield Row("1 thread, median", figure(before, "ms"), figure(after, "ms"), change, tone, detail=True)


def _size_rows(target: dict[str, Any]) -> Iterator[Row]:
    artifacts = table(target.get("artifacts"))
    before, after = file_size(artifacts.get("float")), file_size(artifacts.get("int8"))
    yield Row("Size", before, after, *ratio(before, after, "smaller", "larger"))
    memory = table(table(target.get("latency")).get("peak_memory"))
    before, after = figure(memory.get("float"), "bytes"), figure(memory.get("int8"), "bytes")
    yield Row("Peak memory", before, after, *ratio(before, after, "less", "more"))


def _parity_rows(target: dict[str, Any]) -> Iterator[Row]:
    parity = table(target.get("parity"))
    outputs = items(parity.get("outputs"))
    method = str(parity.get("method") or "")
    count = finite(parity.get("samples"))
    note = f"{count:.0f} samples" if count else ""
    for key, label, unit in (
        ("cosine", "Cosine to float", "cosine"),
        ("cosine_min", _WORST_SAMPLE, "cosine"),
        ("sqnr_db", "Signal to noise", "dB"),
    ):
        worst = min(
            (entry for entry in outputs if finite(entry.get(key)) is not None),
            key=lambda entry: float(entry[key]),
            default=None,
        )
        found = figure(worst.get(key) if worst else None, unit)
        if found is not None and worst is not None:
            of = f"worst output, {worst.get('name')}" if len(outputs) > 1 else ""
            shown = Figure(found.text, method, "; ".join(part for part in (note, of) if part), found.value)
            yield Row(
                label, None, shown, f"worst of {len(outputs)} outputs" if of else "", detail=key != "cosine"
            )


def _verdict(target: dict[str, Any], *, compressed: bool) -> Verdict:
    name = str(target.get("target", ""))
    found = stages(target, primary_metric(target)) if compressed else None
    if found is not None and found.row("original") is not None and len(found.rows) > 1:
        return _compressed_verdict(name, found, primary_metric(target))
    if "int8" not in table(target.get("artifacts")):
        return Verdict(name, "Float only: nothing was quantized for this target.", "warn")
    latency, size = next(_latency_rows(target)), next(_size_rows(target))
    float_ = "the compressed float" if compressed else "float"
    clauses = _ratio_clauses(latency.change, size.change, float_)
    tone = "warn" if "bad" in (latency.tone, size.tone) else "good"
    metric = next(_task_rows(target), None)
    moved = difference(metric.float_, metric.int8) if metric else None
    if metric is not None and moved is not None:
        amount = signed(abs(moved)).lstrip("+")
        kept = f"keeps its {metric.label}"
        clauses.append(kept if amount == "±0" else f"{_moves(moved)} {amount} {metric.label}")
        tone = _metric_tone(metric.tone, loss_share(moved, metric.float_), tone)
    elif primary_metric(target) == "cosine" and metric is not None and metric.int8 is not None:
        reference = "the original" if metric.label.endswith("original") else float_
        clauses.append(f"follows {reference} with a cosine of {metric.int8.text}")
        tone = _cosine_tone(metric.int8, tone)
    return Verdict(name, f"Int8 {joined(clauses) or 'was made; nothing was measured'}.", tone)


def _compressed_verdict(name: str, found: Stages, primary: str | None) -> Verdict:
    """The last network of the line against the original float."""
    last, original = found.rows[-1], found.row("original")
    if last.kind not in ("float", "int8") or original is None:
        return Verdict(name, "Of the compressed network nothing was measured.", "warn", _split_text(found))
    speed, size = _cell(found, last, "speed"), _cell(found, last, "size")
    clauses = _ratio_clauses(speed.change, size.change, "the original float")
    tone = "warn" if "bad" in (speed.tone, size.tone) else "good"
    index = next((i for i, c in enumerate(found.columns) if c.noun not in ("speed", "size")), None)
    if index is not None:
        before, after, label = original.cells[index].figure, last.cells[index], found.columns[index].noun
        moved = difference(before, after.figure)
        if moved is not None and before is not None and after.figure is not None:
            kept = f"keeps its {label} of {before.text}"
            took = f"takes {label} from {before.text} to {after.figure.text}"
            clauses.append(kept if after.change == "±0" else took)
            tone = _metric_tone(after.tone, loss_share(moved, before), tone)
        elif primary == "cosine" and after.figure is not None:
            # The label says what the outputs were compared with: not always the original.
            what = label.removeprefix("Cosine to ")
            clauses.append(
                f"follows {'the original' if what == 'original' else 'the compressed float'} "
                f"with a cosine of {after.figure.text}"
            )
            tone = _cosine_tone(after.figure, tone)
    subject = STAGES[last.kind].capitalize()
    text = f"{subject} {joined(clauses) or 'was made; nothing compares it with the original'}."
    return Verdict(name, text, tone, _split_text(found))


def _split_text(found: Stages) -> str:
    """What each step of the line brought, in one sentence each."""
    columns = {column.noun: index for index, column in enumerate(found.columns)}
    order = sorted(
        columns, key=lambda noun: ("speed", "size").index(noun) if noun in ("speed", "size") else 2
    )
    sentences = []
    for split in found.splits:
        parts = [
            _split_part(noun, split.cells[columns[noun]].change)
            for noun in order
            if split.cells[columns[noun]].change not in ("", INCOMPARABLE)
        ]
        if parts:
            sentences.append(f"{split.name.capitalize()}: {', '.join(parts)}.")
    return " ".join(sentences)


def _split_part(noun: str, change: str) -> str:
    if noun not in ("speed", "size"):
        return f"{noun} {change}"
    return f"{change} {noun}" if change == SAME else change


def _cell(found: Stages, row: Stage, noun: str) -> Cell:
    index = found.index(noun)
    return Cell(None) if index is None else row.cells[index]


def _ratio_clauses(latency: str, size: str, reference: str) -> list[str]:
    """How fast and how large it is beside the reference, as parts of a sentence."""
    changed = [change for change in (latency, size) if change not in ("", SAME, INCOMPARABLE)]
    unchanged = [word for change, word in ((latency, "fast"), (size, "large")) if change == SAME]
    clauses = [f"is {joined(changed)} than {reference}"] if changed else []
    if unchanged:
        clauses.append(f"is just as {joined(unchanged)}{'' if changed else f' as {reference}'}")
    return clauses


def _metric_tone(row_tone: str, lost: float, tone: str) -> str:
    if row_tone != "bad":
        return tone
    return "bad" if lost > SEVERE_LOSS else "warn"


def _cosine_tone(cosine: Figure, tone: str) -> str:
    lost = 1.0 - (cosine.value or 0.0)
    if lost > NOTABLE_LOSS:
        return "bad" if lost > SEVERE_LOSS else "warn"
    return tone


def _moves(moved: float) -> str:
    return "loses" if moved < 0 else "gains"
