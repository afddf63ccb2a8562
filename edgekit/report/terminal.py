"""The report on a terminal: the closing lines of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.report.findings import sort_findings
from edgekit.report.numbers import DASH, Figure, items, table
from edgekit.report.summary import Row, budget_lines, rows, title, verdicts

_STYLES = {"bold": "1", "quiet": "2", "good": "32", "warn": "33", "bad": "31"}
_SHOWN = 5

Paint = Callable[[str, str], str]


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
    paint = _ansi if colour else _plain
    lines: list[str] = []
    sentences = verdicts(report)
    for index, target in enumerate(items(report.get("targets"))):
        lines += ["", paint(f"{_clean(title(report))} on {_clean(target.get('target'))}", "bold")]
        lines += [paint(line, sentences[index].tone) for line in _wrapped(sentences[index].text, width)]
        lines += _figures([row for row in rows(target) if not row.page_only], paint)
        lines += quantization_lines(table(target.get("quantization")), colour=colour, width=width)
    lines += _budget(report, paint)
    warnings = report.get("warnings") or []
    if warnings:
        lines += ["", paint(f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'}", "warn")]
        lines += [line for text in warnings for line in _listed(text, width)]
    if report_path is not None:
        lines += ["", f"Report: {report_path}"]
    return "\n".join(lines).strip("\n")


def _figures(found: list[Row], paint: Paint) -> Iterator[str]:
    if not found:
        return
    cells = [(row, _cell(row.float_), _cell(row.int8)) for row in found]
    label = max(len(_label(row)) for row in found)
    before = max(len("float"), *(len(text) for _, (text, _), _ in cells))
    before_method = max(len(method) for _, (_, method), _ in cells)
    after = max(len("int8"), *(len(text) for _, _, (text, _) in cells))
    after_method = max(len(method) for _, _, (_, method) in cells)
    yield ""
    head = f"{'':{label}}  {'float':>{before}} {'':{before_method}}  {'int8':>{after}}"
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
    paint = _ansi if colour else _plain
    findings = sort_findings(quantization)
    if findings.count:
        yield from ("", paint(f"{findings.count} range clash{'' if findings.count == 1 else 'es'}", "bold"))
        for entry in findings.clashes[:_SHOWN]:
            yield from _listed(f"{_clean(entry.get('where'))}: {_clean(entry.get('text'))}", width)
            if entry.get("action"):
                yield from (f"    {line}" for line in _wrapped(f"→ {_clean(entry['action'])}", width - 4))
        yield from _more(len(findings.clashes), rest)
        if findings.tails:
            yield from _listed(findings.tails_text, width)
    raised = items(quantization.get("raised"))
    if raised:
        yield from (
            "",
            paint(f"{len(raised)} tensor{'' if len(raised) == 1 else 's'} in a wider format", "bold"),
        )
        for entry in raised[:_SHOWN]:
            what, why = (
                f"{_clean(entry.get('tensor'))} ({_clean(entry.get('format'))})",
                _clean(entry.get("reason")),
            )
            yield from _listed(f"{what}: {why}", width)
        yield from _more(len(raised), rest)


def _budget(report: dict[str, Any], paint: Paint) -> Iterator[str]:
    lines = budget_lines(report)
    if lines:
        yield ""
    for line in lines:
        word = paint("met   ", "good") if line.ok else paint("missed", "bad")
        yield f"Budget {word}  {line.name.lower()} {line.value}, limit {line.limit}"


def _more(count: int, rest: str) -> Iterator[str]:
    if count > _SHOWN:
        yield f"  … and {count - _SHOWN} more {rest}"


def _cell(shown: Figure | None) -> tuple[str, str]:
    return (DASH, "") if shown is None else (_clean(shown.text), _clean(shown.method))


def _label(row: Row) -> str:
    return f"  {_clean(row.label)}" if row.detail else _clean(row.label)


def _listed(text: object, width: int) -> list[str]:
    return [("  " if index else "- ") + line for index, line in enumerate(_wrapped(_clean(text), width - 2))]


def _wrapped(text: str, width: int) -> list[str]:
    # A name longer than the line stays whole: a broken name cannot be searched for.
    return textwrap.wrap(_clean(text), max(20, width), break_long_words=False, break_on_hyphens=False)


def _clean(value: object) -> str:
    """Text of the report without control characters: a name must not be able to move the cursor."""
    return "" if value is None else "".join(c if c.isprintable() else " " for c in str(value))


def _plain(text: str, style: str) -> str:
    return text


def _ansi(text: str, style: str) -> str:
    code = _STYLES.get(style)
    return f"\033[{code}m{text}\033[0m" if code and text.strip() else text
