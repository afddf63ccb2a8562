"""Figures as a person reads them, shared by the HTML page and the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MINUS = "−"  # the minus sign, as wide as the plus sign
DASH = "–"  # stands for "no figure"

#: What each way of obtaining a figure means; shown as the legend of the figures that a report uses.
METHODS = {
    "device": "measured on the device itself",
    "host": "measured on this machine",
    "emulator": "measured in the vendor's emulator",
    "compiler-estimate": "estimated by the vendor's compiler",
    "model-estimate": "computed from the network and the hardware table",
    "file": "size of the file on disk",
}

_FRACTIONS = ("mAP", "AP", "AR", "AUC", "accuracy")


@dataclass(frozen=True)
class Figure:
    """One figure, ready to show.

    Attributes:
        text: Value with its unit.
        method: How it was obtained; empty when the report does not say.
        note: What the reader must know, and the spread.
        value: The bare value in the measurement's own unit.
    """

    text: str
    method: str = ""
    note: str = ""
    value: float | None = None


def finite(value: object) -> float | None:
    """The value as a float, or None when it is absent, no number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, never in exponent form: 1234.5 → 1,234; 0.04127 → 0.0413."""
    if value == 0:
        return "0"
    # taken after rounding: 0.9996 is 1.00, not 1.000
    magnitude = int(f"{value:.{digits - 1}e}".partition("e")[2])
    decimals = min(8, max(0, digits - 1 - magnitude))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def bytes_text(value: float) -> str:
    """Bytes in decimal units: 3660092 → 3.66 MB."""
    for unit in ("B", "kB", "MB"):
        if abs(value) < 999.5:
            return f"{significant(value) if unit != 'B' else f'{value:.0f}'} {unit}"
        value /= 1000
    return f"{significant(value)} GB"


def count_text(value: float) -> str:
    """A count in short form: 905232 → 905 k; 3.2e9 → 3.20 G."""
    for unit in ("", " k", " M"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if unit == "" else f"{significant(value)}{unit}"
        value /= 1000
    return f"{significant(value)} G"


def with_unit(value: float, unit: str) -> str:
    """A value with its unit, at the precision that the unit deserves."""
    if unit in ("bytes", "B"):
        return bytes_text(value)
    if unit == "dB":
        return f"{value:.1f} dB".replace("-", MINUS)
    if unit == "cosine":
        return f"{value:.5f}".replace("-", MINUS)
    if unit == "" or unit.startswith(_FRACTIONS):
        return f"{value:.3f}".replace("-", MINUS)
    return f"{significant(value)} {unit}"


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign, ``±0`` when nothing of it is left after rounding."""
    text = f"{value:+.{decimals}f}"
    return "±0" if float(text) == 0 else text.replace("-", MINUS)


def figure(measurement: object, unit: str = "") -> Figure | None:
    """A measurement of the report (or a bare number) as a figure; None when there is no value.

    Args:
        measurement: ``{"value", "unit", "method", "spread", "note"}`` or a number.
        unit: Unit of a bare number.
    """
    if not isinstance(measurement, dict):
        value = finite(measurement)
        return None if value is None else Figure(with_unit(value, unit), value=value)
    value = finite(measurement.get("value"))
    if value is None:
        return None
    unit = str(measurement.get("unit") or unit)
    notes = [str(measurement["note"])] if measurement.get("note") else []
    notes += _spread(measurement.get("spread"), unit)
    return Figure(with_unit(value, unit), str(measurement.get("method") or ""), "; ".join(notes), value)


def spread_figure(measurement: object, key: str) -> Figure | None:
    """One entry of a measurement's spread, such as ``p95``, with the measurement's unit and method."""
    if not isinstance(measurement, dict) or not isinstance(measurement.get("spread"), dict):
        return None
    inner = {
        "value": measurement["spread"].get(key),
        "unit": measurement.get("unit"),
        "method": measurement.get("method"),
    }
    return figure(inner)


def _spread(spread: object, unit: str) -> list[str]:
    if not isinstance(spread, dict):
        return []
    texts = []
    for key, raw in spread.items():
        value = finite(raw)
        if value is not None:
            texts.append(f"{key} {value:.0f}" if key == "count" else f"{key} {with_unit(value, unit)}")
    return texts


def items(value: Any) -> list[dict[str, Any]]:
    """A list of tables from a report, empty when it is absent or something else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def table(value: Any) -> dict[str, Any]:
    """A table from a report, empty when it is absent or something else."""
    return value if isinstance(value, dict) else {}
