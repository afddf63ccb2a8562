"""Calibration in one streaming pass with fixed memory.

The float graph is run once per sample with a few small nodes added, so that ONNX Runtime itself reduces every
observed tensor to what is needed: the exact minimum and maximum of each channel, and some of its values for a
histogram. No tensor leaves the session whole, and what is kept does not grow with the number of samples.
Samples run side by side, one thread each, which keeps the cores busier than many threads on one sample.

1. Feature maps ``[1, C, H, W]`` stay in the blocked layout that ONNX Runtime gives them, which only some
   nodes read: ``GlobalMaxPool`` finds the maxima, ``MaxPool`` of one pixel with a stride picks pixels on a
   grid for the histogram. ``ReduceMax`` and ``Slice`` would first have every tensor written again in the
   plain layout, which costs more than the reduction. Other tensors are reduced directly and give evenly
   spaced values.
2. A minimum needs that plain layout. It is not measured where it is known (ReLU, Clip) nor where it hardly
   matters: the input of a SiLU, which is flat far below zero, takes the smallest of the sampled values.
3. A tensor that is a known function of an observed one is not observed: SiLU (``x * sigmoid(x)``) carries the
   histogram of ``x`` through the function.
4. Maximum and pooling pass over NaN. It is looked for where it comes in, in the samples, and where it goes
   out, in sums over the graph's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_ir as ir

from edgekit.errors import DataError, ModelError
from edgekit.graph import Graph, array
from edgekit.quantize.calibrators import Range
from edgekit.quantize.histogram import BINS, Array, Histogram
from edgekit.quantize.probe import Probe, channel_axis
from edgekit.session import Arrays, open_runner, run_all

#: Values of one tensor that one sample adds to its histogram.
VALUES = 320
#: Channels in a block of ONNX Runtime's layout on the widest CPUs; narrower ones divide it.
BLOCK_CHANNELS = 16
#: Samples whose values are buffered before they are counted.
BLOCK = 16
#: Where ``x * sigmoid(x)`` has its minimum.
SILU_TURN = -1.2784645
#: Outputs of the probed graph.
MIN, MAX, SAMPLED, SUMS = "edgekit.min", "edgekit.max", "edgekit.sampled", "edgekit.sums"
#: What ONNX Runtime's pooling makes of NaN: the smallest float32.
LOWEST = float(np.finfo(np.float32).min)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Calibration:
    """What one pass over the samples found.

    Attributes:
        histograms: By tensor name.
        samples: How many samples were run.
        ranges: Ranges that have been chosen from the histograms, so that a search does not choose them again.
    """

    histograms: Mapping[str, Histogram]
    samples: int
    ranges: dict[Hashable, Range] = field(default_factory=dict, compare=False, repr=False)


def observe(
    graph: Graph,
    tensors: Iterable[str],
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int = 0,
    total: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run ``graph`` on every sample and gather range and histogram of ``tensors``.

    Args:
        graph: A captured float graph.
        tensors: Names of float32 activations.
        feeds: One dictionary of inputs per sample.
        threads: Samples that run at the same time; 0 is one per core.
        total: Number of samples where it is known, for ``progress``.
        progress: Called with (samples done, total).

    Raises:
        DataError: There is no sample.
        ModelError: A tensor took a value that is not finite.
    """
    wanted = tuple(dict.fromkeys(tensors))
    silus = silu_inputs(graph)
    observed = tuple(dict.fromkeys(silus.get(t, t) for t in wanted))
    probe = _RangeProbe(graph, observed)
    collector = _Collector(probe)
    done = 0
    for done, outputs in enumerate(_outputs(probe, feeds, threads) if observed else feeds, 1):
        if observed:
            collector.add(outputs)
        if progress is not None:
            progress(done, total)
    if not done:
        raise DataError("there is no sample to calibrate with")
    found = collector.histograms()
    for tensor in wanted:
        if tensor in silus:
            found[tensor] = found[silus[tensor]].through(silu, (SILU_TURN,))
    return Calibration({t: found[t] for t in dict.fromkeys((*wanted, *observed))}, done)


def _outputs(probe: _RangeProbe, feeds: Iterable[Mapping[str, Array]], threads: int) -> Iterator[Arrays]:
    return run_all(open_runner(probe.model, threads=1), map(_finite, feeds), workers=threads)


def _finite(feed: Mapping[str, Array]) -> Mapping[str, Array]:
    for tensor, values in feed.items():
        if not np.isfinite(values).all():
            raise _not_finite(tensor)
    return feed


def _not_finite(tensor: str) -> ModelError:
    return ModelError("takes values that are not finite", where=f"tensor '{tensor}'")


def silu(x: Array) -> Array:
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -80.0, 80.0))))


