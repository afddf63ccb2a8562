"""The float and the quantized network, run side by side from block to block over all samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from edgekit.errors import DataError
from edgekit.graph import Graph
from edgekit.quantize.histogram import Array
from edgekit.quantize.reconstruct.network import Network
from edgekit.quantize.reconstruct.options import Feeds, ReconstructOptions
from edgekit.quantize.reconstruct.sections import ENTRY, Sections
from edgekit.quantize.reconstruct.store import Store
from edgekit.quantize.reconstruct.train import AIM, FROM_FLOAT, Task
from edgekit.session import Arrays, open_runner, run_all

#: What is kept in the store is marked by the network that it comes from.
_FLOAT, _QUANTIZED = "float:", "quantized:"


class Stream:
    """Tensors of both networks at the place that the reconstruction has come to.

    Args:
        teacher: The float network.
        network: The quantized network, for its blocks.
        store: Where tensors are kept.
        feeds: Called for a pass over the samples.
        options: How many samples, and which are held out.

    Attributes:
        count: Number of samples.
        held: Numbers of the held-out samples.
        trained: Numbers of the others.
        digest: Hash of all samples.

    Raises:
        DataError: There are fewer than two samples, or they differ in shape.
    """

    def __init__(
        self, teacher: Graph, network: Network, store: Store, feeds: Feeds, options: ReconstructOptions
    ) -> None:
        self.store, self.workers = store, options.threads
        self.blocks = network.blocks
        self.floats = Sections(teacher, network.blocks)
        self.inputs = [i.name for i in teacher.inputs]
        self.count = 0
        digest = hashlib.sha256()
        for feed in _chosen(feeds, options.samples):
            for tensor in self.inputs:
                value = np.ascontiguousarray(feed[tensor])
                digest.update(value.tobytes())
                for label in (_FLOAT, _QUANTIZED):
                    store.put(label + tensor, self.count, value)
            self.count += 1
        if self.count < 2:
            raise DataError(f"{self.count} samples are too few to reconstruct", hint="Give 32 or more")
        self.digest = digest.hexdigest()
        every = min(options.held, self.count)
        self.held = [i for i in range(self.count) if i % every == every - 1]
        self.trained = [i for i in range(self.count) if i % every != every - 1]

    def feeds(self, samples: Iterable[int]) -> Iterator[Mapping[str, Array]]:
        """What the networks are fed with; only before the first block has run."""
        for i in samples:
            yield {tensor: self.store.get(_FLOAT + tensor, i) for tensor in self.inputs}

    def run_float(self, number: int) -> None:
        """Compute what a block gives in the float network, which :meth:`advance` then forgets."""
        outputs = self.blocks[number].outputs
        for i, found in self._run(self.floats, _FLOAT, number, range(self.count), outputs):
            for tensor, value in found.items():
                self.store.put(_FLOAT + tensor, i, value)

    def advance(self, network: Network, number: int) -> None:
        """Compute what later blocks read of a block's quantized form; forget what nobody reads any more."""
        sections = network.sections
        for i, found in self._run(sections, _QUANTIZED, number, range(self.count)):
            for tensor, value in found.items():
                self.store.put(_QUANTIZED + tensor, i, value)
        outputs = self.blocks[number].outputs if number != ENTRY else ()
        for label, cut in ((_FLOAT, self.floats), (_QUANTIZED, sections)):
            section = cut.sections[number]
            for tensor in (*section.inputs, *section.outputs, *outputs):
                if cut.last_read.get(tensor, ENTRY) <= number:
                    self.store.drop(label + tensor)

    def error(
        self, network: Network, number: int, samples: Sequence[int], weights: Array
    ) -> tuple[float, float]:
        """Weighted mean squares of the error of a block's output and of that output in float."""
        (output,) = self.blocks[number].outputs
        result = network.sections.quantized_name(output)
        error = signal = size = 0.0
        for i, found in self._run(network.sections, _QUANTIZED, number, samples, [result]):
            goal = self.store.get(_FLOAT + output, i).astype(np.float64)
            error += float((((found[result] - goal) ** 2) * weights).sum())
            signal += float((goal**2 * weights).sum())
            size += goal.size
        return error / size, signal / size

    def fetch(
        self, network: Network, task: Task, number: int, samples: Sequence[int], *, mix: bool
    ) -> Arrays:
        """What a training step needs; see :func:`~edgekit.quantize.reconstruct.train.learn`."""
        (output,) = self.blocks[number].outputs
        found = {t: self.store.batch(_QUANTIZED + t, samples) for t in task.inputs}
        found[AIM] = self.store.batch(_FLOAT + output, samples)
        for tensor in task.inputs if mix else ():
            source = _FLOAT + network.sections.float_name(tensor)
            if source in self.store:
                found[FROM_FLOAT + tensor] = self.store.batch(source, samples)
        return found

    def _run(
        self,
        sections: Sections,
        label: str,
        number: int,
        samples: Sequence[int],
        outputs: Iterable[str] = (),
    ) -> Iterator[tuple[int, Arrays]]:
        """Outputs of a section by ONNX Runtime, sample by sample."""
        if not sections.sections[number].nodes:
            return
        model = sections.model(number, outputs).SerializeToString()
        runner = open_runner(model, threads=1, optimize=False)
        inputs = ({t: self.store.get(label + t, i) for t in runner.input_names} for i in samples)
        yield from zip(samples, run_all(runner, inputs, workers=self.workers), strict=True)


def _chosen(feeds: Feeds, most: int | None) -> Iterator[Mapping[str, Array]]:
    """All samples, or so many, spread evenly: folders are often sorted."""
    if most is None:
        yield from feeds()
        return
    total = sum(1 for _ in feeds())
    wanted = {i * total // most for i in range(most)}
    yield from (feed for i, feed in enumerate(feeds()) if i in wanted)
