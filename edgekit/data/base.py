"""What a source of samples is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.data.preprocess import Geometry
from edgekit.errors import DataError, UsageError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """One set of network inputs.

    Attributes:
        name: Path of the image below its folder, or the name or number of the sample.
        feeds: One array for each network input, by name, of the input's shape and type.
        geometry: Where the image lies in the input; None for samples that came as arrays.
        image: The decoded image, uint8 [H, W, 3], RGB; None for samples that came as arrays.
        order: Position in the source, from 0, where the samples have no names of their own; else None.
    """

    name: str
    feeds: dict[str, Array]
    geometry: Geometry | None = None
    image: Array | None = None
    order: int | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read.

    Attributes:
        name: The sample's name.
        reason: Why, in words for the user.
    """

    name: str
    reason: str


class Samples(ABC):
    """Samples that can be gone through any number of times; only a few are in memory at once.

    Attributes:
        source: Where they come from, as the user wrote it.
        notes: What the user should know about how they are read.
    """

    def __init__(self, source: str, limit: int | None, notes: tuple[str, ...] = ()) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"{limit} samples are too few", where=source, valid=("1 or more",))
        self.source = source
        self.limit = limit
        self.notes = notes
        self._skipped: list[Skipped] = []

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many samples there are, unreadable ones included; None when only a full pass can tell."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The unreadable samples of the latest pass, in order; complete once the pass has ended."""
        return tuple(self._skipped)

    def __iter__(self) -> Iterator[Sample]:
        """Go through the samples.

        Raises:
            DataError: A sample has the wrong shape or type, or not one of them can be read.
        """
        skipped: list[Skipped] = []
        self._skipped = skipped
        found = False
        with closing(self._produce(skipped.append)) as produced:
            for sample in produced:
                found = True
                yield sample
        if not found:
            reason = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
            raise DataError(
                f"none of the {len(skipped)} samples can be used{reason}"
                if skipped
                else "there are no samples",
                where=self.source,
            )

    @abstractmethod
    def _produce(self, skip: Callable[[Skipped], None]) -> Generator[Sample, None, None]:
        """Yield the samples; hand each unreadable one to ``skip``."""


def spread(count: int, limit: int | None) -> list[int]:
    """Which of ``count`` samples to take: all, or ``limit`` of them at equal distances.

    Files are often sorted by class or by person; the first few would show only one.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]
