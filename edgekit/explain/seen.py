"""The range of every channel on every sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.graph import Graph
from edgekit.quantize.probe import Probe, channel_axis
from edgekit.session import open_runner, run_all

Array = np.ndarray[Any, Any]
_MIN, _MAX = "edgekit.min", "edgekit.max"


@dataclass(frozen=True)
class Seen:
    """What one tensor took.

    Attributes:
        low: Smallest value, shape ``[samples, channels]``.
        high: Largest value, likewise.
    """

    low: Array
    high: Array

    @property
    def range(self) -> tuple[float, float]:
        return float(self.low.min()), float(self.high.max())

    @property
    def channels(self) -> Array:
        """Largest magnitude of each channel, shape ``[channels]``."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)).max(0), np.float64)

    def without_extremes(self, count: int) -> tuple[tuple[float, float], list[int]]:
        """The range without the ``count`` samples that reach furthest, and which those are."""
        reach = np.maximum(self.high.max(1), -self.low.min(1))
        order = np.argsort(-reach, kind="stable")
        rest = order[count:]
        return (float(self.low[rest].min()), float(self.high[rest].max())), sorted(order[:count].tolist())


def look(
    graph: Graph, tensors: Sequence[str], feeds: Iterable[Mapping[str, Array]], *, threads: int = 0
) -> dict[str, Seen]:
    """Run a float graph and keep the range of every channel of ``tensors`` on every sample."""
    inputs = {spec.name: spec.shape for spec in graph.inputs}
    inner = [t for t in dict.fromkeys(tensors) if t not in inputs]
    kept = list(feeds)
    found = {t: _of_input([f[t] for f in kept]) for t in dict.fromkeys(tensors) if t in inputs}
    if not inner:
        return found
    probe = Probe(graph)
    shapes = [probe.shape(t) for t in inner]
    parts = {
        label: [
            probe.reduce(op, probe.values[t], len(s))
            if s
            else probe.node("Reshape", [probe.values[t], _one(probe)])
            for t, s in zip(inner, shapes, strict=True)
        ]
        for label, op in ((_MIN, "ReduceMin"), (_MAX, "ReduceMax"))
    }
    runs = list(run_all(open_runner(probe.finish(parts), threads=1), kept, workers=threads))
    starts = np.cumsum([s[channel_axis(len(s))] if s else 1 for s in shapes])[:-1]
    lows = np.split(np.stack([r[_MIN] for r in runs]), starts, axis=1)
    highs = np.split(np.stack([r[_MAX] for r in runs]), starts, axis=1)
    return found | {t: Seen(a, b) for t, a, b in zip(inner, lows, highs, strict=True)}


def _one(probe: Probe) -> Any:
    return probe.ints([1])


def _of_input(arrays: Sequence[Array]) -> Seen:
    axis = channel_axis(arrays[0].ndim)
    flat = [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) if a.ndim else a.reshape(1, 1) for a in arrays]
    return Seen(np.stack([f.min(1) for f in flat]), np.stack([f.max(1) for f in flat]))
