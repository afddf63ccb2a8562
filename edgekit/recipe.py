"""The recipe of one run: a TOML file, checked key by key.

Relative paths, also those given with ``--set``, start at the recipe's folder. A source is a path or
``package.module:callable``; every path of a loaded recipe is absolute.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from edgekit.errors import UsageError
from edgekit.objects import is_object_name

#: Compress passes that this version can run.
COMPRESS_PASSES: tuple[str, ...] = ()

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TOML_LINE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)")

_Shape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Drop = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # strict: a number in quotes or a boolean is not taken for a number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(_Section):
    """``[model]``: the network.

    Attributes:
        source: ``.onnx`` or ``.pt2`` file, or ``package.module:callable`` returning an ``nn.Module``.
        input_shape: Shape by input name, where the network leaves dimensions open.
    """

    source: _Text
    input_shape: dict[str, _Shape] = {}


class DataSection(_Section):
    """``[data]``: samples for calibration.

    Attributes:
        calibrate: Image folder, ``.npz`` file or ``package.module:callable``.
        preprocess: Keys of :class:`edgekit.data.preprocess.Preprocess`; None when the recipe does not say.
        limit: Use at most this many samples.
    """

    calibrate: _Text
    preprocess: dict[str, Any] | None = None
    limit: _Count | None = None


class EvaluateSection(_Section):
    """``[evaluate]``: the task metric.

    Attributes:
        task: ``detection`` (COCO mAP) or ``outputs`` (int8 against float, no labels).
        images: Samples to evaluate on; for ``outputs`` the calibration samples when left out.
        annotations: COCO JSON file; ``detection`` only.
        decode: Name of the decoder that turns outputs into boxes; ``detection`` only.
        limit: Use at most this many samples.
    """

    task: Literal["detection", "outputs"]
    images: _Text | None = None
    annotations: _Text | None = None
    decode: _Text | None = None
    limit: _Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> EvaluateSection:
        if self.task == "detection":
            missing = [key for key in ("images", "annotations", "decode") if getattr(self, key) is None]
            if missing:
                text = "task 'detection' needs {keys}"
                raise PydanticCustomError("incomplete", text, {"keys": ", ".join(missing)})
        return self


class CompressSection(_Section):
    """One ``[[compress]]`` step.

    Attributes:
        name: The pass; written ``pass`` in the file.
        keep: Share of the channels (or layers, weights) to keep.
        latency: Share of the latency to keep.
        params: Share of the parameters to keep.
        macs: Share of the multiply-accumulates to keep.
        epochs: Passes over the training samples.
    """

    name: str = Field(alias="pass")
    keep: _Positive | None = None
    latency: _Positive | None = None
    params: _Positive | None = None
    macs: _Positive | None = None
    epochs: _Count | None = None


class QuantizeSection(_Section):
    """``[quantize]``: how tensors get their int8 ranges. Number formats come from the target.

    Attributes:
        enabled: False exports float only.
        calibrator: How a range is chosen from what calibration saw; ``auto`` tries all of them.
        percentile: Share of values, in percent, that the ``percentile`` calibrator keeps inside the range.
        equalize: Whether channels of very different range are balanced between layers.
        correct_biases: Whether biases make up for the mean error of quantized weights.
        max_raised: Most tensors in a wider format; the target's own limit when left out.
        target_db: Signal-to-noise ratio of the outputs, in dB, below which tensors are raised.
        max_drop: Loss of the task metric that is accepted; more tensors are raised to a wider format until it
            is met or the limit is reached. None raises none for the metric's sake.
    """

    enabled: bool = True
    calibrator: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    percentile: Annotated[float, Field(gt=50, le=100, allow_inf_nan=False)] = 99.99
    equalize: bool = True
    correct_biases: bool = True
    max_raised: Annotated[int, Field(ge=0)] | None = None
    target_db: Annotated[float, Field(allow_inf_nan=False)] = 13.0
    max_drop: _Drop | None = None


class DeploySection(_Section):
    """``[deploy]``: where the network goes.

    Attributes:
        targets: ``name`` or ``name:profile``; ``edgekit targets`` lists them.
    """

    targets: Annotated[tuple[_Text, ...], Field(strict=False, min_length=1)] = ("ort-cpu",)

    @field_validator("targets")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise PydanticCustomError("twice", "named twice: {names}", {"names": ", ".join(twice)})
        return value


class BudgetSection(_Section):
    """``[budget]``: what the int8 artifact must meet; a miss ends the run with exit code 1.

    Attributes:
        latency_ms: Median latency.
        size_mb: Size of the file in megabytes (10⁶ bytes).
        max_drop: Loss of the task metric against float.
    """

    latency_ms: _Positive | None = None
    size_mb: _Positive | None = None
    max_drop: _Drop | None = None


class Recipe(_Section):
    """Everything one run needs. :func:`load_recipe` reads it from a file."""

    model: ModelSection
    data: DataSection
    evaluate: EvaluateSection | None = None
    compress: Annotated[tuple[CompressSection, ...], Field(strict=False)] = ()
    quantize: QuantizeSection = QuantizeSection()
    deploy: DeploySection = DeploySection()
    budget: BudgetSection = BudgetSection()

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The recipe's folder; the current one for a recipe made in code."""
        return self._folder

    def to_json(self) -> dict[str, Any]:
        """The recipe with every default filled in, JSON-ready, keys as in the file."""
        return self.model_dump(mode="json", by_alias=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The TOML file.
        overrides: ``section.key=value``, applied in order. The value is TOML (``true``, ``0.5``, ``["a"]``);
            what is not TOML is taken as text, so that ``quantize.calibrator=mse`` needs no quotes.

    Raises:
        UsageError: The file is missing or is not TOML, a key is unknown, a value is wrong, or a path that the
            recipe names does not exist. The message names the file and the key and lists what would be valid.
    """
    path = Path(path)
    raw = _read(path)
    overridden = {_apply(raw, text): text for text in overrides}
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise _usage_error(error.errors(), path, overridden) from error
    for step in recipe.compress:
        raise UsageError(
            f"compress pass '{step.name}' is not available in this version",
            where=f"{path}: compress",
            hint=f"Available passes: {', '.join(COMPRESS_PASSES) or 'none'}",
        )
    folder = path.absolute().parent
    recipe = _with_absolute_paths(recipe, folder, path)
    recipe._folder = folder
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError("no such recipe", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UsageError("is not a UTF-8 text file", where=str(path)) from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe: {error.strerror or error}", where=str(path)) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _toml_error(str(error), path, text) from error


def _toml_error(message: str, path: Path, text: str) -> UsageError:
    found = _TOML_LINE.search(message)
    line = int(found[1]) if found and found[1] else len(text.splitlines())
    reason = _TOML_LINE.sub("", message)
    lines = text.splitlines()
    shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return UsageError(
        f"is not valid TOML: {reason[:1].lower()}{reason[1:]}",
        where=f"{path}:{line}",
        hint=f"The line reads: {shown}" if shown else "",
    )


def _apply(raw: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put one override into ``raw``; returns the path of its key."""
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    where = f"--set {text}"
    if not equals or not all(_KEY.fullmatch(part) for part in keys):
        example = "Example: --set quantize.calibrator=mse"
        raise UsageError("is not of the form section.key=value", where=where, hint=example)
    table: Any = raw
    for part in keys[:-1]:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageError(f"'{'.'.join(keys[:-1])}' is not a table", where=where)
    table[keys[-1]] = _toml_value(value.strip(), text)
    return keys


def _toml_value(value: str, text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError as error:
        if not value or value[0] in "[{\"'":
            reason = _TOML_LINE.sub("", str(error)) if value else "the value is empty"
            raise UsageError(
                f"is not a TOML value: {reason[:1].lower()}{reason[1:]}",
                where=f"--set {text}",
                hint="""Examples: 0.5, true, mse, '["ort-cpu"]'""",
            ) from error
        return value
    # More than one key means that the text held a line break: it is text, not TOML.
    return parsed["value"] if len(parsed) == 1 else value


def _with_absolute_paths(recipe: Recipe, folder: Path, path: Path) -> Recipe:
    def absolute(section: str, key: str, source: str) -> str:
        resolved = folder / Path(source).expanduser()
        if is_object_name(source) and not resolved.exists():
            return source
        if not resolved.exists():
            raise UsageError(
                f"no such file or folder: {resolved}",
                where=f"{path}: {section}.{key}",
                hint="Relative paths start at the recipe's folder",
            )
        return str(resolved)

    changed: dict[str, Any] = {}
    for section, keys in (
        ("model", ("source",)),
        ("data", ("calibrate",)),
        ("evaluate", ("images", "annotations")),
    ):
        part = getattr(recipe, section)
        if part is None:
            continue
        given = {key: getattr(part, key) for key in keys}
        found = {key: absolute(section, key, source) for key, source in given.items() if source is not None}
        changed[section] = part.model_copy(update=found)
    return recipe.model_copy(update=changed)


def _usage_error(
    errors: Sequence[ErrorDetails], path: Path, overridden: Mapping[tuple[str, ...], str]
) -> UsageError:
    """The first error in full, the others by name; a misspelt key before the key that it leaves missing."""
    errors = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    first = errors[0]
    loc = tuple(first["loc"])
    valid: tuple[str, ...] = ()
    hint = ""
    if first["type"] == "extra_forbidden":
        valid = tuple(_keys_at(loc[:-1]))
        what = f"unknown {'section' if len(loc) == 1 else 'key'} '{loc[-1]}'"
        hint = _did_you_mean(str(loc[-1]), valid)
    elif first["type"] == "missing":
        what = "is missing"
        hint = f"A recipe needs a [{loc[0]}] section" if len(loc) == 1 else ""
    elif first["type"] == "literal_error":
        valid = tuple(re.findall(r"'([^']*)'", str(first["ctx"]["expected"])))
        what = f"unknown value {first['input']!r}"
        hint = _did_you_mean(str(first["input"]), valid)
    else:
        what = _plain(first)
    others = dict.fromkeys(_dotted(error["loc"]) for error in errors if error["loc"] != loc)
    also = f"Also wrong: {', '.join(others)}" if others else ""
    separator = " " if hint.endswith("?") else ". "
    return UsageError(
        what,
        where=_where(loc, path, overridden),
        valid=valid,
        hint=separator.join(part for part in (hint, also) if part),
    )


def _plain(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a table", message)
    message = message.replace("a valid tuple", "a list")
    value = error["input"]
    simple = isinstance(value, str | int | float) and error["type"] not in ("twice", "incomplete")
    return f"{message}, not {value!r}" if simple else message


def _where(loc: tuple[str | int, ...], path: Path, overridden: Mapping[tuple[str, ...], str]) -> str:
    for keys, text in overridden.items():
        if loc[: len(keys)] == keys:
            return f"--set {text}"
    return f"{path}: {_dotted(loc)}"


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in loc)


def _did_you_mean(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), valid, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""


def _keys_at(loc: tuple[str | int, ...]) -> tuple[str, ...]:
    """Keys that the table at ``loc`` accepts."""
    model: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, int):  # an index into [[compress]]
            continue
        by_key = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        inner = next(_models_in(by_key[part]), None)
        if inner is None:
            return ()
        model = inner
    return tuple(field.alias or name for name, field in model.model_fields.items())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        for argument in get_args(annotation):
            yield from _models_in(argument)
