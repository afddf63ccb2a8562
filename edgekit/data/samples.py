"""Opening samples: the inputs that a network is calibrated, compared and evaluated with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data.arrays import ArraySamples
from edgekit.data.base import Sample, Samples, Skipped
from edgekit.data.callables import CallableSamples
from edgekit.data.images import SUFFIXES, ImageSamples
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError
from edgekit.objects import is_object_name, load_callable

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec

__all__ = ["Sample", "Samples", "Skipped", "open_samples"]


def open_samples(
    source: str | Path | Callable[[], Iterable[Any]] | Iterable[Any],
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess,
    *,
    limit: int | None = None,
    folder: Path | None = None,
) -> Samples:
    """Open a source of samples for a network.

    Args:
        source: A folder of images (searched with its subfolders) or one image; an ``.npz`` file with one
            array for each input, by name, the sample axis first (or with a single array), or an ``.npy``
            file; a callable, or its name ``package.module:callable``, see
            :class:`~edgekit.data.callables.CallableSamples`.
        inputs: The network's inputs.
        preprocess: What is done to images. Arrays are fed as they are.
        limit: Take only so many, evenly spread over a folder or file; of a callable, the first.
        folder: What relative paths and the modules of callables are relative to; the working folder by
            default.

    Raises:
        DataError: The source is missing, empty or of an unknown kind, or does not fit the inputs.
        UsageError: The callable cannot be imported, or ``limit`` is below 1.
    """
    if not isinstance(source, (str, Path)):
        return CallableSamples(source, inputs, preprocess, limit=limit)
    path = Path(source).expanduser() if folder is None else folder / Path(source).expanduser()
    if not path.exists():
        if isinstance(source, str) and is_object_name(source):
            function = load_callable(source, folder)
            return CallableSamples(function, inputs, preprocess, limit=limit, name=source)
        raise DataError("no such file or folder", where=str(source), valid=_KINDS, hint=_nearest(path))
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return ImageSamples(path, inputs, preprocess, limit=limit)
    if path.suffix.lower() in (".npz", ".npy"):
        return ArraySamples(path, inputs, preprocess, limit=limit)
    raise DataError(
        f"samples cannot be read from a '{path.suffix or path.name}' file", where=str(source), valid=_KINDS
    )


_KINDS = ("a folder of images", "an .npz or .npy file", "package.module:callable")


def _nearest(path: Path) -> str:
    """Where a wrong path still exists: shows a working folder that is not the expected one."""
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    return f"'{parent}' is the last part of the path that exists" if parent else ""
