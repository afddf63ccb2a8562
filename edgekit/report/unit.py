"""What only some targets have: the estimate of a compiler, and several runtimes side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.report.numbers import bytes_text, count_text, finite, items, table
from edgekit.report.text import Paint, clean, listed

#: Layers shown of an estimate.
_SLOWEST = 10


@dataclass(frozen=True)
class LayerCost:
    """One operator of the compiler's estimate; ``share`` of all cycles in percent."""

    name: str
    op: str
    cycles: str
    macs: str
    utilization: str
    share: float


@dataclass(frozen=True)
class Estimate:
    """What the compiler says of the int8 artifact.

    Attributes:
        complete: Whether it accounts for every operator.
        timed: Whether it holds a latency.
        memory: Kind of memory and size.
        layers: The slowest operators.
        count: How many operators there are.
        missing: Operator, node, rule and remedy of each that does not run on the unit.
        notes: What the reader must know.
    """

    complete: bool
    timed: bool
    memory: list[tuple[str, str]]
    layers: list[LayerCost]
    count: int
    missing: list[tuple[str, str, str, str]]
    notes: list[str]


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime against the reference: outputs, then layers."""

    runtime: str
    steps: str
    rms: str
    different: str
    layer_steps: str
    layer_rms: str
    layer_different: str
    tone: str


@dataclass(frozen=True)
class Runtimes:
    """The same int8 network in several runtimes."""

    reference: str
    budget: int
    samples: int
    rows: list[RuntimeRow]


def estimate(target: dict[str, Any]) -> Estimate | None:
    """The compiler's estimate of a target's int8 artifact; None where there is none."""
    entry = table(table(target.get("estimate")).get("int8"))
    if not entry:
        return None
    layers = items(entry.get("layers"))
    total = sum(finite(layer.get("cycles")) or 0.0 for layer in layers)
    return Estimate(
        complete=not entry.get("missing"),
        timed=entry.get("latency") is not None,
        memory=[
            (name, bytes_text(size))
            for name, raw in table(entry.get("memory")).items()
            if (size := finite(raw))
        ],
        layers=[_layer(layer, total) for layer in layers[:_SLOWEST]],
        count=len(layers),
        missing=[
            tuple(clean(item.get(key)) for key in ("op", "node", "reason", "remedy"))  # type: ignore[misc]
            for item in items(entry.get("missing"))
        ],
        notes=[clean(note) for key in ("problems", "notes") for note in entry.get(key) or []],
    )


def runtimes(target: dict[str, Any]) -> Runtimes | None:
    """How far runtimes are apart; None where only one runs the artifact."""
    entry = table(target.get("runtimes"))
    if not entry:
        return None
    budget = int(finite(entry.get("budget_steps")) or 0)
    layers = table(entry.get("layers"))
    rows = []
    for name, raw in table(entry.get("outputs")).items():
        steps, rms, different = _worst(raw)
        layer_steps, layer_rms, layer_different = _worst(layers.get(name))
        rows.append(
            RuntimeRow(
                name,
                _steps(steps, 0),
                _steps(rms, 2),
                _percent(different),
                _steps(layer_steps, 0),
                _steps(layer_rms, 2),
                _percent(layer_different),
                "bad" if steps is not None and steps > budget else "",
            )
        )
    return Runtimes(clean(entry.get("reference")), budget, int(finite(entry.get("samples")) or 0), rows)


def unit_lines(target: dict[str, Any], paint: Paint, width: int) -> Iterator[str]:
    """Both for a terminal."""
    found = estimate(target)
    if found is not None:
        yield ""
        if not found.timed and found.complete:
            yield paint("Memory on the device", "bold")
        elif found.complete:
            yield paint("The compiler's estimate covers every operator", "good")
        else:
            count = len(found.missing)
            rest = f"{count} operator{'' if count == 1 else 's'} on the CPU"
            yield paint(f"The compiler's estimate is incomplete: {rest}", "bad")
        if found.memory:
            yield from listed(", ".join(f"{name} {size}" for name, size in found.memory), width)
        for note in found.notes:
            yield from listed(note, width)
    between = runtimes(target)
    if between is not None:
        yield ""
        yield paint(f"Steps off {between.reference} at the outputs ({between.budget} allowed)", "bold")
        for row in between.rows:
            text = f"{row.runtime}: {row.steps or 'not compared'}"
            if row.steps and row.steps != "0":
                text += f" at most, {row.rms} RMS, {row.different} of the codes differ"
            yield from (paint(line, row.tone) for line in listed(text, width))


def _layer(entry: dict[str, Any], total: float) -> LayerCost:
    cycles, macs, used = (finite(entry.get(key)) for key in ("cycles", "macs", "utilization"))
    return LayerCost(
        name=clean(entry.get("name")),
        op=clean(entry.get("op")),
        cycles="" if cycles is None else count_text(cycles),
        macs="" if macs is None else count_text(macs),
        utilization="" if used is None else f"{100 * used:.0f} %",
        share=0.0 if cycles is None or not total else round(100 * cycles / total, 2),
    )


def _worst(rows: object) -> tuple[float | None, float | None, float | None]:
    """Largest difference in steps, largest mean one, and largest share of codes that differ."""
    found = items(rows)

    def largest(key: str) -> float | None:
        return max((value for row in found if (value := finite(row.get(key))) is not None), default=None)

    return largest("max_steps"), largest("rms_steps"), largest("different")


def _steps(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "none" if share == 0 else f"{100 * share:.2g} %"
