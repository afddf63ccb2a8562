"""The report JSON arranged for the HTML template: every part present, every figure formatted."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgekit.report import quantizer, unit
from edgekit.report.charts import Bar, LatencyChart, latency_chart, layer_bars, sqnr_tone
from edgekit.report.compression import Compression, compression
from edgekit.report.findings import sort_findings
from edgekit.report.numbers import (
    DASH,
    METHODS,
    Figure,
    count_text,
    figure,
    finite,
    items,
    table,
    with_unit,
)
from edgekit.report.stages import Stages, stages
from edgekit.report.summary import (
    BudgetLine,
    Row,
    Verdict,
    budget_lines,
    primary_metric,
    rows,
    title,
    verdicts,
)

_IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_WORST_LAYERS = 8


@dataclass(frozen=True)
class Layer:
    """One line of the layer table."""

    name: str
    op: str
    sqnr: str
    cosine: str
    max_abs: str
    max_steps: str
    share: float
    tone: str


@dataclass(frozen=True)
class Finding:
    """One range clash: where, what, and what to do about it."""

    where: str
    kind: str
    text: str
    action: str
    ratio: str


@dataclass(frozen=True)
class Segment:
    """A part of the placement bar; ``share`` in percent."""

    name: str
    kind: str
    count: int
    share: float


@dataclass(frozen=True)
class Left:
    """Nodes of one op that stay in float for one reason."""

    op: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Overlay:
    """One image as both networks see it; a data URI, or None where the file cannot be shown."""

    name: str
    float_: str | None
    int8: str | None


@dataclass(frozen=True)
class ChangeLine:
    """One pass: its summary, and what it refused as (where, reason)."""

    name: str
    summary: str
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TargetView:
    """One target's section of the page."""

    name: str
    title: str
    stages: Stages | None
    rows: list[Row]
    task_note: str
    findings: list[Finding]
    tails: list[Finding]
    tails_text: str
    overlays: list[Overlay]
    latency: LatencyChart | None
    threads: str
    bars: list[Bar]
    worst: list[Layer]
    layers: list[Layer]
    layers_note: str
    raised: list[quantizer.Raised]
    ladder: list[quantizer.Rung]
    quantization_note: str
    segments: list[Segment]
    ops: list[tuple[str, int]]
    left: list[Left]
    estimate: unit.Estimate | None
    coverage: unit.Coverage | None
    emulation: unit.Emulation | None
    runtimes: unit.Runtimes | None
    history: list[ChangeLine]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    title: str
    created: str
    machine: str
    verdicts: list[Verdict]
    budget: list[BudgetLine]
    warnings: list[str]
    compression: Compression | None
    targets: list[TargetView]
    methods: list[tuple[str, str]]
    capture: list[ChangeLine]
    facts: list[tuple[str, list[tuple[str, str]]]]
    skipped: list[tuple[str, str]]


def page(report: dict[str, Any], folder: Path) -> PageView:
    """Arrange a report. Parts that it lacks come out empty.

    Args:
        report: The report JSON, schema 1.
        folder: Where the overlay images lie.
    """
    targets = [_target(entry, folder) for entry in items(report.get("targets"))]
    capture = table(table(report.get("model")).get("capture"))
    data = table(report.get("data"))
    return PageView(
        title=title(report),
        created=_when(report.get("created")),
        machine=_machine(table(report.get("machine"))),
        verdicts=verdicts(report),
        budget=budget_lines(report),
        warnings=[str(text) for text in report.get("warnings") or []],
        compression=compression(report),
        targets=targets,
        methods=_methods(targets),
        capture=_changes(capture.get("changes")),
        facts=_facts(report),
        skipped=[
            (_text(entry.get("name")), _text(entry.get("reason"))) for entry in items(data.get("skipped"))
        ],
    )


def _target(target: dict[str, Any], folder: Path) -> TargetView:
    quantization = table(target.get("quantization"))
    parity = table(target.get("parity"))
    latency = table(target.get("latency"))
    layers = items(parity.get("layers"))
    placement = table(table(target.get("placement")).get("int8"))
    threads = finite(latency.get("threads"))
    findings = sort_findings(quantization)
    return TargetView(
        name=_text(target.get("target")),
        title=_text(target.get("title")),
        stages=stages(target, primary_metric(target)),
        rows=rows(target),
        task_note=_task_note(table(target.get("task"))),
        findings=[_finding(entry) for entry in findings.clashes],
        tails=[_finding(entry) for entry in findings.tails],
        tails_text=findings.tails_text,
        overlays=[_overlay(entry, folder) for entry in items(target.get("overlays"))],
        latency=latency_chart(table(latency.get("samples_ms"))),
        threads="" if threads is None else _count(threads, "thread"),
        bars=layer_bars(layers),
        worst=[_layer(entry) for entry in _by_sqnr(layers)[:_WORST_LAYERS]],
        layers=[_layer(entry) for entry in layers],
        layers_note=_layers_note(parity),
        raised=quantizer.raised(quantization),
        ladder=quantizer.ladder(quantization),
        quantization_note=_quantization_note(quantization),
        segments=_segments(placement),
        ops=sorted(_ops(placement), key=lambda pair: (-pair[1], pair[0])),
        left=_left(items(placement.get("left"))),
        estimate=unit.estimate(target),
        coverage=unit.coverage(table(target.get("coverage"))),
        emulation=unit.emulation(target),
        runtimes=unit.runtimes(target),
        history=_changes(quantization.get("history")),
    )


