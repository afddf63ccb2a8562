"""Tensors of all samples on disk, so that memory holds a few samples at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from edgekit.errors import DataError, OutputError
from edgekit.quantize.histogram import Array


@dataclass
class _File:
    descriptor: int
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    bytes: int


class Store:
    """One file for each tensor, one slot in it for each sample. Use as a context manager.

    It reads and writes, and maps nothing: pages of a mapped file count as memory of the process.

    Args:
        folder: Where a temporary folder is made; None takes the system's place for such.

    Raises:
        OutputError: The disk is full or read-only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._files: dict[str, _File] = {}
        self._made = 0
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="edgekit-reconstruct-", dir=folder))
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(folder)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._files):
            self.drop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def put(self, name: str, index: int, value: Array) -> None:
        """Keep the tensor of one sample.

        Raises:
            DataError: Its shape or type differs from that of the samples before.
        """
        data = np.ascontiguousarray(value)
        file = self._files.get(name) or self._open(name, data)
        if (file.shape, file.dtype) != (data.shape, data.dtype):
            raise DataError(
                f"sample {index} is {data.dtype} {list(data.shape)}, others {file.dtype} {list(file.shape)}",
                where=f"tensor '{name}'",
            )
        try:
            done = os.pwrite(file.descriptor, data.tobytes(), index * file.bytes)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(file.path)) from error
        if done != file.bytes:
            raise OutputError("cannot write: the disk is full", where=str(file.path))

    def get(self, name: str, index: int) -> Array:
        """The tensor of one sample."""
        file = self._files[name]
        data = os.pread(file.descriptor, file.bytes, index * file.bytes)
        return np.frombuffer(data, file.dtype).reshape(file.shape)

    def batch(self, name: str, indices: Sequence[int]) -> Array:
        """The tensors of some samples, one behind the other along the first axis."""
        return np.concatenate([self.get(name, i) for i in indices])

    def drop(self, name: str) -> None:
        """Forget a tensor, if it is there."""
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file.descriptor)
            file.path.unlink(missing_ok=True)

    def _open(self, name: str, first: Array) -> _File:
        # Tensor names hold slashes and may be long.
        self._made += 1
        path = self.folder / f"{self._made}.bin"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error
        file = self._files[name] = _File(descriptor, path, first.shape, first.dtype, first.nbytes)
        return file
