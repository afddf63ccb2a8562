"""Reading a recipe from its TOML file, with overrides, and errors that name the file and the key.

Relative paths, also those given with ``--set``, start at the recipe's folder.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgekit.errors import UsageError
from edgekit.objects import is_object_name
from edgekit.recipe import CompressSection, DistillSection, PruneSection, QatSection, Recipe

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TOML_LINE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)")


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
    folder = path.absolute().parent
    recipe = _with_absolute_paths(recipe, folder, path)
    recipe._folder = folder
    return recipe


def read_step(values: Mapping[str, Any]) -> CompressSection:
    """One compress step from keys and values, without those that are None; for commands and functions.

    Raises:
        UsageError: As of :func:`load_recipe`; the key is named alone.
    """
    given = {key: value for key, value in values.items() if value is not None}
    base = {"model": {"source": "-"}, "data": {"calibrate": "-"}}
    try:
        return Recipe.model_validate({**base, "compress": [given]}).compress[0]
    except ValidationError as error:
        found = _usage_error(error.errors(), Path(), {})
        where = found.where.rpartition("compress.0")[2].lstrip(".")
        raise UsageError(found.what, where=where, valid=found.valid, hint=found.hint) from error


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
    changed["compress"] = tuple(
        _with_absolute_files(step, f"compress.{index}", folder, absolute)
        for index, step in enumerate(recipe.compress)
    )
    return recipe.model_copy(update=changed)


def _with_absolute_files(
    step: CompressSection, section: str, folder: Path, absolute: Callable[[str, str, str], str]
) -> CompressSection:
    """A saved result need not be there yet: the run then makes it, and says so."""
    found: dict[str, Any] = {}
    if isinstance(step, (PruneSection, DistillSection)) and step.saved is not None:
        found["saved"] = str(folder / Path(step.saved).expanduser())
    if isinstance(step, (DistillSection, QatSection)):
        given = {"teacher": getattr(step, "teacher", None), "data": step.data}
        found |= {key: absolute(section, key, source) for key, source in given.items() if source is not None}
    return step.model_copy(update=found)


def _usage_error(
    errors: Sequence[ErrorDetails], path: Path, overridden: Mapping[tuple[str, ...], str]
) -> UsageError:
    """The first error in full, the others by name; a misspelt key before the key that it leaves missing."""
    errors = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    first = errors[0]
    loc = _untagged(first["loc"])
    valid: tuple[str, ...] = ()
    hint = ""
    if first["type"] == "extra_forbidden":
        valid = tuple(_keys_at(first["loc"][:-1]))
        what = f"unknown {'section' if len(loc) == 1 else 'key'} '{loc[-1]}'"
        hint = _did_you_mean(str(loc[-1]), valid)
    elif first["type"] == "missing":
        what = "is missing"
        hint = f"A recipe needs a [{loc[0]}] section" if len(loc) == 1 else ""
    elif first["type"] == "literal_error":
        valid = tuple(re.findall(r"'([^']*)'", str(first["ctx"]["expected"])))
        what = f"unknown value {first['input']!r}"
        hint = _did_you_mean(str(first["input"]), valid)
    elif first["type"].startswith("union_tag"):
        valid = tuple(sorted(re.findall(r"'([^']*)'", str(first["ctx"].get("expected_tags", "")))))
        tag = str(first["ctx"].get("tag", ""))
        what = f"unknown pass '{tag}'" if tag else "does not say which pass it is"
        hint = _did_you_mean(tag, valid)
    else:
        what = _plain(first)
    others = dict.fromkeys(_dotted(_untagged(e["loc"])) for e in errors if e["loc"] != first["loc"])
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


def _untagged(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """The path as the file has it: pydantic puts the pass of a ``[[compress]]`` step behind its number."""
    return tuple(part for i, part in enumerate(loc) if not (i == 2 and loc[0] == "compress"))


def _keys_at(loc: Sequence[str | int]) -> tuple[str, ...]:
    """Keys that the table at ``loc`` accepts."""
    models: list[type[BaseModel]] = [Recipe]
    for part in loc:
        if isinstance(part, int):  # an index into [[compress]]
            continue
        if len(models) > 1:  # the pass says which of them
            models = [m for m in models if part in get_args(m.model_fields["name"].annotation)]
            continue
        by_key = {field.alias or name: field.annotation for name, field in models[0].model_fields.items()}
        models = list(_models_in(by_key[part]))
        if not models:
            return ()
    return tuple(field.alias or name for name, field in models[0].model_fields.items())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        for argument in get_args(annotation):
            yield from _models_in(argument)
