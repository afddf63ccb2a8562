"""The targets and models that are there. A folder is the registration; nothing is entered by hand.

- A target is a folder under ``edgekit/targets`` that holds ``hardware.toml``; ``ort_cpu`` is the target
  ``ort-cpu``.
- A model is a folder under ``edgekit/models`` that holds ``recipe.toml``; ``face_embed`` is the model
  ``face-embed``.

Names and summaries come from those files alone. A target's code is imported by :func:`load_target` only.
"""

from __future__ import annotations

import difflib
import importlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.errors import InputError, UnknownNameError
from edgekit.formats import profile_names

if TYPE_CHECKING:
    from edgekit.target import Target

TARGETS_FOLDER = Path(__file__).parent / "targets"
MODELS_FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class TargetSummary:
    """One row of ``edgekit targets``.

    Attributes:
        name: Name for ``--target``.
        title: What a person calls it.
        profiles: Name and title of every profile.
        default: The profile taken when none is named.
        quantizes: True when the target has a quantization scheme; False when it runs float only.
    """

    name: str
    title: str
    profiles: dict[str, str]
    default: str
    quantizes: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def target_names() -> tuple[str, ...]:
    """Names of all targets, sorted."""
    return _names(TARGETS_FOLDER, "hardware.toml")


def list_targets() -> tuple[TargetSummary, ...]:
    """A summary of every target, read from its ``hardware.toml``; no target code is imported."""
    return tuple(_summary(name) for name in target_names())


def load_target(name: str) -> Target:
    """The target ``name``, or one profile of it: ``ort-cpu`` or ``ort-cpu:rpi4``.

    Raises:
        UnknownNameError: No such target or profile; the message lists the known ones.
    """
    base, colon, profile = name.partition(":")
    _check("target", base, target_names())
    if colon:
        _check(f"profile of target '{base}'", profile, tuple(_summary(base).profiles))
    module = importlib.import_module(f"edgekit.targets.{_folder(base)}")
    return cast("Target", module.create(profile or None))


def model_names() -> tuple[str, ...]:
    """Names of all reference models, sorted."""
    return _names(MODELS_FOLDER, "recipe.toml")


def describe_model(name: str) -> dict[str, Any]:
    """What ``edgekit models NAME`` shows, JSON-ready.

    Returns:
        ``name``, ``summary`` (first paragraph of the README), ``recipe`` (path of the recipe file),
        ``settings`` (the recipe's content) and, where the model has been measured, ``score`` (content of
        ``score.json``).

    Raises:
        UnknownNameError: No such model; the message lists the known ones.
        InputError: A file of the model cannot be read.
    """
    _check("model", name, model_names())
    folder = MODELS_FOLDER / _folder(name)
    recipe, score = folder / "recipe.toml", folder / "score.json"
    # Through JSON once, so that TOML dates and times become text.
    settings = json.loads(json.dumps(_toml(recipe), default=str))
    described = {"name": name, "summary": _first_paragraph(folder / "README.md"), "recipe": str(recipe)}
    described["settings"] = settings
    if score.is_file():
        described["score"] = _json(score)
    return described


def _names(folder: Path, marker: str) -> tuple[str, ...]:
    found = (path.parent.name for path in folder.glob(f"*/{marker}"))
    return tuple(sorted(name.replace("_", "-") for name in found if name.isidentifier()))


def _folder(name: str) -> str:
    return name.replace("-", "_")


def _summary(name: str) -> TargetSummary:
    content = _toml(TARGETS_FOLDER / _folder(name) / "hardware.toml")
    profiles = profile_names(content)
    default = str(content.get("default", next(iter(profiles), "")))
    return TargetSummary(name, str(content.get("title", name)), profiles, default, "scheme" in content)


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else ""
    raise UnknownNameError(f"there is no {kind} called '{name}'", valid=known, hint=hint)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error


def _first_paragraph(path: Path) -> str:
    if not path.is_file():
        return ""
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        lines = [
            line.strip() for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")
        ]
        if lines:
            return " ".join(lines)
    return ""
