"""Boards of microcontrollers: what ``hardware.toml`` says about them beyond the common keys."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from edgekit.errors import InputError
from edgekit.hardware import Hardware, HardwareProfile

#: Figures that need a source, those of every board's profile included.
_FIGURES = ("threads", "memory_bytes", "clock_hz", "flash_bytes", "arena_bytes")


class Board(HardwareProfile):
    """A microcontroller board.

    Attributes:
        flash_bytes: Flash that holds program and model.
        arena_bytes: Largest piece of RAM without a gap; the tensor arena is one piece.
    """

    flash_bytes: int = Field(gt=0)
    arena_bytes: int = Field(gt=0)

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Self:
        if set(_FIGURES) != set(self.sources):
            raise ValueError(f"sources {sorted(self.sources)} must name {sorted(_FIGURES)}")
        if self.arena_bytes > self.memory_bytes:
            raise ValueError(f"arena_bytes {self.arena_bytes} exceeds memory_bytes {self.memory_bytes}")
        return self


class BoardHardware(Hardware):
    """Content of this target's ``hardware.toml``."""

    profiles: dict[str, Board]  # type: ignore[assignment]  # frozen, so nobody puts another profile in


def load_boards(path: Path) -> BoardHardware:
    """Read this target's ``hardware.toml``.

    Raises:
        InputError: The file is missing, not TOML, or has an unknown or missing key.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return BoardHardware.model_validate(content)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"cannot be used: {error}", where=str(path)) from error
