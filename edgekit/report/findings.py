"""Range clashes in reading order: what was acted on first, many small ones as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.report.numbers import finite, items

_TAIL = "pre-activation-tail"


@dataclass(frozen=True)
class Findings:
    """The ``findings`` of a report's ``quantization``.

    Attributes:
        clashes: Those to be read one by one; what was acted on comes first.
        tails: Cut pre-activation tails where there are several; they are many and alike.
    """

    clashes: tuple[dict[str, Any], ...]
    tails: tuple[dict[str, Any], ...]

    @property
    def count(self) -> int:
        """How many there are in all."""
        return len(self.clashes) + len(self.tails)

    @property
    def tails_text(self) -> str:
        """The tails in one line; empty where there are none."""
        if not self.tails:
            return ""
        largest = max(self.tails, key=lambda entry: finite(entry.get("ratio")) or 0.0)
        reach = str(largest.get("text", "")).partition(",")[0]
        return f"{len(self.tails)} pre-activation tails cut (largest: {largest.get('where', '')}, {reach})"


def sort_findings(quantization: dict[str, Any]) -> Findings:
    """Arrange the findings of a target's ``quantization``."""
    found = items(quantization.get("findings"))
    tails = [entry for entry in found if entry.get("kind") == _TAIL and _acted(entry)]
    if len(tails) < 2:
        tails = []
    clashes = [entry for entry in found if not any(entry is tail for tail in tails)]
    return Findings(tuple(sorted(clashes, key=lambda entry: not _acted(entry))), tuple(tails))


def _acted(entry: dict[str, Any]) -> bool:
    action = str(entry.get("action") or "")
    return bool(action) and not action.startswith("none")
