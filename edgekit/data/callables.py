"""Samples from the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data.base import Sample, Samples, Skipped
from edgekit.data.feeds import RAW_PIXELS_NOTE, make_sample
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError, EdgekitError

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec


class CallableSamples(Samples):
    """What a function yields; it is called without arguments, once for each pass.

    Each item is an image (uint8 [H, W, 3], RGB, or a Pillow image), which is preprocessed, or an array or a
    dict of arrays, fed as they are; or a pair of a name and one of these. A list (or anything that can be
    gone through again) may stand in for the function. A limit takes the first items.
    """

    def __init__(
        self,
        source: Callable[[], Iterable[Any]] | Iterable[Any],
        inputs: tuple[TensorSpec, ...],
        preprocess: Preprocess,
        *,
        limit: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__(name or getattr(source, "__qualname__", type(source).__name__), limit)
        self._source = source
        self.inputs = inputs
        self.preprocess = preprocess
        if isinstance(source, Iterator):
            raise DataError(
                "can be gone through only once, and samples are needed several times",
                where=self.source,
                hint="Give the function that makes it, not what it returned",
            )
        if any(spec.dtype == np.uint8 for spec in inputs) and len(inputs) == 1:
            self.notes += (RAW_PIXELS_NOTE,)

    @property
    def count(self) -> int | None:
        if not isinstance(self._source, Sized):
            return None
        return len(self._source) if self.limit is None else min(len(self._source), self.limit)

    def _produce(self, skip: Callable[[Skipped], None]) -> Generator[Sample, None, None]:
        for index, item in enumerate(self._items()):
            if index == self.limit:
                return
            name, order = str(index), index
            named = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            if named:
                name, item = item
            where = f"{self.source}, sample {name}"
            yield make_sample(
                item, name, self.inputs, self.preprocess, order=None if named else order, where=where
            )

    def _items(self) -> Iterator[Any]:
        try:
            made = self._source() if callable(self._source) else self._source
            if not isinstance(made, Iterable):
                raise DataError(
                    f"returned a {type(made).__name__}, not samples to go through", where=self.source
                )
            yield from made
        except EdgekitError:
            raise
        # The function is the user's: it may raise anything, and the user must learn that it was theirs.
        except Exception as error:
            raise DataError(f"raised {type(error).__name__}: {error}", where=self.source) from error
