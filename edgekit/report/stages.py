"""The networks on the way from the original to the compressed int8 one, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.report.compare import cosine_label, file_size, ratio, score_change
from edgekit.report.numbers import Figure, bytes_text, figure, finite, table

#: The kinds of networks that a target's entry can hold figures of, in the order of the table.
STAGES = {
    "original": "original float",
    "original_int8": "original int8",
    "float": "compressed float",
    "int8": "compressed int8",
}
_SPLITS = (
    ("by compression", "original", "float"),
    ("by int8", "float", "int8"),
    ("against original int8", "original_int8", "int8"),
)


@dataclass(frozen=True)
class Column:
    """One quantity.

    Attributes:
        label: Its name.
        noun: What it is called in a sentence: ``speed``, ``size`` or the score's name.
        method: How its figures were obtained, where all were obtained in one way; else empty.
    """

    label: str
    noun: str
    method: str = ""


@dataclass(frozen=True)
class Cell:
    """One figure, what became of it since the network it is compared with, and how to take that."""

    figure: Figure | None
    change: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Stage:
    """One network: its kind (a key of ``STAGES``), what a person calls it, one cell for each column."""

    kind: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Stages:
    """The table of one target.

    Attributes:
        columns: Size, latency, score; those of which there are figures.
        rows: The networks of which there are figures; the cells' changes are since the original float.
        splits: Where the whole change comes from: cells without figures, changes between two rows.
    """

    columns: tuple[Column, ...]
    rows: tuple[Stage, ...]
    splits: tuple[Stage, ...]

    def row(self, kind: str) -> Stage | None:
        """The row of one kind."""
        return next((row for row in self.rows if row.kind == kind), None)

    def index(self, noun: str) -> int | None:
        """The last column with this noun: of two latencies, that of the usual number of threads."""
        found = [index for index, column in enumerate(self.columns) if column.noun == noun]
        return found[-1] if found else None


@dataclass(frozen=True)
class _Quantity:
    """A column with its figures by kind."""

    column: Column
    figures: dict[str, Figure]
    words: tuple[str, str] | None  # better and worse of a ratio; None compares by difference

    def cell(self, before: str, after: str, *, show: bool) -> Cell:
        first, second = self.figures.get(before), self.figures.get(after)
        change, tone = ("", "")
        if before != after:
            change, tone = ratio(first, second, *self.words) if self.words else score_change(first, second)
        return Cell(second if show else None, change, tone)


def stages(target: dict[str, Any], metric: str | None) -> Stages | None:
    """The table of one target; None where nothing is known of the original network.

    Args:
        target: A target's entry of the report.
        metric: The task's main score.
    """
    quantities = [q for q in (_size(target), *_latencies(target), _score(target, metric)) if q is not None]
    if not any(kind in q.figures for q in quantities for kind in ("original", "original_int8")):
        return None
    rows = [
        Stage(kind, name, tuple(q.cell("original", kind, show=True) for q in quantities))
        for kind, name in STAGES.items()
        if any(kind in q.figures for q in quantities)
    ]
    splits = [
        Stage(label, label, tuple(q.cell(before, after, show=False) for q in quantities))
        for label, before, after in _SPLITS
    ]
    return Stages(
        tuple(q.column for q in quantities),
        tuple(rows),
        tuple(split for split in splits if any(cell.change for cell in split.cells)),
    )


def _size(target: dict[str, Any]) -> _Quantity | None:
    sizes, artifacts = table(target.get("sizes")), table(target.get("artifacts"))
    figures = {kind: file_size(artifacts.get(kind)) for kind in STAGES}
    for kind in STAGES:
        size = finite(sizes.get(kind))
        if size is not None:
            figures[kind] = Figure(bytes_text(size), "file", value=size)
    return _quantity("Size", "size", figures, ("smaller", "larger"))


def _latencies(target: dict[str, Any]) -> list[_Quantity]:
    found = []
    for key in ("latency_1t", "latency"):
        latency = table(target.get(key))
        count = 1.0 if key == "latency_1t" else finite(latency.get("threads"))
        threads = "" if count is None else f", {count:.0f} thread{'' if count == 1 else 's'}"
        figures = {kind: figure(latency.get(kind), "ms") for kind in STAGES}
        found.append(_quantity(f"Latency{threads}", "speed", figures, ("faster", "slower")))
    # A machine with one core has one latency, whatever it is called.
    one = found[0] is not None and found[1] is not None and found[0].column.label == found[1].column.label
    return [quantity for quantity in found[1 if one else 0 :] if quantity is not None]


def _score(target: dict[str, Any], metric: str | None) -> _Quantity | None:
    if metric is None:
        return None
    task = table(target.get("task"))
    label = cosine_label(task) if metric == "cosine" else metric
    figures = {kind: figure(table(task.get(kind)).get(metric), metric) for kind in STAGES}
    return _quantity(label, label, figures, None)


def _quantity(
    label: str, noun: str, figures: dict[str, Figure | None], words: tuple[str, str] | None
) -> _Quantity | None:
    known = {kind: shown for kind, shown in figures.items() if shown is not None}
    if not known:
        return None
    methods = {shown.method for shown in known.values()}
    return _Quantity(Column(label, noun, methods.pop() if len(methods) == 1 else ""), known, words)
