"""Geometry of the report's charts, as shares of the drawing area; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.report.numbers import finite, significant, with_unit
from edgekit.report.stages import STAGES

#: Top of the layer chart. Above 60 dB the error is a thousandth of the signal: nothing to look at.
SQNR_TOP_DB = 60.0
#: Below this the error holds more than a tenth of the signal's power.
SQNR_BAD_DB = 10.0
#: Below this the error holds more than a hundredth of the signal's power.
SQNR_WARN_DB = 20.0

_BINS = 120


@dataclass(frozen=True)
class Mark:
    """A labelled place on an axis; ``at`` in percent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Distribution:
    """The histogram of one network's latency.

    Attributes:
        name: The network's kind: ``float``, ``int8``, ``original`` or ``original_int8``.
        label: What a person calls it.
        path: SVG path in a 100 x 100 box, y downwards.
        median: Where the median lies, with its text.
        p95: Where the 95th percentile lies, with its text.
        beyond: Runs slower than the axis reaches.
        count: All runs.
    """

    name: str
    label: str
    path: str
    median: Mark
    p95: Mark
    beyond: int
    count: int


@dataclass(frozen=True)
class LatencyChart:
    """Histograms over one common axis in milliseconds."""

    rows: tuple[Distribution, ...]
    ticks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """One layer: height in percent, tone (``good``, ``warn``, ``bad``, ``exact``), text of its tooltip."""

    height: float
    tone: str
    text: str


def latency_chart(samples_ms: dict[str, Any]) -> LatencyChart | None:
    """Histograms of the single runs; None with fewer than eight runs of every network.

    The axis starts at zero, so that lengths compare, and ends a little beyond the slowest network's 95th
    percentile: a few stalls must not squeeze the rest together. They are counted instead.
    """
    series = {
        name: sorted(value for raw in samples_ms[name] if (value := finite(raw)) is not None)
        for name in STAGES
        if isinstance(samples_ms.get(name), list | tuple)
    }
    series = {name: values for name, values in series.items() if len(values) >= 8}
    if not series:
        return None
    end = max(max(1.15 * quantile(v, 0.95), 1.25 * quantile(v, 0.5)) for v in series.values())
    if end <= 0:
        return None
    compressed = "original" in series or "original_int8" in series
    labels = {name: STAGES[name] if compressed else name for name in series}
    rows = tuple(_distribution(name, labels[name], values, end) for name, values in series.items())
    return LatencyChart(rows, tuple(ticks(end)))


def layer_bars(layers: Sequence[dict[str, Any]]) -> list[Bar]:
    """One bar for each layer, in the order of execution. A layer without error stands at the top."""
    bars = []
    for layer in layers:
        sqnr_db = finite(layer.get("sqnr_db"))
        name = f"{layer.get('name', '')} ({layer.get('op', '')})"
        if sqnr_db is None:
            bars.append(Bar(100.0, "exact", f"{name}: no error"))
            continue
        height = 100 * min(max(sqnr_db, 1.0), SQNR_TOP_DB) / SQNR_TOP_DB
        bars.append(Bar(round(height, 1), sqnr_tone(sqnr_db), f"{name}: {with_unit(sqnr_db, 'dB')}"))
    return bars


def sqnr_tone(sqnr_db: float) -> str:
    """How to take a layer's signal-to-noise ratio."""
    if sqnr_db < SQNR_BAD_DB:
        return "bad"
    return "warn" if sqnr_db < SQNR_WARN_DB else "good"


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ordered values lie, interpolated."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def ticks(end: float, wanted: int = 5) -> list[Mark]:
    """Round values from 0 to ``end``, at 1, 2 or 5 times a power of ten."""
    raw = end / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    decimals = max(0, -math.floor(math.log10(step)))
    count = math.floor(end / step + 1e-9)
    return [Mark(round(100 * i * step / end, 2), f"{i * step:.{decimals}f}") for i in range(count + 1)]


