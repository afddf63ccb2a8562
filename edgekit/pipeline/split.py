"""Holding samples back from calibration, so that the comparison with float is not on the same data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from edgekit.data.base import Sample, Samples, Skipped, spread
from edgekit.session import Arrays

#: Every so many samples one is held back …
EVERY = 5
#: … where there are at least so many.
FEWEST = 40


def splits(samples: Samples) -> bool:
    """Whether there are enough samples to hold some back."""
    return samples.count is not None and samples.count >= FEWEST


class Part(Samples):
    """One part of a source: every :data:`EVERY`-th sample, or all the others."""

    def __init__(self, whole: Samples, *, held: bool, limit: int | None = None) -> None:
        super().__init__(whole.source, limit, whole.notes)
        total = whole.count
        if total is None:
            raise ValueError("a source of unknown length cannot be split")
        mine = [i for i in range(total) if (i % EVERY == EVERY - 1) == held]
        self.whole = whole
        self.chosen = frozenset(mine[i] for i in spread(len(mine), limit))

    @property
    def count(self) -> int:
        return len(self.chosen)

    def _produce(self, skip: Callable[[Skipped], None]) -> Generator[Sample, None, None]:
        for index, sample in enumerate(self.whole):
            if index in self.chosen:
                yield sample
        for skipped in self.whole.skipped:
            skip(skipped)


class Watched:
    """Feeds of samples for any number of passes; remembers how many there were and which were skipped."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.used = 0
        self.skipped: dict[str, str] = {}

    def __call__(self) -> Iterator[Arrays]:
        count = 0
        try:
            for count, sample in enumerate(self.samples, start=1):  # noqa: B007
                yield sample.feeds
        finally:
            self.used = max(self.used, count)
            self.skipped.update({item.name: item.reason for item in self.samples.skipped})
