"""What the compiler and the estimate need to know of a profile, read from ``htp.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit.errors import InputError, UnknownNameError

_FILE = Path(__file__).with_name("htp.toml")
_NOT_FIGURES = frozenset({"name", "socs", "sources"})
_ASSUMPTION = "assumption: "


class HtpProfile(BaseModel):
    """One Hexagon Tensor Processor with its memories.

    Attributes:
        name: Name of the profile: ``v75``.
        arch: Hexagon architecture that the network is compiled for.
        soc_model: Qualcomm's number of the SoC that it is compiled for; it decides the size of the VTCM.
        clock_hz: Clock that the cycles of an estimate are counted in.
        int8_macs_per_cycle: Multiply-accumulates of the matrix unit (HMX), 8-bit activations and weights.
        int16_macs_per_cycle: The same with 16-bit activations.
        vector_bytes: Bytes in a register of the vector unit (HVX).
        vector_units: Vector units that work at once.
        vtcm_bytes: Memory on the chip that tensors are computed in.
        ddr_bytes_per_s: Peak bandwidth of the memory outside.
        socs: The SoCs that may be compiled for, under names a person knows, with their ``soc_model``.
        sources: The document that each figure comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    arch: int = Field(gt=0)
    soc_model: int = Field(gt=0)
    clock_hz: int = Field(gt=0)
    int8_macs_per_cycle: int = Field(gt=0)
    int16_macs_per_cycle: int = Field(gt=0)
    vector_bytes: int = Field(gt=0)
    vector_units: int = Field(gt=0)
    vtcm_bytes: int = Field(gt=0)
    ddr_bytes_per_s: int = Field(gt=0)
    socs: dict[str, int]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        figures = set(type(self).model_fields) - _NOT_FIGURES
        if set(self.sources) != figures:
            raise ValueError(f"sources must name exactly {sorted(figures)}")
        if self.soc_model not in self.socs.values():
            raise ValueError(f"soc_model {self.soc_model} is not one of socs {self.socs}")
        if len(set(self.socs.values())) != len(self.socs):
            raise ValueError(f"socs {self.socs} name one soc_model twice")
        return self

    @property
    def soc(self) -> str:
        """Name of the SoC that the network is compiled for."""
        return next(name for name, model in self.socs.items() if model == self.soc_model)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The figures that nobody published, each with how it was derived."""
        return tuple(
            f"{key} = {getattr(self, key)}: {text.removeprefix(_ASSUMPTION)}"
            for key, text in self.sources.items()
            if text.startswith(_ASSUMPTION)
        )

    @property
    def ddr_bytes_per_cycle(self) -> float:
        """Bytes that the memory outside delivers in one cycle."""
        return self.ddr_bytes_per_s / self.clock_hz

    @property
    def vector_bytes_per_cycle(self) -> int:
        """Bytes that all vector units together take in one cycle."""
        return self.vector_bytes * self.vector_units

    def mac_rate(self, item: int) -> int:
        """Multiply-accumulates of the matrix unit in one cycle with activations of ``item`` bytes."""
        return self.int8_macs_per_cycle if item == 1 else self.int16_macs_per_cycle

    def milliseconds(self, cycles: float) -> float:
        """Time of so many cycles at the profile's clock."""
        return cycles / self.clock_hz * 1e3

    def for_soc(self, soc_model: int) -> Self:
        """The same profile, compiled for another SoC of its architecture.

        The figures stay those of the profile's own SoC.

        Raises:
            UnknownNameError: The SoC is not in ``socs``.
        """
        if soc_model not in self.socs.values():
            known = [f"{number} ({name})" for name, number in self.socs.items()]
            raise UnknownNameError(
                f"soc_model {soc_model} is not one that the compiler answers with v{self.arch}", valid=known
            )
        return self.model_copy(update={"soc_model": soc_model})


def load_profiles(path: Path = _FILE) -> dict[str, HtpProfile]:
    """Every profile by name.

    Raises:
        InputError: The file is missing, not TOML, or has an unknown or missing key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: HtpProfile.model_validate({"name": name, **entry}) for name, entry in table.items()}
    except (OSError, tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise InputError(f"cannot be used: {error}", where=str(path)) from error


def load_htp(profile: str, path: Path = _FILE) -> HtpProfile:
    """The entry of a profile.

    Raises:
        UnknownNameError: There is no such profile.
        InputError: The file is missing, not TOML, or has an unknown or missing key.
    """
    entries = load_profiles(path)
    if profile not in entries:
        raise UnknownNameError(f"there is no profile called '{profile}'", valid=entries)
    return entries[profile]
