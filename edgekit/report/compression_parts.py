"""The parts of a compression step that have a chart: groups, sensitivity, refit, training, stored bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.report.charts import ColumnChart, ColumnData, XYChart, column_chart, xy_chart
from edgekit.report.numbers import bytes_text, finite, items, significant

_LABEL = 22
#: The share of a group that the sensitivity table looks at, or the nearest that was tried.
_USUAL_RATIO = 0.5
_BYTES = {
    "raw": "as they are",
    "zlib": "zlib",
    "lzma": "LZMA",
    "bitmask": "bit mask and non-zero values",
    "packed": "non-zero values and their places in each block",
}


@dataclass(frozen=True)
class Because:
    """Places that one reason is true of."""

    reason: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class GroupRow:
    """One channel group: units before and after, and the share kept in percent."""

    name: str
    kind: str
    before: int
    after: int
    kept: float


@dataclass(frozen=True)
class GroupsView:
    """Channels kept; ``text`` sums them up, ``narrower`` says how many groups lost any."""

    rows: list[GroupRow]
    chart: ColumnChart | None
    text: str
    narrower: str


@dataclass(frozen=True)
class SensitivityRow:
    """One group at one ratio; ``idle`` where removing it saves nothing."""

    group: str
    kind: str
    ratio: str
    distance: str
    metric: str
    macs: str
    latency: str
    idle: bool


@dataclass(frozen=True)
class Sensitivity:
    """What removing a part of each group does, the cheapest first.

    Attributes:
        rows: Every group once, at about half of its units: least effect for what it saves first.
        chart: Every measured point; lines join the ratios of one group.
        saved: What the horizontal axis shows.
        metric: Whether a task metric was taken.
        timed: Whether latency was predicted.
        broken: Points whose outputs are no finite numbers; they are not drawn.
    """

    rows: list[SensitivityRow]
    chart: XYChart | None
    saved: str
    metric: bool
    timed: bool
    broken: int


@dataclass(frozen=True)
class RefitRow:
    """One layer: relative error of its output before and after, and whether the refit was kept."""

    name: str
    before: str
    after: str
    kept: bool
    note: str


@dataclass(frozen=True)
class RefitView:
    """The refitted layers in the order of execution.

    Attributes:
        rows: One for each layer.
        chart: Errors before and after.
        text: The median errors.
        left: Layers that the refit would have made worse.
        skipped: Layers that were not tried, by reason.
    """

    rows: list[RefitRow]
    chart: ColumnChart | None
    text: str
    left: int
    skipped: list[Because]

    @property
    def skipped_places(self) -> int:
        """How many layers were not tried."""
        return sum(len(entry.places) for entry in self.skipped)


@dataclass(frozen=True)
class Curve:
    """The losses of a training, epoch by epoch."""

    chart: XYChart | None
    text: str


@dataclass(frozen=True)
class ByteRow:
    """One way to store the weights; ``share`` in percent of the largest, ``change`` against as they are."""

    name: str
    text: str
    share: float
    change: str


def groups_view(groups: Sequence[dict[str, Any]]) -> GroupsView | None:
    """The channel groups in the network's order; None without any."""
    rows = []
    for group in groups:
        before, after = finite(group.get("before")), finite(group.get("after"))
        if before is None or after is None or before <= 0:
            continue
        kept = round(100 * min(max(after / before, 0.0), 1.0), 1)
        name, kind = (_text(group.get(key)) for key in ("name", "kind"))
        rows.append(GroupRow(name, kind or "channels", int(before), int(after), kept))
    if not rows:
        return None
    labels = short_names([row.name for row in rows])
    data = [
        ColumnData(label, f"{r.name}: {r.after} of {r.before} {r.kind} kept", 1.0, r.kept / 100, str(r.after))
        for label, r in zip(labels, rows, strict=True)
    ]
    chart = column_chart(data, ((1.0, "100 %"), (0.5, "50 %"), (0.0, "0")))
    sums = []
    for kind in dict.fromkeys(row.kind for row in rows):
        before_, after_ = (
            sum(getattr(r, key) for r in rows if r.kind == kind) for key in ("before", "after")
        )
        sums.append(f"{after_:,} of {before_:,} {kind}")
    touched, count = sum(row.after < row.before for row in rows), len(rows)
    narrower = f"{touched} of {count} group{'' if count == 1 else 's'} narrower"
    return GroupsView(rows, chart, " and ".join(sums), narrower)


