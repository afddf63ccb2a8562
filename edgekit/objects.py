"""Finding Python objects that a user names as ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.errors import UsageError

# Top-level modules that were imported for a user, with the folder each came from: two projects in one process
# may both call their file `samples.py`.
_imported_from: dict[str, Path] = {}


def is_object_name(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:name`` (and is no path)."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def load_callable(text: str, folder: Path | None = None) -> Callable[..., Any]:
    """Import the function or class that ``package.module:name`` names.

    Args:
        text: The name. ``name`` may be dotted: ``package.module:Class.method``.
        folder: Where the user's own modules are looked for first; the working folder by default.

    Raises:
        UsageError: The text has no colon, the module does not exist or raises on import, or the name is
            missing from it or cannot be called.
    """
    if not is_object_name(text):
        module_name = text.partition(":")[0].removesuffix(".py").replace("/", ".").strip(".")
        example = f"{module_name}:{text.partition(':')[2] or 'function'}"
        hint = f"For a file beside the recipe that is '{example}'" if is_object_name(example) else ""
        raise UsageError(f"'{text}' is not of the form 'package.module:name'", hint=hint)
    module_name, _, name = text.partition(":")
    module = _import(module_name, (folder or Path.cwd()).resolve(), text)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"'{module_name}' has no '{name}'", where=text, valid=_callables(module, name))
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"'{name}' is a {type(found).__name__}, not a function",
            where=text,
            valid=_callables(module, name),
        )
    return found  # type: ignore[no-any-return]


def _import(name: str, folder: Path, text: str) -> ModuleType:
    top = name.partition(".")[0]
    known = str(folder) in sys.path
    _make_room(top, folder, text)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module '{name}', neither in '{folder}' nor among the installed packages",
                where=text,
            ) from error
        raise UsageError(
            f"importing '{name}' failed: {error}", where=text, hint="Install it beside edgekit"
        ) from error
    # The module is the user's: anything at all may happen in it, sys.exit() included.
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing '{name}' raised {type(error).__name__}: {error}", where=text) from error
    finally:
        sys.path.remove(str(folder))
    # What the user's function imports when it is called must still be found, behind everything installed.
    if not known and _in_folder(top, folder):
        sys.path.append(str(folder))
        _imported_from[top] = folder
    return module


def _make_room(top: str, folder: Path, text: str) -> None:
    """Forget a module of the same name that another project brought; refuse to replace any other."""
    if top not in sys.modules or not _in_folder(top, folder):
        return
    file = getattr(sys.modules[top], "__file__", None)
    if file is not None and Path(file).resolve().is_relative_to(folder):
        return
    if top not in _imported_from:
        raise UsageError(
            f"the module '{top}' of '{folder}' has the name of a loaded one ({file or 'built in'})",
            where=text,
            hint="Rename it",
        )
    for loaded in [m for m in sys.modules if m == top or m.startswith(f"{top}.")]:
        del sys.modules[loaded]


def _in_folder(top: str, folder: Path) -> bool:
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _callables(module: ModuleType, name: str) -> list[str]:
    names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    return difflib.get_close_matches(name, names, n=3) or names[:10]
