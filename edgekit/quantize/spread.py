"""A few samples of a stream, evenly spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edgekit.quantize.histogram import Array


class Spread:
    """Keeps a few samples of a stream, evenly spread over it, however long it turns out to be.

    Folders are often sorted by class or by person: the first samples say little about the others.
    """

    def __init__(self, count: int, total: int | None) -> None:
        self.count = count
        self.step = max(1, (total or 0) // count)
        self._kept: list[Mapping[str, Array]] = []

    @property
    def kept(self) -> list[Mapping[str, Array]]:
        return self._kept[:: -(-len(self._kept) // self.count) or 1]

    def watch(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        for index, feed in enumerate(feeds):
            if index % self.step == 0:
                self._kept.append(feed)
                if len(self._kept) == 2 * self.count:
                    self._kept = self._kept[::2]
                    self.step *= 2
            yield feed
