"""What Vela needs to know of a profile, read from ``npu.toml``."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit.errors import InputError, UnknownNameError

_FILE = Path(__file__).with_name("npu.toml")
_FIGURES = frozenset({"system_config", "memory_mode", "arena_bytes", "clock_hz", "cores", "macs_per_cycle"})


class Family(StrEnum):
    """NPU families; U55 and U65 accept the same operators."""

    U55 = "u55"
    U65 = "u65"
    U85 = "u85"


class NpuProfile(BaseModel):
    """One NPU with its memories.

    Attributes:
        family: Decides which operators it runs.
        accelerator: Name of Vela's ``--accelerator-config``.
        system_config: Section of ``Arm/vela.ini``: clock, bandwidths and latencies of the memories.
        memory_mode: Section of ``Arm/vela.ini``: which memory holds weights, activations and cache.
        arena_bytes: SRAM that the compiler may fill.
        clock_hz: Clock of the NPU.
        cores: NPU cores.
        macs_per_cycle: 8-bit multiply-accumulates in one cycle, all cores together.
        sources: The document that each figure comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Family
    accelerator: str
    system_config: str
    memory_mode: str
    arena_bytes: int = Field(gt=0)
    clock_hz: int = Field(gt=0)
    cores: int = Field(gt=0)
    macs_per_cycle: int = Field(gt=0)
    sources: dict[str, str]

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Self:
        if set(self.sources) != _FIGURES:
            raise ValueError(f"sources must name exactly {sorted(_FIGURES)}")
        return self

    @property
    def architecture(self) -> str:
        """As Vela's compiler core calls it: ``EthosU55``."""
        return f"Ethos{self.family.value.capitalize()}"

    def milliseconds(self, cycles: float) -> float:
        """Time of so many cycles at the profile's clock."""
        return cycles / self.clock_hz * 1e3


def load_npu(profile: str, path: Path = _FILE) -> NpuProfile:
    """The entry of a profile.

    Raises:
        UnknownNameError: There is no such profile.
        InputError: The file is missing, not TOML, or has an unknown or missing key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = {name: NpuProfile.model_validate(entry) for name, entry in table.items()}
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"cannot be used: {error}", where=str(path)) from error
    if profile not in entries:
        raise UnknownNameError(f"there is no profile called '{profile}'", valid=entries)
    return entries[profile]
