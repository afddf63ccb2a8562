"""Lines for a terminal: wrapped, cleaned of control characters, coloured or plain."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

_STYLES = {"bold": "1", "quiet": "2", "good": "32", "warn": "33", "bad": "31"}

#: A text and the name of a style (``bold``, ``quiet``, ``good``, ``warn``, ``bad``, or another for none).
Paint = Callable[[str, str], str]


def painter(*, colour: bool) -> Paint:
    """What styles a text: with ANSI codes, or not at all."""
    return _ansi if colour else _plain


def listed(text: object, width: int) -> list[str]:
    """One item of a list, wrapped under its dash."""
    return [("  " if index else "- ") + line for index, line in enumerate(wrapped(clean(text), width - 2))]


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of ``width`` columns; a name longer than the line stays whole."""
    # A broken name cannot be searched for.
    return textwrap.wrap(clean(text), max(20, width), break_long_words=False, break_on_hyphens=False)


def clean(value: object) -> str:
    """Text of the report without control characters: a name must not be able to move the cursor."""
    return "" if value is None else "".join(c if c.isprintable() else " " for c in str(value))


def _plain(text: str, style: str) -> str:
    return text


def _ansi(text: str, style: str) -> str:
    code = _STYLES.get(style)
    return f"\033[{code}m{text}\033[0m" if code and text.strip() else text
