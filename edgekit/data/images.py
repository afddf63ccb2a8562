"""Samples from a folder of images."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data.base import Sample, Samples, Skipped, spread
from edgekit.data.feeds import RAW_PIXELS_NOTE, image_input, image_sample
from edgekit.data.pixels import load_image
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# Images decoded ahead of the one in use. Two keep a core busy; more would only cost memory.
_AHEAD = 2


def find_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All images below a folder, sorted by path, and how many other files there are of each suffix.

    Hidden files are left out. Linked folders are followed, each one once.

    Raises:
        DataError: The folder cannot be read.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename)) from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES:
                images.append(path)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    return sorted(images, key=lambda path: path.relative_to(folder).parts), others


class ImageSamples(Samples):
    """The images below a folder (or one image file), sorted by path. One thread decodes ahead."""

    def __init__(
        self, path: Path, inputs: tuple[TensorSpec, ...], preprocess: Preprocess, *, limit: int | None = None
    ) -> None:
        super().__init__(str(path), limit)
        self.preprocess = preprocess
        self.spec = image_input(inputs, preprocess, self.source)
        if path.is_file():
            self._folder, found, others = path.parent, [path], Counter[str]()
        else:
            self._folder = path
            found, others = find_images(path)
        self._paths = [found[i] for i in spread(len(found), limit)]
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        if not found:
            raise DataError(
                f"no images in the folder, but {others.total()} other files ({listed})"
                if others
                else "the folder is empty",
                where=self.source,
                valid=SUFFIXES,
            )
        if others:
            self.notes += (f"{others.total()} files that are no images were passed over ({listed})",)
        if self.spec.dtype == np.uint8:
            self.notes += (RAW_PIXELS_NOTE,)

    @property
    def count(self) -> int:
        return len(self._paths)

    def _produce(self, skip: Callable[[Skipped], None]) -> Generator[Sample, None, None]:
        for made in self._ahead():
            if isinstance(made, Skipped):
                skip(made)
            else:
                yield made

    def _ahead(self) -> Iterator[Sample | Skipped]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekit-decode") as pool:
            pending: deque[Future[Sample | Skipped]] = deque()
            try:
                for path in self._paths:
                    pending.append(pool.submit(self._make, path))
                    if len(pending) > _AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _make(self, path: Path) -> Sample | Skipped:
        name = path.relative_to(self._folder).as_posix()
        try:
            return image_sample(load_image(path), name, self.spec, self.preprocess)
        except DataError as error:
            return Skipped(name, error.what)
