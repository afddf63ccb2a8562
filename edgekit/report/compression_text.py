"""Compression on a terminal: one step for the commands, all steps and the table of networks for a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgekit.report.compression import Change, Compression, Step, step_view
from edgekit.report.compression_parts import Because, Sensitivity
from edgekit.report.numbers import DASH
from edgekit.report.stages import Cell, Stages
from edgekit.report.text import Paint, clean, listed, painter, wrapped

_SHOWN = 5


def compression_lines(
    step: dict[str, Any], *, colour: bool = False, width: int = 100, rest: str = "with --json"
) -> list[str]:
    """One step for a person: what it did, what it reached, what it cost.

    Args:
        step: An entry of the report's ``compress.steps``; parts that it lacks are left out.
        colour: True writes ANSI styles.
        width: Columns to wrap long lines to.
        rest: Where the entries are that long lists leave out.
    """
    view = step_view(step)
    paint = painter(colour=colour)
    lines = [_head(view, paint)]
    lines += wrapped(view.summary, width)
    lines += wrapped(view.saved, width)
    lines += _changes(view.sizes, paint)
    lines += _outcome(view, paint)
    lines += [f"{clean(name)}: {clean(value)}" for name, value in view.facts]
    lines += _groups(view, width, rest)
    if view.refit is not None:
        lines += wrapped(f"Refit: {len(view.refit.rows)} layers, {view.refit.text}", width)
    if view.curve is not None:
        lines += wrapped(f"Training: {view.curve.text}", width)
    if view.sensitivity is not None:
        lines += _sensitivity(view.sensitivity, paint, rest)
    lines += _stored(view, paint, width)
    if view.locked:
        count = view.locked_places
        lines += ["", paint(f"{count} part{'' if count == 1 else 's'} left whole", "bold")]
        lines += _reasons(view.locked, width, rest)
    if view.notes:
        lines += ["", paint("Notes", "warn")]
        lines += [line for note in view.notes for line in listed(note, width)]
    return lines


def step_lines(found: Compression, paint: Paint, width: int) -> Iterator[str]:
    """All steps of a run, a few lines each."""
    sizes = ", ".join(
        f"{c.label.lower()} {_moved(c)}{f' ({c.change})' if c.change else ''}" for c in found.sizes
    )
    head = f"Compression{f' in {found.seconds}' if found.seconds else ''}{f': {sizes}' if sizes else ''}"
    yield from (paint(line, "bold") for line in wrapped(head, width))
    for step in found.steps:
        yield f"{step.number} {_head(step, paint)}"
        for line in (
            *wrapped(step.summary, width - 2),
            *wrapped(step.saved, width - 2),
            *_outcome(step, paint),
        ):
            yield f"  {line}"


def stage_lines(found: Stages, paint: Paint) -> Iterator[str]:
    """Original and compressed networks in columns: each figure, and what became of it since the original."""
    rows = (*found.rows, *found.splits)
    names = max(len(row.name) + 2 * (row in found.splits) for row in rows)
    columns = [
        _column(column.label, [row.cells[i] for row in rows]) for i, column in enumerate(found.columns)
    ]
    widths = [max(len(head), *(len(text) for text, _, _ in cells)) for head, cells in columns]
    heads = "  ".join(f"{head:<{width}}" for (head, _), width in zip(columns, widths, strict=True))
    yield ""
    yield paint(f"{'':{names}}  {heads}".rstrip(), "quiet")
    for index, row in enumerate(rows):
        parts = [f"{f'  {row.name}' if row in found.splits else row.name:<{names}}"]
        for (_, cells), width in zip(columns, widths, strict=True):
            text, start, tone = cells[index]
            padded = f"{text:<{width}}"
            parts.append(padded[:start] + paint(padded[start:], tone))
        yield "  ".join(parts).rstrip()


def _column(label: str, cells: Sequence[Cell]) -> tuple[str, list[tuple[str, int, str]]]:
    """The head, and for each cell its text, where its change starts, and that one's tone."""
    values = [DASH if cell.figure is None else clean(cell.figure.text) for cell in cells]
    values = ["" if cell.figure is None and cell.change else v for cell, v in zip(cells, values, strict=True)]
    wide = max(len(value) for value in values)
    return clean(label), [
        (f"{value:>{wide}} {_short(cell.change)}", wide + 1, cell.tone)
        for value, cell in zip(values, cells, strict=True)
    ]


