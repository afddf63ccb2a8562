"""Adding reductions to a graph, so that a session returns small vectors instead of whole tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.edit import add_constant
from edgekit.quantize.histogram import Array
from edgekit.session import open_runner, run_all

#: Output of the graph that :func:`channel_means` runs.
MEAN = "edgekit.mean"


def channel_axis(rank: int) -> int:
    """Where the channels are: axis 1 of feature maps, the last axis of everything else."""
    return 1 if rank >= 4 else max(rank - 1, 0)


class Probe:
    """A copy of a graph to which nodes are added; its outputs become the joined vectors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.copy()
        self.main = self.graph.model.graph
        self.values = self.graph.values()

    def shape(self, tensor: str) -> list[int]:
        value = self.values[tensor]
        if value.shape is None or not value.shape.is_static():
            raise ModelError("has no static shape", where=f"tensor '{tensor}'")
        return [int(d) for d in value.shape.numpy()]

    def reduce(self, op: str, value: ir.Value, rank: int) -> ir.Value:
        """``op`` over everything but the channels; shape ``[C]``."""
        if rank <= 1:
            return value
        axes = self.ints([a for a in range(rank) if a != channel_axis(rank)])
        return self.node(op, [value, axes], keepdims=0)

    def finish(self, parts: Mapping[str, Sequence[ir.Value]]) -> bytes:
        """Serialize with one output for each of ``parts``: its vectors, joined."""
        del self.main.outputs[:]
        for label, vectors in parts.items():
            joined = self.node("Concat", list(vectors), axis=0)
            joined.name = label
            self.main.outputs.append(joined)
        return self.graph.to_bytes()

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        label = "edgekit.ints." + "_".join(map(str, numbers))
        if label not in self.main.initializers:
            add_constant(self.main, label, np.array(numbers, np.int64))
        return self.main.initializers[label]

    def node(self, op: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes or None)
        node.outputs[0].name = f"edgekit.{len(self.main)}"
        self.main.append(node)
        return node.outputs[0]


def channel_means(
    graph: Graph, tensors: Sequence[str], feeds: Iterable[Mapping[str, Array]], *, threads: int = 0
) -> dict[str, Array]:
    """Mean of every channel of ``tensors`` over all samples, by tensor name."""
    if not tensors:
        return {}
    probe = Probe(graph)
    shapes = [probe.shape(t) for t in tensors]
    means = [
        probe.reduce("ReduceMean", probe.values[t], len(s)) for t, s in zip(tensors, shapes, strict=True)
    ]
    model = probe.finish({MEAN: means})
    total, count = np.zeros(0), 0
    for outputs in run_all(open_runner(model, threads=1), feeds, workers=threads):
        mean = outputs[MEAN].astype(np.float64)
        total = total + mean if count else mean
        count += 1
    sizes = np.cumsum([s[channel_axis(len(s))] for s in shapes])
    return dict(zip(tensors, np.split(total / max(count, 1), sizes[:-1]), strict=True))
