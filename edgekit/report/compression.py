"""The report's ``compress`` arranged for the views: what each step asked for, reached and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekit.report.compare import ratio, share_change
from edgekit.report.compression_parts import (
    Because,
    ByteRow,
    Curve,
    GroupsView,
    RefitView,
    Sensitivity,
    because,
    byte_rows,
    curve,
    groups_view,
    refit_view,
    sensitivity,
)
from edgekit.report.numbers import bytes_text, count_text, figure, finite, items, significant, table

#: What a step may miss its aim by before it is pointed out: widths come in multiples of the alignment.
_SLACK = 0.02
_SIZES = (
    ("parameters", "Parameters", count_text),
    ("macs", "Multiply-accumulates", count_text),
    ("size_bytes", "Weights", bytes_text),
)
_AIMS = {
    "keep": "units kept",
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes of weights",
    "latency": "latency",
}
_DISTANCES = {
    "pruned": {"prune": "after pruning", "sparsify": "after zeroing weights"},
    "recovered": {"": "after recovery"},
    "before": {"": "before"},
    "after": {"": "after"},
}


@dataclass(frozen=True)
class Change:
    """A figure before and after, what became of it, and how to take that (``good``, ``bad`` or empty)."""

    label: str
    before: str
    after: str
    change: str = ""
    tone: str = ""

    @property
    def moved(self) -> bool:
        """Whether before and after differ."""
        return self.before != self.after


@dataclass(frozen=True)
class Meter:
    """A value on a bar: its text, and its share of the longest bar in percent."""

    label: str
    text: str
    share: float
    tone: str = ""


@dataclass(frozen=True)
class Step:
    """One pass over the graph.

    Attributes:
        number: Its place in the line, from 1.
        name: The pass: ``prune``, ``sparsify``, ``distill`` …
        seconds: What it took; empty where that is unknown.
        summary: Its own sentence.
        saved: Where its result came from, when it was not made in this run.
        sizes: Parameters, multiply-accumulates and weights, before and after; expected latency.
        aim: What was asked and what was reached.
        missed: Whether the aim was missed.
        facts: How it was done, as (name, value).
        distance: How far the outputs are from the original's.
        notes: What the reader must know.
        groups: Channels kept in each group.
        dropped: Blocks bypassed, as (input, output).
        locked: What was left whole, by reason.
        sensitivity: What each group does to the outputs, against what it saves.
        refit: Errors of the refitted layers.
        curve: Losses of a training.
        bytes: Sizes when stored in different ways.
        benefit: What it brings on each target, as (target, whether it runs faster, text).
        layers: Sparsity of each layer.
    """

    number: int
    name: str
    seconds: str
    summary: str
    saved: str
    sizes: list[Change]
    aim: str
    missed: bool
    facts: list[tuple[str, str]]
    distance: list[Meter]
    notes: list[str]
    groups: GroupsView | None
    dropped: list[tuple[str, str]]
    locked: list[Because]
    sensitivity: Sensitivity | None
    refit: RefitView | None
    curve: Curve | None
    bytes: list[ByteRow]
    benefit: list[tuple[str, bool, str]]
    layers: list[Meter]

    @property
    def locked_places(self) -> int:
        """How many places were left whole."""
        return sum(len(entry.places) for entry in self.locked)


@dataclass(frozen=True)
class Compression:
    """All steps, and what they did together."""

    steps: list[Step]
    sizes: list[Change]
    seconds: str


def compression(report: dict[str, Any]) -> Compression | None:
    """The report's ``compress``; None where nothing was compressed."""
    compress = table(report.get("compress"))
    if not compress:
        return None
    entries = items(compress.get("steps"))
    taken = [value for entry in entries if (value := finite(entry.get("seconds"))) is not None]
    return Compression(
        [step_view(entry, number) for number, entry in enumerate(entries, 1)],
        _sizes(table(compress.get("original")), table(compress.get("final"))),
        seconds_text(sum(taken)) if taken else "",
    )