def sensitivity(entries: Sequence[dict[str, Any]]) -> Sensitivity | None:
    """Effect on the outputs against what is saved; None without any measured point."""
    found = [entry for entry in entries if finite(entry.get("distance")) is not None]
    if not found:
        return None
    broken = len(entries) - len(found)
    timed = all(finite(entry.get("latency_saved_ms")) is not None for entry in found)
    metric = any(finite(entry.get("metric")) is not None for entry in found)
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in found:
        groups.setdefault(_text(entry.get("group")), []).append(entry)
    usual = [min(group, key=_from_usual) for group in groups.values()]
    usual.sort(key=lambda entry: _cost(entry, timed=timed))
    series = [
        (name, [_point(e, timed=timed) for e in sorted(group, key=lambda e: finite(e.get("ratio")) or 0.0)])
        for name, group in groups.items()
    ]
    saved = "latency saved, ms" if timed else "multiply-accumulates saved, %"
    rows = [_sensitivity_row(entry, timed=timed) for entry in usual]
    return Sensitivity(rows, xy_chart(series, lines=True, logarithmic=True), saved, metric, timed, broken)


def refit_view(refit: dict[str, Any]) -> RefitView | None:
    """Errors before and after; None without any refitted layer."""
    layers = refit.get("layers")
    found = [
        (entry, before, after)
        for entry in (layers if isinstance(layers, list) else [])
        if isinstance(entry, dict)
        and (before := finite(entry.get("before"))) is not None
        and (after := finite(entry.get("after"))) is not None
    ]
    if not found:
        return None
    rows = [
        RefitRow(
            _text(entry.get("name")),
            significant(before, 2),
            significant(after, 2),
            entry.get("kept") is not False,
            _text(entry.get("note")),
        )
        for entry, before, after in found
    ]
    highest = max(*(max(before, after) for _, before, after in found), 0.0)
    # An error of 1 is as large as the signal; what is beyond would squeeze all others to nothing.
    top = min(highest, 1.0)
    scale = top or 1.0
    data = [
        ColumnData(
            label,
            f"{row.name}: {row.before} → {row.after}{'' if row.kept else ', left as it was'}"
            f"{f' ({row.note})' if row.note else ''}",
            before / scale,
            (after if row.kept else before) / scale,
            tone="" if row.kept else "warn",
        )
        for label, row, (_, before, after) in zip(
            short_names([r.name for r in rows]), rows, found, strict=True
        )
    ]
    highest_label = significant(top, 2) if top == highest else f"≥ {significant(top, 2)}"
    ticks = ((1.0, highest_label), (0.5, significant(top / 2, 2)), (0.0, "0")) if top else ((0.0, "0"),)
    left = sum(not row.kept for row in rows)
    middle = (_median([before for _, before, _ in found]), _median([after for *_, after in found]))
    text = f"median error {significant(middle[0], 2)} → {significant(middle[1], 2)}"
    text += f"; {left} left as {'it was' if left == 1 else 'they were'}" if left else ""
    return RefitView(rows, column_chart(data, ticks), text, left, because(items(refit.get("skipped"))))


def curve(epochs: Sequence[dict[str, Any]], best: float | None) -> Curve | None:
    """The losses over the epochs; None where none was noted."""
    series = []
    for key, name in (("loss", "training"), ("held_out", "held-out samples")):
        points = []
        for index, entry in enumerate(epochs, 1):
            loss, epoch = finite(entry.get(key)), finite(entry.get("epoch"))
            epoch = float(index) if epoch is None else epoch
            if loss is not None:
                points.append((epoch, loss, f"{name}, epoch {epoch:.0f}: {significant(loss)}", ""))
        if points:
            series.append((name, points))
    mark = None if best is None else (best, f"best: epoch {best:.0f}")
    chart = xy_chart(series, lines=True, counted=True, mark=mark)
    if chart is None:
        return None
    return Curve(chart, _curve_text(epochs, best))


def _curve_text(epochs: Sequence[dict[str, Any]], best: float | None) -> str:
    text = f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"
    held = [loss for entry in epochs if (loss := finite(entry.get("held_out"))) is not None]
    if not held:
        return text
    lowest = next(
        (finite(e.get("held_out")) for e in epochs if best is not None and e.get("epoch") == best), None
    )
    last = held[-1] if lowest is None else lowest
    return f"{text}, loss on held-out samples {significant(held[0])} → {significant(last)}"