def _finding(entry: dict[str, Any]) -> Finding:
    ratio = finite(entry.get("ratio"))
    return Finding(
        where=_text(entry.get("where")),
        kind=_sentence(_text(entry.get("kind")).replace("-", " ")),
        text=_text(entry.get("text")),
        action=_text(entry.get("action")),
        ratio="" if ratio is None else f"{ratio:,.0f} : 1" if ratio >= 10 else f"{ratio:.1f} : 1",
    )


def _overlay(entry: dict[str, Any], folder: Path) -> Overlay:
    before, after = (_data_uri(folder, entry.get(kind)) for kind in ("float", "int8"))
    return Overlay(_text(entry.get("name")), before, after)


def _data_uri(folder: Path, name: object) -> str | None:
    """The image as a data URI; None for a file that is missing, no image, or outside the folder."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    kind = _IMAGE_TYPES.get(path.suffix.lower())
    if kind is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _by_sqnr(layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [layer for layer in layers if finite(layer.get("sqnr_db")) is not None]
    return sorted(known, key=lambda layer: float(layer["sqnr_db"]))


def _layer(entry: dict[str, Any]) -> Layer:
    sqnr_db = finite(entry.get("sqnr_db"))
    steps = finite(entry.get("max_steps"))
    return Layer(
        name=_text(entry.get("name")),
        op=_text(entry.get("op")),
        sqnr="exact" if sqnr_db is None else f"{with_unit(sqnr_db, 'dB').removesuffix(' dB')}",
        cosine=_figure_text(figure(entry.get("cosine"), "cosine")),
        max_abs=_figure_text(figure(entry.get("max_abs"), " ")).strip(),
        max_steps=DASH if steps is None else f"{steps:.0f}",
        share=100.0 if sqnr_db is None else max(0.0, min(sqnr_db / 60, 1.0)) * 100,
        tone="exact" if sqnr_db is None else sqnr_tone(sqnr_db),
    )


def _segments(placement: dict[str, Any]) -> list[Segment]:
    parts = (
        ("on integer kernels", "int8", "integer_nodes"),
        ("conversions between int8 and float", "conversion", "conversions"),
        ("computing in float", "float", "float_nodes"),
    )
    counts = [(name, kind, int(finite(placement.get(key)) or 0)) for name, kind, key in parts]
    total = sum(count for _, _, count in counts)
    if not total:
        return []
    return [Segment(name, kind, count, round(100 * count / total, 2)) for name, kind, count in counts]


def _ops(placement: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (str(op), int(count)) for op, raw in table(placement.get("ops")).items() if (count := finite(raw))
    ]


def _left(entries: Iterable[dict[str, Any]]) -> list[Left]:
    """One line for each op and reason; reasons that differ only in the tensor they name are one."""
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for entry in entries:
        op, reason, node = (_text(entry.get(key)) for key in ("op", "reason", "node"))
        grouped.setdefault((op, re.sub(r" '[^']*'", "", reason)), []).append((node, reason))
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return [
        Left(op, pairs[0][1] if len(pairs) == 1 else reason, tuple(node for node, _ in pairs))
        for (op, reason), pairs in ordered
    ]


def _changes(entries: object) -> list[ChangeLine]:
    """The passes that did something, in order, and last the names of the others in one line."""
    lines = [
        ChangeLine(
            _text(entry.get("pass_name")),
            _text(entry.get("summary")),
            tuple(
                (_text(item.get("where")), _text(item.get("reason"))) for item in items(entry.get("refused"))
            ),
        )
        for entry in items(entries)
    ]
    idle = [line for line in lines if _did_nothing(line)]
    if len(idle) < 2:
        return lines
    names = ", ".join(line.name for line in idle)
    return [
        *(line for line in lines if line not in idle),
        ChangeLine("", f"Nothing to do for {names}.", ()),
    ]


def _did_nothing(line: ChangeLine) -> bool:
    """Whether a summary counts nothing but zeros, as "removed 0 nodes" does."""
    counts = re.findall(r"(?<![\w.])\d+(?![\w.])", line.summary)
    return not line.refused and bool(counts) and not any(int(count) for count in counts)


def _task_note(task: dict[str, Any]) -> str:
    images = finite(task.get("images"))
    parts = [
        f"{_text(task.get('name'))} on {_count(images, 'image')}" if images else "",
        _text(task.get("note")),
    ]
    return ". ".join(_sentence(part.rstrip(".")) for part in parts if part)


def _layers_note(parity: dict[str, Any]) -> str:
    samples = finite(parity.get("layer_samples"))
    return f"over {_count(samples, 'sample')}" if samples else ""


def _quantization_note(quantization: dict[str, Any]) -> str:
    parts = []
    tensors = finite(quantization.get("tensors_8bit"))
    if tensors is not None:
        parts.append(f"{_count(tensors, 'tensor')} in 8 bits")
    if quantization.get("calibrator"):
        parts.append(f"ranges by {quantization['calibrator']}")
    for step, raw in table(quantization.get("seconds")).items():
        seconds = finite(raw)
        if seconds is not None:
            parts.append(f"{step} {seconds:.1f} s")
    return ", ".join(parts)


def _methods(targets: Iterable[TargetView]) -> list[tuple[str, str]]:
    used = {
        shown.method
        for target in targets
        for row in target.rows
        for shown in (row.float_, row.int8)
        if shown is not None and shown.method
    }
    known = [(name, meaning) for name, meaning in METHODS.items() if name in used]
    return known


def _facts(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where everything came from: groups of (name, value)."""
    model, data, machine = (table(report.get(key)) for key in ("model", "data", "machine"))
    difference = figure(table(model.get("capture")).get("max_abs_difference"), " ")
    groups = [
        (
            "Network",
            [
                ("Source", _text(model.get("source"))),
                ("SHA-256", _text(model.get("sha256"))),
                ("Inputs", _tensors(model.get("inputs"))),
                ("Outputs", _tensors(model.get("outputs"))),
                ("Parameters", _short_count(model.get("parameters"))),
                ("Multiply-accumulates", _short_count(model.get("macs"))),
                ("Size in float", _figure_text(figure(model.get("size_bytes"), "bytes"), "")),
                ("Opset", _text(model.get("opset"))),
                (
                    "Capture against source",
                    _figure_text(difference, "").strip() and _difference_text(difference),
                ),
            ],
        ),
        (
            "Samples",
            [
                ("Calibration", _text(data.get("calibrate"))),
                ("Used", _text(data.get("count"))),
                ("Preprocessing", _keys(data.get("preprocess"))),
                ("", _text(data.get("preprocess_note"))),
            ],
        ),
        (
            "Made with",
            [
                ("edgekit", _text(report.get("edgekit"))),
                ("Command", _text(report.get("command"))),
                ("Processor", _text(machine.get("cpu"))),
                ("Cores", _text(machine.get("cores"))),
                ("System", _text(machine.get("os"))),
                ("Python", _text(machine.get("python"))),
                ("ONNX Runtime", _text(machine.get("onnxruntime"))),
            ],
        ),
    ]
    present = [(name, [(key, value) for key, value in pairs if value]) for name, pairs in groups]
    return [(name, pairs) for name, pairs in present if pairs]


