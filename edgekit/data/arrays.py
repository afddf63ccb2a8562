"""Samples from a NumPy file: ``.npz`` with one array for each network input, or ``.npy``.

Arrays are read row by row from the (compressed) file, so that a pass needs the memory of one sample.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edgekit.data.base import Sample, Samples, Skipped, spread
from edgekit.data.feeds import RAW_PIXELS_NOTE, image_input, is_image, make_sample
from edgekit.data.preprocess import Array, Preprocess
from edgekit.errors import DataError

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec


@dataclass(frozen=True)
class Stored:
    """One array in a file.

    Attributes:
        name: Its key in the ``.npz``; empty in a ``.npy``.
        shape: Its shape, the sample axis first.
        dtype: Its element type.
        fortran: True when the first axis varies fastest, so that a sample is scattered over the file.
        start: Offset of the first element in the (unpacked) member, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int


class ArraySamples(Samples):
    """Rows of the arrays in a ``.npz`` or ``.npy`` file; uint8 rows [H, W, 3] are images to preprocess."""

    def __init__(
        self, path: Path, inputs: tuple[TensorSpec, ...], preprocess: Preprocess, *, limit: int | None = None
    ) -> None:
        super().__init__(str(path), limit)
        self.path = path
        self.inputs = inputs
        self.preprocess = preprocess
        stored = read_headers(path)
        self._stored = self._match(stored)
        self._rows = spread(self._length(), limit)
        unused = [s.name for s in stored if s not in self._stored.values()]
        if unused:
            self.notes += (f"the arrays {', '.join(unused)} are no inputs and were passed over",)
        first = next(iter(self._stored.values()))
        if is_image(first.dtype, first.shape[1:], inputs, preprocess):
            image_input(inputs, preprocess, self.source)
            self.notes += (f"the array '{first.name}' holds uint8 images: they are preprocessed",)
            if inputs[0].dtype == np.uint8:
                self.notes += (RAW_PIXELS_NOTE,)

    @property
    def count(self) -> int:
        return len(self._rows)

    def _match(self, stored: list[Stored]) -> dict[str, Stored]:
        """The array for each input: the one of its name, or the only one where there is one input."""
        by_name = {s.name: s for s in stored}
        wanted = [spec.name for spec in self.inputs]
        if len(wanted) == 1 and len(stored) == 1:
            return {wanted[0]: stored[0]}
        missing = [name for name in wanted if name not in by_name]
        if missing:
            listed = ", ".join(f"{s.name} {list(s.shape)}" for s in stored) or "nothing"
            raise DataError(
                f"no array for the input {', '.join(missing)}; the file holds {listed}",
                where=self.source,
                valid=[f"{spec.name} {['N', *spec.shape[1:]]}".replace("'", "") for spec in self.inputs],
            )
        return {name: by_name[name] for name in wanted}

    def _length(self) -> int:
        lengths = {name: s.shape[0] for name, s in self._stored.items() if s.shape}
        if len(lengths) < len(self._stored):
            name = next(n for n in self._stored if n not in lengths)
            raise DataError(
                f"the array for '{name}' is a single number, not rows of samples", where=self.source
            )
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(f"the arrays hold different numbers of samples ({listed})", where=self.source)
        (length,) = set(lengths.values())
        if length == 0:
            raise DataError("the arrays hold no samples", where=self.source)
        return length

    def _produce(self, skip: Callable[[Skipped], None]) -> Generator[Sample, None, None]:
        with ExitStack() as stack:
            rows = {n: stack.enter_context(_rows(self.path, s, self._rows)) for n, s in self._stored.items()}
            for index in self._rows:
                row = {name: next(stream) for name, stream in rows.items()}
                # A lone array may be an image, or an input of that shape; make_sample tells.
                item = next(iter(row.values())) if len(row) == 1 else row
                where = f"{self.source}, sample {index}"
                yield make_sample(item, str(index), self.inputs, self.preprocess, order=index, where=where)


def read_headers(path: Path) -> list[Stored]:
    """Name, shape and type of every array in a file, without reading the arrays.

    Raises:
        DataError: The file is no NumPy file, is damaged, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                return [_header(stream, "", path)]
        with zipfile.ZipFile(path) as archive:
            found = []
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as stream:
                        found.append(_header(stream, member.removesuffix(".npy"), path))
            return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"is no readable {path.suffix.lower()} file: {error}", where=str(path)) from error


def _header(stream: IO[bytes], name: str, path: Path) -> Stored:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read is None:
        raise ValueError(f"format version {version[0]}.{version[1]}")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise DataError(
            f"the array '{name}' holds elements of type {dtype}",
            where=str(path),
            valid=("floats", "whole numbers", "booleans"),
        )
    return Stored(name, tuple(shape), dtype, fortran and len(shape) > 1, stream.tell())


@contextmanager
def _rows(path: Path, stored: Stored, indices: list[int]) -> Iterator[Iterator[Array]]:
    """An iterator over the rows ``indices`` (rising) of one array."""
    with ExitStack() as stack:
        if path.suffix.lower() == ".npy":
            stream: IO[bytes] = stack.enter_context(path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = stack.enter_context(archive.open(f"{stored.name}.npy"))
        yield _read_rows(stream, stored, indices, path)


def _read_rows(stream: IO[bytes], stored: Stored, indices: list[int], path: Path) -> Iterator[Array]:
    try:
        if stored.fortran:
            whole = np.lib.format.read_array(stream, allow_pickle=False)
            yield from (np.ascontiguousarray(whole[index]) for index in indices)
            return
        shape = stored.shape[1:]
        size = int(np.prod(shape, dtype=np.int64)) * stored.dtype.itemsize
        stream.read(stored.start)
        for index in indices:
            # Seeking would give up the check of the zip member's checksum at its end.
            if stream.tell() != stored.start + index * size:
                stream.seek(stored.start + index * size)
            data = stream.read(size)
            if len(data) < size:
                raise EOFError("it ends early")
            # A bytearray makes the array writable, which torch asks of arrays it shares memory with.
            yield np.frombuffer(bytearray(data), stored.dtype).reshape(shape)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"the array '{stored.name}' cannot be read: {error}", where=str(path)) from error