def _distribution(name: str, label: str, ordered: Sequence[float], end: float) -> Distribution:
    counts = [0] * _BINS
    beyond = 0
    for value in ordered:
        if value > end:
            beyond += 1
        else:
            counts[min(int(value / end * _BINS), _BINS - 1)] += 1
    median, p95 = quantile(ordered, 0.5), quantile(ordered, 0.95)
    return Distribution(name, label, _steps(counts), _at(median, end), _at(p95, end), beyond, len(ordered))


def _at(value: float, end: float) -> Mark:
    return Mark(round(100 * min(value / end, 1.0), 2), f"{significant(value)} ms")


def _steps(counts: Sequence[int]) -> str:
    top = max(counts) or 1
    width = 100 / len(counts)
    parts = ["M0 100"]
    for index, count in enumerate(counts):
        y = round(100 - 96 * count / top, 1)
        parts.append(f"L{index * width:.2f} {y}L{(index + 1) * width:.2f} {y}")
    return "".join([*parts, "L100 100Z"])


#: Size of a column chart's parts in pixels. It is drawn in its own size, since its labels must stay readable.
_PLOT_HEIGHT = 120.0
_PLOT_TOP = 18.0
_PLOT_LEFT = 44.0
_PLOT_WIDTH = 768.0
_NARROWEST, _WIDEST = 11.0, 44.0
#: From this width on there is room for a number above a column.
_VALUE_WIDTH = 24.0
_LETTER_WIDTH = 6.1


@dataclass(frozen=True)
class ColumnData:
    """What one column shows.

    Attributes:
        label: Written below it, upwards.
        text: Its tooltip.
        back: Height of the pale column behind, as a share of the chart.
        front: Height of the column before it, as a share of the chart.
        value: Written above it, where there is room.
        tone: ``warn`` for a column to look at, else empty.
    """

    label: str
    text: str
    back: float
    front: float
    value: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """One column in pixels: ``left`` and ``width``, tops and heights of what is behind and before."""

    left: float
    width: float
    middle: float
    back_top: float
    back_height: float
    front_top: float
    front_height: float
    data: ColumnData


