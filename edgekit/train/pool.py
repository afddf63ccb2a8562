"""The samples of a training run: decoded once, held in memory as far as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.data.base import Sample, Samples
from edgekit.data.preprocess import Array, Preprocess
from edgekit.errors import DataError
from edgekit.graph import Graph
from edgekit.train.augment import Augmentation, Augmenter, Feeds, varied_arrays
from edgekit.train.options import DistillOptions, Labels

#: Held-out samples that are kept at most: enough to choose an epoch by, and cheap.
MOST_HELD = 200
#: Fewest samples of which some are held out.
FEWEST = 8
#: A stored image has at most so many times the rows and columns that the network looks at.
OVERSAMPLED = 2


@dataclass(frozen=True)
class Item:
    """One sample: an image, or arrays; and its class where it is known."""

    index: int
    image: Array | None
    feeds: Mapping[str, Array]
    label: int | None = None

    @property
    def bytes(self) -> int:
        arrays = [*self.feeds.values()] if self.image is None else [self.image]
        return sum(array.nbytes for array in arrays)


class Pool:
    """Training and held-out samples, read in one pass.

    Args:
        samples: Where they come from.
        graph: The network they are for.
        options: Cache, held-out share, labels.

    Attributes:
        held: The held-out samples; the training samples where there are too few to hold some out.
        count: Number of training samples.
        streaming: Whether the training samples are read again in every epoch, being too large to keep.
        notes: What the user should know.

    Raises:
        DataError: There are no samples, or labels do not fit them.
    """

    def __init__(self, samples: Samples, graph: Graph, options: DistillOptions) -> None:
        self.samples, self.options = samples, options
        self.notes: list[str] = []
        self.streaming = False
        self.labelled = 0
        self.preprocess = options.preprocess or preprocess_of(samples)
        self._input = graph.inputs[0]
        self._buffer: list[Item] = []
        self.held: list[Item] = []
        self.count = 0
        self._read()

    @property
    def images(self) -> bool:
        """Whether samples are images that can be varied."""
        return bool(self._buffer) and self._buffer[0].image is not None

    def _read(self) -> None:
        total = self.samples.count
        every = self.options.held_out if total is None or total >= FEWEST else 0
        used = 0
        for index, sample in enumerate(self.samples):
            item = self._item(index, sample)
            self.labelled += item.label is not None
            if self._is_held(index, every) and len(self.held) < MOST_HELD:
                self.held.append(item)
                continue
            self.count += 1
            used += item.bytes
            if used <= self.options.cache_bytes or not self._buffer:
                self._buffer.append(item)
            else:
                self.streaming = True
        self._every = every
        if self.samples.skipped:
            self.notes.append(f"{len(self.samples.skipped)} samples cannot be read and are left out")
        if not self.held:
            self.held = self._buffer[:MOST_HELD]
            self.notes.append(
                f"{self.count} samples are too few to hold some out: epochs are chosen by the training loss"
            )
        if self.streaming:
            self.notes.append(
                f"{len(self._buffer)} of {self.count} training samples fit into the cache of "
                f"{self.options.cache_bytes / 2**20:.0f} MB: they are read again in every epoch"
            )

    @staticmethod
    def _is_held(index: int, every: int) -> bool:
        return every > 0 and index % every == every - 1

    def _item(self, index: int, sample: Sample) -> Item:
        label = label_of(self.options.labels, index, sample)
        if sample.image is None or self.preprocess is None:
            return Item(index, None, sample.feeds, label)
        return Item(index, self._thinned(sample.image, self.preprocess), {}, label)

    def _thinned(self, image: Array, preprocess: Preprocess) -> Array:
        """Every k-th pixel of an image far larger than the network's input, which looks at fewer still."""
        if preprocess.resize == "none":
            return image
        target = preprocess.image_shape(self._input.shape)
        tall, wide = image.shape[:2]
        step = int(min(tall / target.height, wide / target.width) / OVERSAMPLED)
        return np.ascontiguousarray(image[::step, ::step]) if step > 1 else image

    def epoch(self, epoch: int, batch: int) -> Iterator[list[Item]]:
        """The training samples in batches, in an order that (seed, epoch) decide; a short rest is dropped
        unless it is all there is.
        """
        rng = np.random.default_rng([self.options.seed, 1, epoch])
        source = self._shuffled(rng) if not self.streaming else self._streamed(rng)
        batch = min(batch, self.count)
        group: list[Item] = []
        for item in source:
            group.append(item)
            if len(group) == batch:
                yield group
                group = []

    def steps(self, batch: int) -> int:
        """Batches in an epoch."""
        return self.count // min(batch, self.count)

    def _shuffled(self, rng: np.random.Generator) -> Iterator[Item]:
        return (self._buffer[i] for i in rng.permutation(len(self._buffer)))

    def _streamed(self, rng: np.random.Generator) -> Iterator[Item]:
        """A pass over the source through a buffer that is drawn from at random."""
        buffer: list[Item] = []
        room = max(1, len(self._buffer))
        held = {item.index for item in self.held}
        for index, sample in enumerate(self.samples):
            if index in held:
                continue
            item = self._item(index, sample)
            if len(buffer) < room:
                buffer.append(item)
                continue
            place = int(rng.integers(room))
            yield buffer[place]
            buffer[place] = item
        yield from (buffer[i] for i in rng.permutation(len(buffer)))


class Feeder:
    """Makes network inputs of items, varied or plain.

    Args:
        graph: The network.
        pool: Whose items.
        how: How they are varied.
    """

    def __init__(self, graph: Graph, pool: Pool, how: Augmentation) -> None:
        self.how = how
        spec = graph.inputs[0]
        self._images: Augmenter | None = None
        if pool.images and pool.preprocess is not None:
            self._images = Augmenter(spec.name, spec.shape, spec.dtype, pool.preprocess, how)
        self.varies = how.images if self._images is not None else how.arrays

    def plain(self, item: Item) -> Feeds:
        """The input as deployment makes it."""
        if self._images is None or item.image is None:
            return dict(item.feeds)
        return self._images.plain(item.image)

    def varied(self, item: Item, batch: list[Item], rng: np.random.Generator) -> Feeds:
        """A variation; mosaics and mixes take the others from the same batch."""
        if not self.varies:
            return self.plain(item)
        others = [other for other in batch if other is not item]
        if self._images is not None and item.image is not None:
            images = [other.image for other in others if other.image is not None]
            return self._images.varied(item.image, images, rng)
        return varied_arrays(item.feeds, [other.feeds for other in others], self.how, rng)


def preprocess_of(samples: Samples) -> Preprocess | None:
    """What the samples preprocess images with; looks through parts of a source."""
    found: object = samples
    while hasattr(found, "whole"):
        found = found.whole
    preprocess = getattr(found, "preprocess", None)
    return preprocess if isinstance(preprocess, Preprocess) else None


def label_of(labels: Labels | None, index: int, sample: Sample) -> int | None:
    """The class of a sample, or None where it has none.

    Raises:
        DataError: There are fewer labels than samples.
    """
    if labels is None:
        return None
    if callable(labels):
        return labels(sample)
    if isinstance(labels, Mapping):
        return labels.get(sample.name)
    if index >= len(labels):
        raise DataError(f"there are {len(labels)} labels, but more samples", where="labels")
    return int(labels[index])