def silu_inputs(graph: Graph) -> dict[str, str]:
    """Output of every ``Mul(x, Sigmoid(x))`` and its ``x``."""
    found = {}
    for node in graph.nodes:
        if node.op_type != "Mul":
            continue
        for x, gate in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            producer = gate.producer() if gate is not None else None
            if (
                x is not None
                and producer is not None
                and producer.op_type == "Sigmoid"
                and producer.inputs[0] is x
            ):
                found[str(node.outputs[0].name)] = str(x.name)
    return found


class _Floor(Enum):
    """Where the minimum of a tensor comes from."""

    ZERO = "known"
    SAMPLED = "sampled"
    EXACT = "exact"


class _RangeProbe:
    """The graph with reductions added: its outputs carry the maxima, some minima, and sampled values."""

    def __init__(self, graph: Graph, tensors: tuple[str, ...]) -> None:
        self.probe = Probe(graph)
        self.channels: list[int] = []
        self.value_counts: list[int] = []
        self.floors: list[_Floor] = []
        #: Picked pixels of every channel of the feature maps, which come first.
        self.pixels: list[int] = []
        gated = frozenset(silu_inputs(graph).values())
        self.outputs = [v for v in self.probe.main.outputs if v.dtype == ir.DataType.FLOAT]
        sums = [self.probe.node("ReduceSum", [self._flat(v)], keepdims=1) for v in self.outputs]
        parts: dict[str, list[ir.Value]] = {MIN: [], MAX: [], SAMPLED: [], SUMS: sums}
        # Joined before they are flattened: those in the blocked layout apart, so that they stay in it.
        blocked: list[ir.Value] = []
        plain: list[ir.Value] = []
        self.tensors = tuple(sorted(tensors, key=lambda t: _order(self.probe.shape(t))))
        for tensor in self.tensors:
            shape = self.probe.shape(tensor)
            value = self.probe.values[tensor]
            pooled = _is_map(shape)
            self.channels.append(shape[channel_axis(len(shape))] if shape else 1)
            floor = _floor(value, gated) if pooled else _Floor.EXACT
            self.floors.append(floor)
            if pooled:
                maximum = self.probe.node("GlobalMaxPool", [value])
                (plain if shape[1] % BLOCK_CHANNELS else blocked).append(maximum)
                parts[SAMPLED].append(self._flat(self._grid(value, shape)))
            else:
                parts[MAX].append(self.probe.reduce("ReduceMax", value, len(shape)))
                parts[SAMPLED].append(self._spaced(value, shape))
            if floor is _Floor.EXACT:
                parts[MIN].append(self.probe.reduce("ReduceMin", value, len(shape)))
        joined = [
            self._flat(self.probe.node("Concat", maxima, axis=1)) for maxima in (blocked, plain) if maxima
        ]
        parts[MAX] = [*joined, *parts[MAX]]
        self.model = self.probe.finish({k: v for k, v in parts.items() if v})

    def _flat(self, value: ir.Value) -> ir.Value:
        return self.probe.node("Reshape", [value, self.probe.ints([-1])])

    def _grid(self, value: ir.Value, shape: list[int]) -> ir.Value:
        """Every ``step``-th pixel in both directions, of all channels."""
        step = max(1, int(np.sqrt(np.prod(shape) / VALUES)))
        # At least four pixels of each channel, where it has as many.
        step = min(step, max(shape[2] // 2, 1), max(shape[3] // 2, 1))
        self.pixels.append(-(-shape[2] // step) * -(-shape[3] // step))
        self.value_counts.append(shape[1] * self.pixels[-1])
        return self.probe.node("MaxPool", [value], kernel_shape=[1, 1], strides=[step, step])

    def _spaced(self, value: ir.Value, shape: list[int]) -> ir.Value:
        probe, size = self.probe, int(np.prod(shape))
        flat = self._flat(value)
        # An odd step does not keep time with the channels.
        step = 1 if size <= VALUES else size // VALUES | 1
        self.value_counts.append(-(-size // step))
        return (
            flat if step == 1 else probe.node("Slice", [flat, *(probe.ints([n]) for n in (0, size, 0, step))])
        )


def _order(shape: list[int]) -> int:
    """Feature maps with whole blocks of channels, other feature maps, everything else."""
    return (1 if shape[1] % BLOCK_CHANNELS else 0) if _is_map(shape) else 2


def _is_map(shape: list[int]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and shape[2] * shape[3] > 1


def _floor(value: ir.Value, gated: frozenset[str]) -> _Floor:
    producer = value.producer()
    if producer is not None and producer.op_type == "Relu":
        return _Floor.ZERO
    if producer is not None and producer.op_type == "Clip":
        low = array(producer.inputs[1]) if len(producer.inputs) > 1 else None
        return _Floor.ZERO if low is not None and float(low) == 0.0 else _Floor.EXACT
    return _Floor.SAMPLED if str(value.name) in gated else _Floor.EXACT


class _Collector:
    """Adds up what the probe returns, for all tensors at once."""

    def __init__(self, probe: _RangeProbe) -> None:
        self.tensors = probe.tensors
        self.outputs = [str(v.name) for v in probe.outputs]
        self.starts = np.cumsum([0, *probe.channels])
        floors = np.repeat([f.value for f in probe.floors], probe.channels)
        self.exact = np.flatnonzero(floors == _Floor.EXACT.value)
        self.picked = np.flatnonzero(floors == _Floor.SAMPLED.value)
        # Where the picked pixels of each channel of the feature maps begin.
        pixels = np.repeat(probe.pixels, probe.channels[: len(probe.pixels)])
        self.stretches = np.concatenate([[0], np.cumsum(pixels)]).astype(np.int64)
        take, owner, start = [], [], 0
        for index, count in enumerate(probe.value_counts):
            chosen = np.arange(0, count, max(1, count // VALUES))
            take.append(chosen + start)
            owner.append(np.full(len(chosen), index))
            start += count
        self.take = np.concatenate(take) if take else np.zeros(0, np.int64)
        self.owner = np.concatenate(owner) if owner else np.zeros(0, np.int64)
        self.first = self.owner * BINS
        self.low = self.high = np.zeros(0)
        self.minima: Array = np.zeros(0, np.float32)
        self.maxima: Array = np.zeros(0, np.float32)
        self.counts = np.zeros((len(self.tensors), BINS))
        self.buffer: list[Array] = []

    def add(self, outputs: Mapping[str, Array]) -> None:
        maxima, values = outputs[MAX], outputs[SAMPLED]
        sampled = values[self.take]
        minima = np.zeros(len(maxima), np.float32)
        if self.exact.size:
            minima[self.exact] = outputs[MIN]
        if self.picked.size:
            pixels = values[: self.stretches[-1]]
            minima[self.picked] = np.minimum.reduceat(pixels, self.stretches[:-1])[self.picked]
        self._check(minima, maxima, sampled, outputs.get(SUMS, np.zeros(0)))
        self.minima = np.minimum(self.minima, minima) if self.minima.size else minima
        self.maxima = np.maximum(self.maxima, maxima) if self.maxima.size else maxima
        self.buffer.append(sampled)
        if len(self.buffer) == BLOCK:
            self._count()

    def _check(self, minima: Array, maxima: Array, sampled: Array, sums: Array) -> None:
        """Name the first tensor, feature maps before others, with a value that is not finite."""
        ranges = np.isfinite(minima) & np.isfinite(maxima) & (maxima > LOWEST)
        values = np.isfinite(sampled) & (sampled > LOWEST)
        if not (ranges.all() and values.all()):
            channels = np.searchsorted(self.starts, np.flatnonzero(~ranges), "right") - 1
            raise _not_finite(self.tensors[int(min([*channels, *self.owner[~values]]))])
        if not np.isfinite(sums).all():
            raise _not_finite(self.outputs[int(np.flatnonzero(~np.isfinite(sums))[0])])

    def histograms(self) -> dict[str, Histogram]:
        self._count()
        spans = zip(self.tensors, self.starts, self.starts[1:], strict=False)
        return {
            tensor: Histogram(
                self.counts[i], float(self.low[i]), float(self.high[i]), self.minima[a:b], self.maxima[a:b]
            )
            for i, (tensor, a, b) in enumerate(spans)
        }

    def _count(self) -> None:
        if not self.buffer:
            return
        low = np.minimum.reduceat(self.minima, self.starts[:-1]).astype(np.float64)
        high = np.maximum.reduceat(self.maxima, self.starts[:-1]).astype(np.float64)
        high = np.maximum(high, low + 1e-12)
        if self.low.size:
            self._widen(low, high)
        else:
            self.low, self.high = low, high
        scale = BINS / (self.high - self.low)
        values = np.stack(self.buffer)
        index = ((values - self.low[self.owner]) * scale[self.owner]).astype(np.int64)
        flat = np.clip(index, 0, BINS - 1) + self.first
        self.counts += np.bincount(flat.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        self.buffer.clear()

    def _widen(self, low: Array, high: Array) -> None:
        """Move the counts of tensors whose range has grown into new bins, by their old bins' centres."""
        for i in np.flatnonzero((low < self.low) | (high > self.high)):
            old = Histogram(self.counts[i], self.low[i], self.high[i], low[i : i + 1], high[i : i + 1])
            # Half as much again on a side that grows: a range that creeps up is not rebinned at every step.
            slack = 0.25 * (high[i] - low[i])
            new_low = low[i] - slack if low[i] < self.low[i] else self.low[i]
            new_high = high[i] + slack if high[i] > self.high[i] else self.high[i]
            index = np.clip((old.centers - new_low) * (BINS / (new_high - new_low)), 0, BINS - 1).astype(
                np.int64
            )
            self.counts[i] = np.bincount(index, weights=old.counts, minlength=BINS)
            self.low[i], self.high[i] = new_low, new_high