@dataclass(frozen=True)
class ColumnChart:
    """Columns side by side, in pixels.

    Attributes:
        width: Of the whole drawing.
        height: Of the whole drawing, with the labels.
        left: Where the first column begins.
        base: The line that the columns stand on.
        ticks: Heights with a label; ``at`` in pixels from the top.
        columns: From left to right.
    """

    width: float
    height: float
    left: float
    base: float
    ticks: tuple[Mark, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Point:
    """A point in percent of the drawing area, ``y`` downwards, with the text of its tooltip."""

    x: float
    y: float
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind and the line through them (an SVG path, empty for a single point)."""

    name: str
    points: tuple[Point, ...]
    path: str


@dataclass(frozen=True)
class XYChart:
    """Series over two axes; the ``at`` of ticks is in percent, from the left and from the bottom.

    Attributes:
        series: What is drawn.
        x_ticks: Marks of the horizontal axis.
        y_ticks: Marks of the vertical axis.
        logarithmic: Whether the vertical axis is.
        mark: A place on the horizontal axis to point out.
    """

    series: tuple[Series, ...]
    x_ticks: tuple[Mark, ...]
    y_ticks: tuple[Mark, ...]
    logarithmic: bool
    mark: Mark | None = None


def column_chart(data: Sequence[ColumnData], scale: Sequence[tuple[float, str]]) -> ColumnChart | None:
    """Columns in the given order; None without any.

    Args:
        data: The columns; heights are cut to 0…1.
        scale: Heights as shares of the chart, with the label of each.
    """
    if not data:
        return None
    step = min(max(_PLOT_WIDTH / len(data), _NARROWEST), _WIDEST)
    gap = 2.0 if step < _VALUE_WIDTH else 6.0
    base = _PLOT_TOP + _PLOT_HEIGHT
    columns = []
    for index, entry in enumerate(data):
        left = _PLOT_LEFT + index * step
        back, front = (round(_PLOT_HEIGHT * min(max(v, 0.0), 1.0), 1) for v in (entry.back, entry.front))
        shown = entry if step >= _VALUE_WIDTH else replace(entry, value="")
        width, middle = round(step - gap, 1), round(left + (step - gap) / 2, 1)
        columns.append(
            Column(round(left, 1), width, middle, base - back, back, base - front, front, shown),
        )
    labels = _LETTER_WIDTH * max(len(entry.label) for entry in data)
    marks = tuple(Mark(round(base - share * _PLOT_HEIGHT, 1), label) for share, label in scale)
    width = round(_PLOT_LEFT + step * len(data), 1)
    return ColumnChart(width, round(base + labels + 12, 1), _PLOT_LEFT, base, marks, tuple(columns))


def xy_chart(
    series: Sequence[tuple[str, Sequence[tuple[float, float, str, str]]]],
    *,
    lines: bool,
    logarithmic: bool | None = None,
    counted: bool = False,
    mark: tuple[float, str] | None = None,
) -> XYChart | None:
    """Points over a linear horizontal and a linear or logarithmic vertical axis; None without any.

    Args:
        series: Name and points (x, y, text, tone) of each.
        lines: Whether the points of a series are joined.
        logarithmic: None takes a logarithmic axis where the values span more than a factor of eight.
        counted: The horizontal axis counts from one, in whole steps; else it includes zero.
        mark: A place on the horizontal axis to point out, with its label.
    """
    points = [point for _, found in series for point in found]
    if not points:
        return None
    places = [x for x, *_ in points]
    x_low = min(1.0 if counted else 0.0, *places)
    x_span = 1.04 * (max(1.0 if counted else 0.0, *places) - x_low) or 1.0
    values = [y for _, y, *_ in points]
    axis = _vertical_axis(values, logarithmic)

    def place(point: tuple[float, float, str, str]) -> Point:
        x, y, text, tone = point
        return Point(round(100 * (x - x_low) / x_span, 2), round(100 - axis.at(y), 2), text, tone)

    drawn = []
    for name, found in series:
        placed = tuple(place(point) for point in found)
        path = "M" + "L".join(f"{p.x} {p.y}" for p in placed) if lines and len(placed) > 1 else ""
        drawn.append(Series(name, placed, path))
    x_marks = [
        Mark(round(100 * (value - x_low) / x_span, 2), label)
        for value, label in _between(x_low, x_low + x_span, 1.0 if counted else 0.0)
    ]
    shown = None if mark is None else Mark(round(100 * (mark[0] - x_low) / x_span, 2), mark[1])
    if shown is not None and not 0 <= shown.at <= 100:
        shown = None
    return XYChart(tuple(drawn), tuple(x_marks), axis.ticks, axis.logarithmic, shown)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    logarithmic: bool
    ticks: tuple[Mark, ...]

    def at(self, value: float) -> float:
        """Percent of the axis, from its lower end."""
        return _share(value, self.low, self.high, self.logarithmic)


def _share(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = (math.log10(max(v, low)) for v in (value, low, high))
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)


def _vertical_axis(values: Sequence[float], logarithmic: bool | None) -> _Axis:
    top = max(values)
    positive = [value for value in values if value > 0]
    if not positive:
        return _Axis(0.0, 1.0, False, (Mark(0.0, "0"),))
    if logarithmic is None:
        logarithmic = len(positive) == len(values) and top > 8 * min(positive)
    if not logarithmic:
        low = min(0.0, *values)
        high = top + 0.06 * (top - low)
        found = [(v, label) for v, label in _between(low, high) if v >= low]
        return _Axis(low, high, False, tuple(Mark(_share(v, low, high, False), t) for v, t in found))
    # What is a ten-thousandth of the largest value is nothing; it stands at the lower end.
    low = max(min(positive), top * 1e-4) * 0.8
    high = top * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1,)
    places = [10.0**decade * factor for decade in decades for factor in factors]
    marks = [Mark(_share(v, low, high, True), f"{v:g}") for v in places if low <= v <= high]
    return _Axis(low, high, True, tuple(marks))


def _between(low: float, high: float, least: float = 0.0) -> list[tuple[float, str]]:
    """Round values from ``low`` to ``high``, ``least`` apart at least, with their texts."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = max(least, next(power * f for f in (1, 2, 5, 10) if (high - low) / (power * f) <= 5.5))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:.{decimals}f}") for i in range(first, last + 1)]
