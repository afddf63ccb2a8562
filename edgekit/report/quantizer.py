"""What the quantizer did: the rungs of its ladder, and the tensors that it keeps in a wider format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.report.numbers import DASH, finite, items, signed
from edgekit.report.text import Paint, clean, listed


@dataclass(frozen=True)
class Raised:
    """Tensors kept in a wider format for one and the same reason."""

    tensor: str
    op: str
    format: str
    reason: str
    gain: str


@dataclass(frozen=True)
class Rung:
    """A rung that was climbed: its name, the outputs' ratio after it, the time it took, what it did."""

    name: str
    db: str
    seconds: str
    text: str


def raised(quantization: dict[str, Any]) -> list[Raised]:
    """The tensors in a wider format."""
    return [_raised(entry) for entry in items(quantization.get("raised"))]


def ladder(quantization: dict[str, Any]) -> list[Rung]:
    """The rungs in order."""
    return [
        Rung(
            clean(entry.get("name")),
            "" if (db := finite(entry.get("db"))) is None else f"{db:.1f} dB",
            f"{finite(entry.get('seconds')) or 0.0:.0f} s",
            clean(entry.get("text")),
        )
        for entry in items(quantization.get("ladder"))
    ]


def ladder_lines(quantization: dict[str, Any], paint: Paint, width: int) -> Iterator[str]:
    """The rungs for a terminal, where there was more than the first."""
    found = ladder(quantization)
    if len(found) < 2:
        return
    yield from ("", paint("How int8 was found", "bold"))
    for rung in found:
        yield from listed(f"{rung.name}: {rung.db} in {rung.seconds}, {rung.text}", width)


def _raised(entry: dict[str, Any]) -> Raised:
    gain_db = finite(entry.get("gain_db"))
    return Raised(
        tensor=clean(entry.get("tensor")),
        op=clean(entry.get("op")),
        format=clean(entry.get("format")),
        reason=clean(entry.get("reason")),
        gain=DASH if gain_db is None else f"{signed(gain_db, 1)} dB",
    )