def step_view(step: dict[str, Any], number: int = 1) -> Step:
    """One entry of ``compress.steps``; parts that it lacks come out empty."""
    name = _text(step.get("pass"))
    reached = table(step.get("reached"))
    seconds = finite(step.get("seconds"))
    return Step(
        number=number,
        name=name,
        seconds="" if seconds is None else seconds_text(seconds),
        summary=_text(step.get("summary")),
        saved=_text(step.get("saved")),
        sizes=[
            # A training leaves all of them as they were.
            *(size for size in _sizes(table(step.get("before")), table(step.get("after"))) if size.moved),
            *_predicted(step),
        ],
        aim=_aim(reached),
        missed=_missed(reached),
        facts=_facts(step),
        distance=_distance(table(step.get("distance")), name),
        notes=[_text(note) for note in step["notes"]] if isinstance(step.get("notes"), list) else [],
        groups=groups_view(items(step.get("groups"))),
        dropped=[
            (_text(entry.get("input")), _text(entry.get("output"))) for entry in items(step.get("dropped"))
        ],
        locked=because([*items(step.get("locked")), *items(step.get("refused"))]),
        sensitivity=sensitivity(items(step.get("sensitivity"))),
        refit=refit_view(table(step.get("refit"))),
        curve=curve(items(step.get("epochs")), finite(step.get("best_epoch"))),
        bytes=byte_rows(table(step.get("bytes"))),
        benefit=[
            (_text(entry.get("target")), entry.get("latency") is True, _text(entry.get("text")))
            for entry in items(step.get("benefit"))
        ],
        layers=_sparse_layers(items(step.get("layers"))),
    )


def seconds_text(seconds: float) -> str:
    """A duration: 9.13 → 9.1 s; 754 → 12 min 34 s; 7380 → 2 h 3 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """A share in percent: 0.4974 → 49.7 %."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _sizes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    changes = []
    for key, label, text in _SIZES:
        first, second = finite(before.get(key)), finite(after.get(key))
        if second is not None:
            changes.append(
                Change(label, "" if first is None else text(first), text(second), share_change(first, second))
            )
    return changes


def _predicted(step: dict[str, Any]) -> list[Change]:
    predicted = table(step.get("predicted"))
    before, after = (figure(predicted.get(key), "ms") for key in ("before", "after"))
    if after is None:
        return []
    change, tone = ratio(before, after, "faster", "slower")
    label = f"Latency ({after.method})" if after.method else "Latency"
    return [Change(label, "" if before is None else before.text, after.text, change, tone)]


def _aim(reached: dict[str, Any]) -> str:
    asked, got = finite(reached.get("asked")), finite(reached.get("got"))
    what = _AIMS.get(_text(reached.get("measure")), _text(reached.get("measure")))
    parts = [] if asked is None else [f"{percent(asked)} asked"]
    parts += [] if got is None else [f"{percent(got)} reached"]
    return f"{what}: {', '.join(parts)}".removeprefix(": ") if parts else ""


def _missed(reached: dict[str, Any]) -> bool:
    asked, got = finite(reached.get("asked")), finite(reached.get("got"))
    return asked is not None and got is not None and got > asked * (1 + _SLACK)


def _facts(step: dict[str, Any]) -> list[tuple[str, str]]:
    align, steps, verify = (finite(step.get(key)) for key in ("align", "steps", "verify"))
    sparsity, best = finite(step.get("sparsity")), finite(step.get("best_epoch"))
    refit = finite(table(step.get("refit")).get("seconds"))
    kinds = ", ".join(f"{output}: {kind}" for output, kind in table(step.get("kinds")).items())
    found = [
        ("Activations", f"{_text(step.get('from'))} → {_text(step.get('to'))}" if step.get("from") else ""),
        ("Replaced", ", ".join(_text(node) for node in step.get("replaced") or [])),
        ("Ranked by", _text(step.get("importance"))),
        ("Pattern", _text(step.get("pattern"))),
        ("Zero weights", "" if sparsity is None else percent(sparsity)),
        ("Widths", f"multiples of {align:.0f}" if align is not None and align > 1 else ""),
        ("Schedule", f"{steps:.0f} steps" if steps is not None and steps > 1 else ""),
        ("Outputs taken for", kinds),
        ("Best epoch", "" if best is None else f"{best:.0f} of {len(items(step.get('epochs'))) or '?'}"),
        ("Layers refitted in", "" if refit is None else seconds_text(refit)),
        ("Proof", "" if verify is None else f"pruned and masked outputs differ by {verify:.1e}, relative"),
    ]
    return [(name, value) for name, value in found if value]


def _distance(distance: dict[str, Any], name: str) -> list[Meter]:
    found = {key: value for key in _DISTANCES if (value := finite(distance.get(key))) is not None}
    top = max(found.values(), default=0.0)
    return [
        Meter(
            _DISTANCES[key].get(name) or _DISTANCES[key].get("", key),
            significant(value, 2),
            round(100 * max(value, 0.0) / top, 1) if top > 0 else 0.0,
            "" if key in ("recovered", "after") else "quiet",
        )
        for key, value in found.items()
    ]


def _sparse_layers(layers: Iterable[dict[str, Any]]) -> list[Meter]:
    found = [(_text(layer.get("name")), finite(layer.get("sparsity"))) for layer in layers]
    return [
        Meter(name, percent(share), round(100 * min(max(share, 0.0), 1.0), 1))
        for name, share in found
        if share is not None
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)
