"""What a report says in short: the verdict and the table float | int8. Both views are built on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.report.numbers import (
    Figure,
    bytes_text,
    figure,
    finite,
    items,
    signed,
    significant,
    spread_figure,
    table,
)

#: A loss of the task metric above this share of the float score is called out even where no budget is set.
NOTABLE_LOSS = 0.02
#: A loss above this share makes the network unusable without saying more.
SEVERE_LOSS = 0.2

#: The change of a figure that moved by less than two percent.
SAME = "the same"
#: The change of two figures of which one was measured and the other estimated, or on another machine.
INCOMPARABLE = "methods differ"


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
    """

    target: str
    text: str
    tone: str


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
    """One sentence for each target. A missed budget is part of the verdict of a report with one target."""
    found = [_verdict(target) for target in items(report.get("targets"))]
    missed = [line.name.lower() for line in budget_lines(report) if not line.ok]
    if len(found) == 1 and missed:
        text = f"{found[0].text} It misses the budget for {_joined(missed)}."
        return [Verdict(found[0].target, text, "bad")]
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
    names = [*table(task.get("float")), *table(task.get("int8"))]
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
        change, tone = "", ""
        difference = _difference(float_, int8)
        if difference is None and float_ is not None and int8 is not None:
            change = INCOMPARABLE
        elif difference is not None:
            change = signed(difference)
            tone = "bad" if _loss_share(difference, float_) > NOTABLE_LOSS else ""
        label = _TASK_LABELS.get(name, name)
        yield Row(label, float_, int8, change, tone, detail=name != primary, page_only=name == "top1")
        if name == "cosine":
            float_, int8 = (spread_figure(scores.get(name), "min") for scores in (before, after))
            yield Row(_WORST_SAMPLE, float_, int8, detail=True)


def _compares_outputs(target: dict[str, Any]) -> bool:
    return "cosine" in table(table(target.get("task")).get("int8"))


def _latency_rows(target: dict[str, Any]) -> Iterator[Row]:
    latency = table(target.get("latency"))
    before, after = latency.get("float"), latency.get("int8")
    change, tone = _ratio(figure(before, "ms"), figure(after, "ms"), "faster", "slower")
    yield Row("Latency, median", figure(before, "ms"), figure(after, "ms"), change, tone)
    slow_before, slow_after = spread_figure(before, "p95"), spread_figure(after, "p95")
    change, tone = _ratio(slow_before, slow_after, "faster", "slower")
    yield Row("95th percentile", slow_before, slow_after, change, tone, detail=True)
    single = table(target.get("latency_1t"))
    before, after = single.get("float"), single.get("int8")
    change, tone = _ratio(figure(before, "ms"), figure(after, "ms"), "faster", "slower")
    yield Row("1 thread, median", figure(before, "ms"), figure(after, "ms"), change, tone, detail=True)


def _size_rows(target: dict[str, Any]) -> Iterator[Row]:
    artifacts = table(target.get("artifacts"))
    before, after = _file_size(artifacts.get("float")), _file_size(artifacts.get("int8"))
    yield Row("Size", before, after, *_ratio(before, after, "smaller", "larger"))
    memory = table(table(target.get("latency")).get("peak_memory"))
    before, after = figure(memory.get("float"), "bytes"), figure(memory.get("int8"), "bytes")
    yield Row("Peak memory", before, after, *_ratio(before, after, "less", "more"))


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


def _file_size(artifact: object) -> Figure | None:
    size = finite(table(artifact).get("size_bytes"))
    return (
        None
        if size is None
        else Figure(bytes_text(size), "file", str(table(artifact).get("path") or ""), size)
    )


def _difference(before: Figure | None, after: Figure | None) -> float | None:
    if before is None or after is None or before.value is None or after.value is None:
        return None
    if before.method != after.method:
        return None
    return after.value - before.value


def _loss_share(difference: float, before: Figure | None) -> float:
    scale = abs(before.value) if before is not None and before.value else 1.0
    return -difference / scale


def _ratio(before: Figure | None, after: Figure | None, better: str, worse: str) -> tuple[str, str]:
    """How many times smaller the second figure is, in words, and how to take it."""
    if before is None or after is None or not before.value or not after.value:
        return "", ""
    if before.method != after.method:
        return INCOMPARABLE, ""
    ratio = before.value / after.value
    if 0.98 < ratio < 1.02:
        return SAME, ""
    if ratio > 1:
        return f"{_times(ratio)} {better}", "good"
    return f"{_times(1 / ratio)} {worse}", "bad"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def _verdict(target: dict[str, Any]) -> Verdict:
    name = str(target.get("target", ""))
    if "int8" not in table(target.get("artifacts")):
        return Verdict(name, "Float only: nothing was quantized for this target.", "warn")
    latency, size = next(_latency_rows(target)), next(_size_rows(target))
    changed = [row.change for row in (latency, size) if row.change not in ("", SAME, INCOMPARABLE)]
    unchanged = [word for row, word in ((latency, "fast"), (size, "large")) if row.change == SAME]
    clauses = [f"is {_joined(changed)} than float"] if changed else []
    if unchanged:
        clauses.append(f"is just as {_joined(unchanged)}{'' if changed else ' as float'}")
    tone = "warn" if "bad" in (latency.tone, size.tone) else "good"
    metric = next(_task_rows(target), None)
    difference = _difference(metric.float_, metric.int8) if metric else None
    if metric is not None and difference is not None:
        moved = signed(abs(difference)).lstrip("+")
        kept = f"keeps its {metric.label}"
        clauses.append(kept if moved == "±0" else f"{_moves(difference)} {moved} {metric.label}")
        if metric.tone == "bad":
            tone = "bad" if _loss_share(difference, metric.float_) > SEVERE_LOSS else "warn"
    elif primary_metric(target) == "cosine" and metric is not None and metric.int8 is not None:
        clauses.append(f"follows float with a cosine of {metric.int8.text}")
        lost = 1.0 - (metric.int8.value or 0.0)
        if lost > NOTABLE_LOSS:
            tone = "bad" if lost > SEVERE_LOSS else "warn"
    return Verdict(name, f"Int8 {_joined(clauses) or 'was made; nothing was measured'}.", tone)


def _moves(difference: float) -> str:
    return "loses" if difference < 0 else "gains"


def _joined(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
