"""The report on a terminal: the closing lines of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.report.compression import compression
from edgekit.report.compression_text import stage_lines, step_lines
from edgekit.report.findings import sort_findings
from edgekit.report.numbers import DASH, Figure, items, table
from edgekit.report.quantizer import ladder_lines
from edgekit.report.stages import stages
from edgekit.report.summary import Row, Verdict, budget_lines, primary_metric, rows, title, verdicts
from edgekit.report.text import Paint, clean, listed, painter, wrapped
from edgekit.report.unit import unit_lines

_SHOWN = 5


def summary(
    report: dict[str, Any], *, report_path: Path | None = None, colour: bool = False, width: int = 100
) -> str:
    """The verdict, the table float | int8, what needs the reader's eye, and where the whole report is.

    Args:
        report: The report JSON, schema 1; parts that it lacks are left out.
        report_path: The HTML page, named in the last line.
        colour: True writes ANSI styles; leave it off when the output is not a terminal.
        width: Columns to wrap long lines to.

    Returns:
        Lines without a final line break.
    """
    paint = painter(colour=colour)
    lines: list[str] = []
    found = compression(report)
    if found is not None:
        lines += step_lines(found, paint, width)
    sentences = verdicts(report)
    for index, target in enumerate(items(report.get("targets"))):
        lines += ["", paint(f"{clean(title(report))} on {clean(target.get('target'))}", "bold")]
        lines += _sentence(sentences[index], paint, width)
        if found is not None:
            lines += _networks(target, paint)
        shown = [row for row in rows(target) if not row.page_only]
        lines += _figures(shown, paint, head="" if found is None else "compressed")
        lines += unit_lines(target, paint, width)
        lines += quantization_lines(table(target.get("quantization")), colour=colour, width=width)
    lines += _budget(report, paint)
    warnings = report.get("warnings") or []
    if warnings:
        lines += ["", paint(f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'}", "warn")]
        lines += [line for text in warnings for line in listed(text, width)]
    if report_path is not None:
        lines += ["", f"Report: {report_path}"]
    return "\n".join(lines).strip("\n")


def _sentence(verdict: Verdict, paint: Paint, width: int) -> Iterator[str]:
    yield from (paint(line, verdict.tone) for line in wrapped(verdict.text, width))
    yield from wrapped(verdict.detail, width)


def _networks(target: dict[str, Any], paint: Paint) -> Iterator[str]:
    found = stages(target, primary_metric(target))
    if found is not None:
        yield from stage_lines(found, paint)


def _figures(found: list[Row], paint: Paint, *, head: str) -> Iterator[str]:
    if not found:
        return
    cells = [(row, _cell(row.float_), _cell(row.int8)) for row in found]
    label = max(len(head), *(len(_label(row)) for row in found))
    before = max(len("float"), *(len(text) for _, (text, _), _ in cells))
    before_method = max(len(method) for _, (_, method), _ in cells)
    after = max(len("int8"), *(len(text) for _, _, (text, _) in cells))
    after_method = max(len(method) for _, _, (_, method) in cells)
    yield ""
    head = f"{head:{label}}  {'float':>{before}} {'':{before_method}}  {'int8':>{after}}"
    yield paint(head.rstrip(), "quiet")
    for row, (float_text, float_method), (int8_text, int8_method) in cells:
        parts = (
            f"{_label(row):<{label}}",
            f"{float_text:>{before}} {paint(f'{float_method:<{before_method}}', 'quiet')}",
            f"{int8_text:>{after}} {paint(f'{int8_method:<{after_method}}', 'quiet')}",
            paint(row.change, row.tone),
        )
        yield "  ".join(parts).rstrip()


def quantization_lines(
    quantization: dict[str, Any], *, colour: bool = False, width: int = 100, rest: str = "in the report"
) -> Iterator[str]:
    """Range clashes and tensors in a wider format, the first of each; ``rest`` says where the others are."""
    paint = painter(colour=colour)
    yield from ladder_lines(quantization, paint, width)
    findings = sort_findings(quantization)
    if findings.count:
        yield from ("", paint(f"{findings.count} range clash{'' if findings.count == 1 else 'es'}", "bold"))
        for entry in findings.clashes[:_SHOWN]:
            yield from listed(f"{clean(entry.get('where'))}: {clean(entry.get('text'))}", width)
            if entry.get("action"):
                yield from (f"    {line}" for line in wrapped(f"→ {clean(entry['action'])}", width - 4))
        yield from _more(len(findings.clashes), rest)
        if findings.tails:
            yield from listed(findings.tails_text, width)
    raised = items(quantization.get("raised"))
    if raised:
        yield from (
            "",
            paint(f"{len(raised)} tensor{'' if len(raised) == 1 else 's'} in a wider format", "bold"),
        )
        for entry in raised[:_SHOWN]:
            what, why = (
                f"{clean(entry.get('tensor'))} ({clean(entry.get('format'))})",
                clean(entry.get("reason")),
            )
            yield from listed(f"{what}: {why}", width)
        yield from _more(len(raised), rest)


def _budget(report: dict[str, Any], paint: Paint) -> Iterator[str]:
    lines = budget_lines(report)
    if lines:
        yield ""
    for line in lines:
        word = paint("met   ", "good") if line.ok else paint("missed", "bad")
        yield f"Budget {word}  {clean(line.name.lower())} {line.value}, limit {line.limit}"


def _more(count: int, rest: str) -> Iterator[str]:
    if count > _SHOWN:
        yield f"  … and {count - _SHOWN} more {rest}"


def _cell(shown: Figure | None) -> tuple[str, str]:
    return (DASH, "") if shown is None else (clean(shown.text), clean(shown.method))


def _label(row: Row) -> str:
    return f"  {clean(row.label)}" if row.detail else clean(row.label)
