"""Two figures of one quantity side by side: what became of it, and how to take that."""

from __future__ import annotations

from typing import Any

from edgekit.report.numbers import Figure, bytes_text, finite, signed, table

#: A loss of the task metric above this share of the float score is called out even where no budget is set.
NOTABLE_LOSS = 0.02
#: A loss above this share makes the network unusable without saying more.
SEVERE_LOSS = 0.2

#: The change of a figure that moved by less than two percent.
SAME = "the same"
#: The change of two figures of which one was measured and the other estimated, or on another machine.
INCOMPARABLE = "methods differ"


def ratio(before: Figure | None, after: Figure | None, better: str, worse: str) -> tuple[str, str]:
    """How many times smaller the second figure is, in words, and how to take it: ``good``, ``bad``."""
    if before is None or after is None or not before.value or not after.value:
        return "", ""
    if before.method != after.method:
        return INCOMPARABLE, ""
    factor = before.value / after.value
    if 0.98 < factor < 1.02:
        return SAME, ""
    if factor > 1:
        return f"{times(factor)} {better}", "good"
    return f"{times(1 / factor)} {worse}", "bad"


def score_change(before: Figure | None, after: Figure | None) -> tuple[str, str]:
    """The difference of two scores with its sign, and how to take it."""
    moved = difference(before, after)
    if moved is None:
        return ("" if before is None or after is None else INCOMPARABLE), ""
    return signed(moved), "bad" if loss_share(moved, before) > NOTABLE_LOSS else ""


def difference(before: Figure | None, after: Figure | None) -> float | None:
    """``after − before``; None where one is absent or they were obtained in different ways."""
    if before is None or after is None or before.value is None or after.value is None:
        return None
    if before.method != after.method:
        return None
    return after.value - before.value


def loss_share(moved: float, before: Figure | None) -> float:
    """How much of the score before a difference takes; negative for a gain."""
    scale = abs(before.value) if before is not None and before.value else 1.0
    return -moved / scale


def times(factor: float) -> str:
    """A factor in words: 2.503 → 2.50×."""
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.0f}×"


def share_change(before: float | None, after: float | None) -> str:
    """What became of a count, in percent: 200, 98 → −51 %."""
    if before is None or after is None or not before:
        return ""
    return f"{signed(100 * (after / before - 1), 0)} %"


def joined(parts: list[str]) -> str:
    """An enumeration: ``a, b and c``."""
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def file_size(artifact: object) -> Figure | None:
    """The size of an artifact's file."""
    size = finite(table(artifact).get("size_bytes"))
    path = str(table(artifact).get("path") or "")
    return None if size is None else Figure(bytes_text(size), "file", path, size)


def cosine_label(task: dict[str, Any]) -> str:
    """Compared with what: the original, where the task says so or float itself has a cosine."""
    original = task.get("reference") == "original" or "cosine" in table(task.get("float"))
    return "Cosine to original" if original else "Cosine to float"
