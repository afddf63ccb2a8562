"""Products of finished steps, kept so that a run resumes where it stopped.

A product is one folder ``<step>-<key>`` that holds ``product.json`` and files. The key is a hash of all that
the product depends on; a product with another key is another product. A folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any

import edgekit
from edgekit.errors import EdgekitError, OutputError
from edgekit.objects import is_object_name

#: Entries of a folder that are listed one by one.
_LISTED = 20_000


@dataclass(frozen=True)
class Product:
    """What a step made.

    Attributes:
        name: The step.
        folder: Where its files are.
        data: Content of ``product.json``.
        key: Hash of what it depends on.
        kept: True when it was made by an earlier run.
    """

    name: str
    folder: Path
    data: dict[str, Any]
    key: str
    kept: bool


class Store:
    """The products of one run.

    Attributes:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self._used: set[str] = set()
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)

    def step(self, name: str, parts: Any, make: Callable[[Path], dict[str, Any]]) -> Product:
        """The product ``name`` for ``parts``, from an earlier run or made now.

        Args:
            name: The step.
            parts: What the product depends on; anything JSON can hold.
            make: Writes the product's files into a folder and returns its data.

        Raises:
            OutputError: The folder cannot be written.
        """
        key = digest(name, code_listing(), parts)
        folder = self.folder / f"{name}-{key[:16]}"
        self._used.add(folder.name)
        data = _read(folder)
        if data is not None:
            return Product(name, folder, data, key, kept=True)
        return Product(name, folder, self._make(folder, make), key, kept=False)

    def has(self, name: str, parts: Any) -> bool:
        """Whether :meth:`step` would find the product."""
        return _read(self.folder / f"{name}-{digest(name, code_listing(), parts)[:16]}") is not None

    def prune(self) -> None:
        """Remove the products that this run did not use."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)

    def _make(self, folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
            data = plain(make(temporary))
            (temporary / "product.json").write_text(json.dumps(data), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self.folder)) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return dict(json.loads(json.dumps(data)))


def digest(*parts: Any) -> str:
    """SHA-256 over anything JSON can hold; other values by their text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value as JSON can hold it: arrays as lists, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy arrays and numbers
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def listing(source: str, folder: Path | None = None) -> list[list[Any]]:
    """Names, sizes and modification times of the files behind a source; of a callable, of its code."""
    base = folder or Path.cwd()
    path = base / Path(source).expanduser()
    if not path.exists() and is_object_name(source):
        found = _module_path(source.partition(":")[0], base)
        return _list(found) if found is not None else [[source, 0, 0]]
    return _list(path)


@lru_cache(maxsize=1)
def code_listing() -> str:
    """What identifies this edgekit: its version, and the files it consists of."""
    root = Path(edgekit.__file__).parent
    return digest(
        edgekit.__version__, [entry for entry in _list(root) if str(entry[0]).endswith((".py", ".toml"))]
    )


def _list(path: Path) -> list[list[Any]]:
    if not path.is_dir():
        return [_entry(path, path.name)]
    found = [_entry(file, file.relative_to(path).as_posix()) for file in _files(path)]
    return sorted(found) if len(found) < _LISTED else [[str(path), len(found), digest(sorted(found))]]


def _files(path: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(place, name) for name in files)


def _entry(path: Path, name: str) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return [name, -1, 0]
    return [name, status.st_size, status.st_mtime_ns]


def _module_path(name: str, folder: Path) -> Path | None:
    """The folder of a package or the file of a module, found without importing it."""
    own = folder.joinpath(*name.split("."))
    if own.is_dir():
        return own
    if own.with_suffix(".py").is_file():
        return own.with_suffix(".py")
    try:
        spec = util.find_spec(name)
    except (ImportError, ValueError, EdgekitError):
        return None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    # A module of a package is made by its neighbours too.
    return file.parent if "." in name or file.name == "__init__.py" else file


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / "product.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
