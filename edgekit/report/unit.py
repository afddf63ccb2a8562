"""What only some targets have: an estimate, what runs on the unit, its emulator, runtimes side by side."""

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
    """What is said of the int8 artifact without running it on the hardware.

    Attributes:
        by_compiler: Whether the vendor's compiler says it; else it is worked out from a hardware table.
        complete: Whether it accounts for every operator.
        timed: Whether it holds a latency.
        memory: Kind of memory and size.
        layers: The slowest operators.
        count: How many operators there are.
        missing: Operator, node, rule and remedy of each that does not run on the unit.
        notes: What the reader must know.
    """

    by_compiler: bool
    complete: bool
    timed: bool
    memory: list[tuple[str, str]]
    layers: list[LayerCost]
    count: int
    missing: list[tuple[str, str, str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Coverage:
    """Which nodes of the int8 artifact run on the unit.

    Attributes:
        unit: Its name.
        compiled: Whether the vendor's compiler placed the nodes; else edgekit's rules did.
        on_unit: Nodes that run there.
        nodes: Nodes in all.
        ops: Type, how many there are, how many run on the unit, and as what.
        left: Operator, node, rule and remedy of each that does not.
        boundary: The same of conversions at the edge of the network.
        inserted: What the compiler added.
        stamp: What the compiled file says that it is for.
        notes: What the reader must know.
    """

    unit: str
    compiled: bool
    on_unit: int
    nodes: int
    ops: list[tuple[str, int, int, str]]
    left: list[tuple[str, str, str, str]]
    boundary: list[tuple[str, str, str, str]]
    inserted: str
    stamp: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Emulation:
    """The task in the unit's emulator, beside this machine on the same samples.

    Attributes:
        unmeasured: Why it was not run; empty where it was.
        samples: How many were run.
        seconds: What that took.
        rows: Metric, and its value in float, in int8 on this machine and in the emulator.
    """

    unmeasured: str
    samples: int
    seconds: str
    rows: list[tuple[str, str, str, str]]


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
    notes: list[str]


def estimate(target: dict[str, Any]) -> Estimate | None:
    """The estimate of a target's int8 artifact; None where there is none."""
    entry = table(table(target.get("estimate")).get("int8"))
    if not entry:
        return None
    layers = items(entry.get("layers"))
    total = sum(finite(layer.get("cycles")) or 0.0 for layer in layers)
    return Estimate(
        by_compiler=table(entry.get("latency")).get("method") != "model-estimate",
        complete=not entry.get("missing"),
        timed=entry.get("latency") is not None,
        memory=[
            (name, bytes_text(size))
            for name, raw in table(entry.get("memory")).items()
            if (size := finite(raw))
        ],
        layers=[_layer(layer, total) for layer in layers[:_SLOWEST]],
        count=len(layers),
        missing=_left(entry.get("missing")),
        notes=[clean(note) for key in ("problems", "notes") for note in entry.get(key) or []],
    )


def coverage(found: dict[str, Any]) -> Coverage | None:
    """The ``coverage`` of a target's report entry; None where there is none."""
    if not found:
        return None
    return Coverage(
        unit=clean(found.get("unit")),
        compiled=found.get("method") == "compiled",
        on_unit=int(finite(found.get("on_unit")) or 0),
        nodes=int(finite(found.get("nodes")) or 0),
        ops=[
            (
                clean(row.get("op")),
                int(finite(row.get("nodes")) or 0),
                int(finite(row.get("on_unit")) or 0),
                _counted(table(row.get("kernels"))),
            )
            for row in sorted(items(found.get("ops")), key=lambda row: -(finite(row.get("nodes")) or 0))
        ],
        left=_left(found.get("left")),
        boundary=_left(found.get("boundary")),
        inserted=_counted(table(found.get("inserted"))),
        stamp=[(clean(key), clean(value)) for key, value in table(found.get("stamp")).items()],
        notes=[clean(note) for note in found.get("notes") or []],
    )


def emulation(target: dict[str, Any]) -> Emulation | None:
    """The task in the unit's emulator; None where it was not run."""
    entry = table(target.get("emulator"))
    if not entry:
        return None
    kinds = [table(entry.get(kind)) for kind in ("float", "int8", "emulator")]
    rows = []
    for metric in kinds[-1]:
        before, here, there = (_metric(found, metric) for found in kinds)
        rows.append((metric, before, here, there))
    return Emulation(
        unmeasured=clean(entry.get("unmeasured")),
        samples=int(finite(entry.get("samples")) or 0),
        seconds=f"{finite(entry.get('seconds')) or 0.0:.1f}",
        rows=rows,
    )


def _metric(entry: dict[str, Any], metric: str) -> str:
    value = finite(table(entry.get(metric)).get("value"))
    return "" if value is None else f"{value:.4f}"


def _counted(counts: dict[str, Any]) -> str:
    return ", ".join(
        name if count == 1 else f"{name} ×{count:.0f}"
        for name, raw in sorted(counts.items(), key=lambda pair: -(finite(pair[1]) or 0))
        if (count := finite(raw))
    )


def _left(found: object) -> list[tuple[str, str, str, str]]:
    keys = ("op", "node", "reason", "remedy")
    return [tuple(clean(item.get(key)) for key in keys) for item in items(found)]  # type: ignore[misc]


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
    notes = [clean(note) for note in entry.get("notes") or []]
    return Runtimes(
        clean(entry.get("reference")), budget, int(finite(entry.get("samples")) or 0), rows, notes
    )


def unit_lines(target: dict[str, Any], paint: Paint, width: int) -> Iterator[str]:
    """Both for a terminal."""
    found = estimate(target)
    if found is not None:
        yield ""
        if not found.timed and found.complete:
            yield paint("Memory on the device", "bold")
        elif not found.by_compiler:
            yield paint("Latency is worked out from a hardware table, not measured", "warn")
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
    covered = coverage(table(target.get("coverage")))
    if covered is not None:
        yield ""
        yield from coverage_lines(covered, paint, width)
    emulated = emulation(target)
    if emulated is not None:
        yield from _emulation_lines(emulated, paint, width)
    between = runtimes(target)
    if between is not None:
        yield ""
        yield paint(
            f"Steps of 8 bits off {between.reference} at the outputs ({between.budget} allowed)", "bold"
        )
        for row in between.rows:
            text = f"{row.runtime}: {row.steps or 'not compared'}"
            if row.steps and row.steps != "0":
                text += f" at most, {row.rms} RMS, {row.different} of the codes differ"
            yield from (paint(line, row.tone) for line in listed(text, width))
            if row.layer_steps:
                alone = f"its layers: {row.layer_steps} at most, {row.layer_different} of the codes differ"
                yield from listed(alone, width)
        for note in between.notes:
            yield from listed(note, width)


def coverage_lines(found: Coverage, paint: Paint, width: int) -> Iterator[str]:
    """What runs on the unit, and all that does not, for a terminal."""
    by = "" if found.compiled else " by the rules: it was not compiled"
    tone = "warn" if not found.compiled else "good" if found.on_unit == found.nodes else "bad"
    yield paint(f"{found.on_unit} of {found.nodes} nodes run on {found.unit}{by}", tone)
    if found.stamp:
        yield from listed(", ".join(f"{key} {value}" for key, value in found.stamp), width)
    for op, node, reason, remedy in found.left:
        yield from listed(f"{op} '{node}': {reason}{f'. {remedy}' if remedy else ''}", width)
    if found.boundary:
        names = ", ".join(f"{op} '{node}'" for op, node, _, _ in found.boundary)
        yield from listed(f"on the CPU at the edge: {names}", width)
    if found.inserted:
        yield from listed(f"added by the compiler: {found.inserted}", width)
    for note in found.notes:
        yield from listed(note, width)


def _emulation_lines(found: Emulation, paint: Paint, width: int) -> Iterator[str]:
    yield ""
    if found.unmeasured:
        yield paint("The emulator was not run", "warn")
        yield from listed(found.unmeasured, width)
        return
    yield paint(f"In the emulator, {found.samples} samples in {found.seconds} s", "bold")
    for metric, before, here, there in found.rows:
        first = f"float {before}, " if before else ""
        text = f"{metric}: {first}int8 here {here}, int8 in the emulator {there}"
        yield from listed(text, width)


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
    if share == 0:
        return "none"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
