"""What targets share whose artifact is an ONNX file and whose runtime is ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ModelError, UsageError
from edgekit.graph import Graph
from edgekit.session import OrtRunner, cores, open_runner
from edgekit.target import Artifact

if TYPE_CHECKING:
    import onnx

KINDS = ("float", "int8")


def write_artifact(graph: Graph, kind: str, folder: Path) -> Artifact:
    """Write ``<kind>.onnx`` into ``folder``.

    Raises:
        UsageError: ``kind`` is not ``float`` or ``int8``.
        OutputError: The file cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no artifact kind '{kind}'", valid=KINDS)
    path = folder / f"{kind}.onnx"
    return Artifact(kind, path, graph.save(path))


def read_onnx(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """An ONNX file.

    Args:
        path: The file.
        weights: Read those that are kept in files beside it, too.

    Raises:
        ModelError: The file is missing or no ONNX model.
    """
    import onnx

    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    try:
        model = onnx.load(path, load_external_data=weights)
    except Exception as error:  # OSError, or the DecodeError of protobuf, which has no typed import
        raise ModelError(f"cannot be read as ONNX: {error}", where=str(path)) from error
    if not model.graph.output:  # other bytes may be read as a message in which nothing is set
        raise ModelError("cannot be read as ONNX: it has no outputs", where=str(path))
    return model


def open_artifact(path: Path, threads: int, *, optimize: bool) -> OrtRunner:
    """A runner with ``threads`` threads, or as many as this machine has cores where that is fewer.

    Raises:
        ModelError: The file is missing or ONNX Runtime refuses it.
    """
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    try:
        return open_runner(path, threads=min(threads, cores()), optimize=optimize)
    except ModelError as error:
        raise ModelError(error.what, where=str(path)) from error