def _short(change: str) -> str:
    """Without the word that a reader expects; a loss keeps its word."""
    return change.removesuffix(" faster").removesuffix(" smaller")


def _head(step: Step, paint: Paint) -> str:
    return f"{paint(clean(step.name) or 'step', 'bold')}{paint(f'  {step.seconds}', 'quiet')}".rstrip()


def _outcome(step: Step, paint: Paint) -> Iterator[str]:
    if step.aim:
        text = clean(step.aim[:1].upper() + step.aim[1:])
        yield paint(f"{text} – missed", "bad") if step.missed else text
    if step.distance:
        yield f"Distance to the original: {', '.join(f'{m.text} {m.label}' for m in step.distance)}"


def _changes(changes: Sequence[Change], paint: Paint) -> Iterator[str]:
    if not changes:
        return
    label, before, after = (
        max(len(clean(getattr(change, key))) for change in changes) for key in ("label", "before", "after")
    )
    for change in changes:
        arrow = "→" if change.before else " "
        figures = f"{clean(change.before):>{before}} {arrow} {clean(change.after):>{after}}"
        yield f"{clean(change.label):<{label}}  {figures}  {paint(change.change, change.tone)}".rstrip()


def _groups(step: Step, width: int, rest: str) -> Iterator[str]:
    if step.groups is not None:
        yield from wrapped(f"Kept {step.groups.text}; {step.groups.narrower}", width)
        narrow = [row for row in step.groups.rows if row.after < row.before]
        narrow.sort(key=lambda row: row.kept)
        for row in narrow[:_SHOWN]:
            yield from listed(f"{row.name}: {row.after} of {row.before}", width)
        yield from _more(len(narrow), rest)
    if step.dropped:
        yield f"Bypassed {len(step.dropped)} block{'' if len(step.dropped) == 1 else 's'}"
        for first, last in step.dropped[:_SHOWN]:
            yield from listed(f"{first} → {last}", width)
        yield from _more(len(step.dropped), rest)


def _sensitivity(found: Sensitivity, paint: Paint, rest: str) -> Iterator[str]:
    yield ""
    yield paint("Sensitivity, cheapest first", "bold")
    rows = [
        (clean(row.group), row.ratio, row.distance, row.metric, row.macs, row.latency)
        for row in found.rows[: 2 * _SHOWN]
    ]
    heads = ("", "removed", "distance", "score", "MACs saved", "latency saved")
    shown = [index for index in range(len(heads)) if index == 0 or any(row[index] for row in rows)]
    widths = {index: max(len(heads[index]), *(len(row[index]) for row in rows)) for index in shown}

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            f"{cells[i]:<{widths[i]}}" if i == 0 else f"{cells[i]:>{widths[i]}}" for i in shown
        ).rstrip()

    yield paint(line(heads), "quiet")
    for row in rows:
        yield line(row)
    if found.broken:
        yield f"  {found.broken} more gave outputs that are not finite numbers"
    if len(found.rows) > len(rows):
        yield f"  … and {len(found.rows) - len(rows)} more {rest}"


def _stored(step: Step, paint: Paint, width: int) -> Iterator[str]:
    if step.bytes:
        yield ""
        yield paint("Stored size of the weights", "bold")
        label, size = (max(len(clean(getattr(row, key))) for row in step.bytes) for key in ("name", "text"))
        for row in step.bytes:
            yield f"{clean(row.name):<{label}}  {row.text:>{size}}  {row.change:>5}".rstrip()
    for target, latency, text in step.benefit:
        word = paint("runs faster", "good") if latency else paint("not faster", "warn")
        yield f"{clean(target)}: {word}"
        yield from (f"  {line}" for line in wrapped(text, width - 2))


def _reasons(entries: Sequence[Because], width: int, rest: str) -> Iterator[str]:
    for entry in entries[:_SHOWN]:
        places = (
            entry.places[0]
            if len(entry.places) == 1
            else f"{entry.places[0]} and {len(entry.places) - 1} more"
        )
        yield from listed(f"{places}: {entry.reason}", width)
    yield from _more(len(entries), rest)


def _more(count: int, rest: str) -> Iterator[str]:
    if count > _SHOWN:
        yield f"  … and {count - _SHOWN} more {rest}"


def _moved(change: Change) -> str:
    return f"{change.before} → {change.after}" if change.before else change.after
