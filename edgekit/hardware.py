"""The format of ``hardware.toml``, the file in which a target keeps its figures.

Every figure carries the public document it was taken from; a profile with a figure and no source is refused.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit.errors import InputError, UnknownNameError
from edgekit.formats import profile_names, split_profile
from edgekit.quantize.scheme import Scheme
from edgekit.target import Profile

_FIGURES = ("threads", "memory_bytes", "clock_hz", "int8_dot_product", "align")


class HardwareProfile(BaseModel):
    """One piece of hardware.

    Attributes:
        title: What a person calls it.
        cpu: Cores, by number and name.
        host: True when this machine is the hardware.
        threads: CPU threads a network may use; 0 is one for each physical core.
        memory_bytes: Memory of the board; 0 where it is this machine's.
        clock_hz: Highest clock of the cores; 0 where it is this machine's.
        int8_dot_product: Whether the cores multiply and add four int8 pairs in one instruction (``SDOT`` on
            Arm). Without it int8 gains little over float. None where it is this machine's.
        align: Channels that kernels work on at once; 0 where it is not known.
        sources: For each figure above that is set, the document it comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    cpu: str = ""
    host: bool = False
    threads: int = Field(default=0, ge=0)
    memory_bytes: int = Field(default=0, ge=0)
    clock_hz: int = Field(default=0, ge=0)
    int8_dot_product: bool | None = None
    align: int = Field(default=0, ge=0)
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Self:
        given = {name for name in _FIGURES if name in self.model_fields_set}
        if not self.host and given != set(self.sources):
            raise ValueError(
                f"figures {sorted(given)} and sources {sorted(self.sources)} must name the same keys"
            )
        return self

    def to_profile(self, name: str) -> Profile:
        """The part that the rest of edgekit knows."""
        source = "; ".join(f"{key}: {text}" for key, text in self.sources.items())
        return Profile(
            name=name,
            title=self.title,
            threads=self.threads,
            memory_bytes=self.memory_bytes,
            host=self.host,
            source=source,
            align=self.align,
        )


class Hardware(BaseModel):
    """Content of a ``hardware.toml``.

    Attributes:
        title: What a person calls the target.
        default: The profile taken when none is named.
        profiles: Every piece of hardware, by name.
        scheme: Number formats for quantization; None for a target that runs float only.
        formats: Other number formats on the same hardware, by name: ``title`` and keys that replace those of
            the scheme. See :mod:`edgekit.formats`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    default: str
    profiles: dict[str, HardwareProfile]
    scheme: Scheme | None = None
    formats: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _formats_are_schemes(self) -> Self:
        for form in self.formats:
            self._scheme(form)
        return self

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default not in self.profiles:
            raise ValueError(f"default '{self.default}' is not one of the profiles {list(self.profiles)}")
        return self

    def choose(self, profile: str | None) -> Profile:
        """The profile called ``profile``, or the default one for None.

        Raises:
            UnknownNameError: There is no such profile.
        """
        name = profile or self.default
        titles = profile_names(self.model_dump(include={"profiles", "formats"}))
        if name not in titles:
            raise UnknownNameError(f"there is no profile called '{name}'", valid=titles)
        base, _ = split_profile(name, self.formats)
        return replace(self.profiles[base].to_profile(name), title=titles[name])

    def scheme_of(self, profile: str) -> Scheme | None:
        """The number formats of a profile, which its name may end in."""
        return self._scheme(split_profile(profile, self.formats)[1])

    def describe(self, profile: str) -> dict[str, Any]:
        """The chosen profile, all profile names and the scheme, JSON-ready."""
        base, form = split_profile(profile, self.formats)
        scheme = self._scheme(form)
        return {
            "profile": {"name": profile, **self.profiles[base].model_dump(mode="json")},
            "profiles": profile_names(self.model_dump(include={"profiles", "formats"})),
            "scheme": None if scheme is None else scheme.model_dump(mode="json"),
        }

    def _scheme(self, form: str) -> Scheme | None:
        if self.scheme is None or not form:
            return self.scheme
        changed = {key: value for key, value in self.formats[form].items() if key != "title"}
        return Scheme.model_validate({**self.scheme.model_dump(mode="json"), **changed})


def load_hardware(path: Path) -> Hardware:
    """Read a ``hardware.toml``.

    Raises:
        InputError: The file is missing, not TOML, or has an unknown or missing key.
    """
    try:
        return Hardware.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"cannot be used: {error}", where=str(path)) from error
