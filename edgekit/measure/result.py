"""What a measurement is: a value, its unit and how it was obtained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Method(StrEnum):
    """How a figure was obtained."""

    DEVICE = "device"
    HOST = "host"
    EMULATOR = "emulator"
    COMPILER_ESTIMATE = "compiler-estimate"
    MODEL_ESTIMATE = "model-estimate"


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        value: The figure (the median, where it was taken several times).
        unit: ``ms``, ``bytes``, ``mAP``, ``cosine`` …; empty for a plain ratio.
        method: How it was obtained.
        spread: Other figures of the same quantity: ``p50``, ``p95``, ``min``, ``count`` …
        note: Anything the reader must know to use it.
    """

    value: float
    unit: str
    method: Method
    spread: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