def _difference_text(difference: Figure | None) -> str:
    if difference is None or difference.value is None:
        return ""
    return (
        "identical outputs" if difference.value == 0 else f"outputs differ by {difference.value:.1e} at most"
    )


def _tensors(value: object) -> str:
    return ", ".join(
        f"{_text(entry.get('name'))} {_shape(entry.get('shape'))} {_text(entry.get('dtype'))}".strip()
        for entry in items(value)
    )


def _shape(value: object) -> str:
    return "×".join(str(size) for size in value) if isinstance(value, list | tuple) else ""


def _keys(value: object) -> str:
    return ", ".join(f"{key}={_shown(entry)}" for key, entry in table(value).items() if entry is not None)


def _shown(value: object) -> str:
    return "/".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else str(value)


def _machine(machine: dict[str, Any]) -> str:
    cores = finite(machine.get("cores"))
    parts = [_text(machine.get("cpu")), _count(cores, "core") if cores else ""]
    return ", ".join(part for part in parts if part)


def _when(created: object) -> str:
    text = _text(created)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = moment.tzname() or ""
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}".strip()


def _short_count(value: object) -> str:
    number = finite(value)
    return "" if number is None else count_text(number)


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _figure_text(shown: Figure | None, absent: str = DASH) -> str:
    return absent if shown is None else shown.text


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
