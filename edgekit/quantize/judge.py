"""How much of the network's answer quantization costs, measured without labels.

The *branches* of an output are the tensors that meet in it through nodes that only move values: a detector's
boxes and scores, for example. Each branch is compared with its float original by itself, so that large
numbers in one do not hide the loss in another. A branch counts as lost when its error is as large as its
signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.quantize.histogram import Array
from edgekit.session import open_runner, run_all

#: Nodes through which a branch is followed backwards.
MOVES = frozenset({"Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class Score:
    """Quality of a quantized graph.

    Attributes:
        noise: Error energy over signal energy of each branch, capped at 1.
    """

    noise: dict[str, float]

    @property
    def mean(self) -> float:
        """Noise of the mean branch, 0 to 1."""
        return float(np.mean(list(self.noise.values())))

    @property
    def db(self) -> float:
        """Signal-to-quantization-noise ratio of the mean branch, in dB."""
        return float(-10.0 * np.log10(max(self.mean, 1e-12)))


class Judge:
    """Compares quantized graphs with one float graph on the same few samples.

    Args:
        reference: The float graph.
        feeds: The samples; kept, with the reference's branches, for as long as the judge lives.
        threads: Samples that run at the same time; 0 is one per core.
    """

    def __init__(self, reference: Graph, feeds: Sequence[Mapping[str, Array]], *, threads: int = 0) -> None:
        self.feeds = feeds
        self.threads = threads
        self.branches = output_branches(reference)
        runner = open_runner(reference, threads=1, extra_outputs=self.branches)
        self.wanted = [
            {b: outputs[b] for b in self.branches} for outputs in run_all(runner, feeds, workers=threads)
        ]
        self.runs = 0

    @property
    def largest(self) -> dict[str, float]:
        """Largest magnitude of each branch on the samples, in float."""
        return {b: max(float(np.abs(outputs[b]).max()) for outputs in self.wanted) for b in self.branches}

    def score(self, quantized: Graph, *, integer: bool = True) -> Score:
        """Run a QDQ graph that was made from the reference (or an equal graph) and compare.

        Args:
            quantized: The graph.
            integer: False for a graph in which only single tensors are quantized: looking for integer kernels
                there, ONNX Runtime moves conversions about and computes something else than the file says.
        """
        self.runs += 1
        values = quantized.values()
        names = {b: f"{b}_dequantized" if f"{b}_dequantized" in values else b for b in self.branches}
        runner = open_runner(quantized, threads=1, integer=integer, extra_outputs=list(names.values()))
        error = dict.fromkeys(self.branches, 0.0)
        energy = dict.fromkeys(self.branches, 1e-12)
        for wanted, outputs in zip(
            self.wanted, run_all(runner, self.feeds, workers=self.threads), strict=True
        ):
            for branch, name in names.items():
                signal = wanted[branch].astype(np.float64)
                error[branch] += float(((outputs[name] - signal) ** 2).sum())
                energy[branch] += float((signal**2).sum())
        # The order of the operands makes 1.0 of NaN.
        return Score({b: min(1.0, error[b] / energy[b]) for b in self.branches})


def output_branches(graph: Graph) -> list[str]:
    """Names of the float tensors whose values the outputs are put together from."""
    found: dict[str, None] = {}

    def follow(value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None and producer.op_type in MOVES:
            for source in producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]:
                if source is not None:
                    follow(source)
        elif not value.is_initializer() and value.dtype == ir.DataType.FLOAT:
            found[str(value.name)] = None

    for output in graph.model.graph.outputs:
        follow(output)
    return list(found)