def byte_rows(sizes: dict[str, Any]) -> list[ByteRow]:
    """The weights stored in each way that was tried."""
    found = [
        (name, value) for name, raw in sizes.items() if (value := finite(raw)) is not None and value >= 0
    ]
    top = max((value for _, value in found), default=0.0)
    raw = finite(sizes.get("raw"))
    return [
        ByteRow(
            _BYTES.get(name, name.replace("_", " ")),
            bytes_text(value),
            round(100 * value / top, 1) if top else 0.0,
            f"{100 * value / raw:.0f} %" if raw else "",
        )
        for name, value in found
    ]


def because(entries: Iterable[dict[str, Any]]) -> list[Because]:
    """One entry for each reason; reasons that differ only in the names they quote are one."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        where, reason = _text(entry.get("where")), _text(entry.get("reason"))
        grouped.setdefault(re.sub(r" ?'[^']*'", "", reason), []).append((where, reason))
    return [
        Because(pairs[0][1] if len({text for _, text in pairs}) == 1 else reason, tuple(w for w, _ in pairs))
        for reason, pairs in sorted(grouped.items(), key=lambda item: -len(item[1]))
    ]


def short_names(names: Sequence[str], limit: int = _LABEL) -> list[str]:
    """Names without what all of them begin and end with, cut on the left to ``limit`` characters."""
    parts = [re.split(r"(?<=[/.])", name.lstrip("/")) for name in names]
    parts = [[part for part in split if part] or [""] for split in parts]
    shortest = min((len(split) for split in parts), default=0)
    front = 0
    while len(parts) > 1 and front < shortest - 1 and len({split[front] for split in parts}) == 1:
        front += 1
    back = 0
    while len(parts) > 1 and back < shortest - front - 1 and len({split[-1 - back] for split in parts}) == 1:
        back += 1
    texts = ["".join(split[front : len(split) - back]).rstrip("/.") for split in parts]
    return [text if len(text) <= limit else f"…{text[1 - limit :]}" for text in texts]


def _point(entry: dict[str, Any], *, timed: bool) -> tuple[float, float, str, str]:
    distance, saved = float(entry["distance"]), _saved(entry, timed=timed)
    text = f"{_text(entry.get('group'))}{_removed(entry)}: distance {significant(distance, 2)}"
    text += f", saves {significant(saved, 2)} {'ms' if timed else '%'}"
    return saved, distance, text, "warn" if saved <= 0 else ""


def _sensitivity_row(entry: dict[str, Any], *, timed: bool) -> SensitivityRow:
    distance, macs = float(entry["distance"]), finite(entry.get("macs_saved"))
    latency, metric, ratio = (finite(entry.get(key)) for key in ("latency_saved_ms", "metric", "ratio"))
    return SensitivityRow(
        group=_text(entry.get("group")),
        kind=_text(entry.get("kind")),
        ratio="" if ratio is None else f"{100 * ratio:.0f} %",
        distance=significant(distance, 2),
        metric="" if metric is None else f"{metric:.3f}",
        macs="" if macs is None else f"{100 * macs:.1f} %",
        latency="" if latency is None else f"{significant(latency, 2)} ms",
        idle=_saved(entry, timed=timed) <= 0,
    )


def _removed(entry: dict[str, Any]) -> str:
    ratio = finite(entry.get("ratio"))
    return "" if ratio is None else f", {100 * ratio:.0f} % removed"


def _from_usual(entry: dict[str, Any]) -> float:
    ratio = finite(entry.get("ratio"))
    return 1.0 if ratio is None else abs(ratio - _USUAL_RATIO)


def _saved(entry: dict[str, Any], *, timed: bool) -> float:
    return (
        (finite(entry.get("latency_saved_ms")) or 0.0)
        if timed
        else 100 * (finite(entry.get("macs_saved")) or 0.0)
    )


def _cost(entry: dict[str, Any], *, timed: bool) -> tuple[bool, float]:
    """Orders groups: effect for what is saved; those that save nothing come last."""
    saved, distance = _saved(entry, timed=timed), float(entry["distance"])
    return (saved <= 0, distance / saved if saved > 0 else distance)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _text(value: object) -> str:
    return "" if value is None else str(value)
