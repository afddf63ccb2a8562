"""Geometry of the report's charts, as shares of the drawing area; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.report.numbers import finite, significant, with_unit

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
        name: ``float`` or ``int8``.
        path: SVG path in a 100 x 100 box, y downwards.
        median: Where the median lies, with its text.
        p95: Where the 95th percentile lies, with its text.
        beyond: Runs slower than the axis reaches.
        count: All runs.
    """

    name: str
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
        for name in ("float", "int8")
        if isinstance(samples_ms.get(name), list | tuple)
    }
    series = {name: values for name, values in series.items() if len(values) >= 8}
    if not series:
        return None
    end = max(max(1.15 * quantile(v, 0.95), 1.25 * quantile(v, 0.5)) for v in series.values())
    if end <= 0:
        return None
    rows = tuple(_distribution(name, values, end) for name, values in series.items())
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


def _distribution(name: str, ordered: Sequence[float], end: float) -> Distribution:
    counts = [0] * _BINS
    beyond = 0
    for value in ordered:
        if value > end:
            beyond += 1
        else:
            counts[min(int(value / end * _BINS), _BINS - 1)] += 1
    median, p95 = quantile(ordered, 0.5), quantile(ordered, 0.95)
    return Distribution(name, _steps(counts), _at(median, end), _at(p95, end), beyond, len(ordered))


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
