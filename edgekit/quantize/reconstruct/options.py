"""What a reconstruction is asked for and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.quantize.histogram import Array
from edgekit.quantize.qparams import QParams

Feeds = Callable[[], Iterable[Mapping[str, Array]]]
Progress = Callable[[int, int | None], None]
Status = Callable[[str], None]


class Granularity(StrEnum):
    """What is reconstructed together.

    Attributes:
        LAYER: Each node with weights alone, with the arithmetic behind it (AdaRound).
        BLOCK: Residual blocks, CSP blocks, attention and the like (BRECQ).
    """

    LAYER = "layer"
    BLOCK = "block"


@dataclass(frozen=True)
class ReconstructOptions:
    """How blocks are reconstructed.

    Attributes:
        granularity: What is reconstructed together.
        most_layers: Most nodes with weights in a block.
        iterations: Steps on each block.
        seconds: Most seconds for the training of all blocks; each gets a share by its cost. A block that
            runs out of time anneals faster, so that its rounding is done; the result then depends on the
            machine. None sets no limit.
        batch: Samples in a step.
        samples: Most samples; None takes all.
        held: One sample in so many is held out, for deciding whether a block's change is kept.
        rounding_rate: Adam's step on the rounding variables.
        scale_rate: Adam's step on the logarithm of activation scales; 0 leaves the scales alone.
        bias_rate: Adam's step on biases, in units of about what rounding the layer's weights puts on a
            channel; 0 leaves the biases alone.
        warmup: Share of the steps without pressure on the rounding variables.
        beta: First and last exponent of the rounding regularizer.
        pressure: Weight of the regularizer against the block's error, which counts relative to the error
            that nearest rounding has.
        drop: Share of the block's input values that a step takes from the float network (QDrop).
        fisher: Weight each channel's error by the squared gradient of the outputs with respect to it.
        weight_bits: Bits of the weights' codes, at most those of the scheme; fewer are for exploring.
        memory_bytes: What a step may work in; the batch shrinks where it would need more.
        threads: Shares that a step's batch is split into, each with a thread of its own. The result depends
            on their number only by rounding.
        seed: Of batches and drops.
    """

    granularity: Granularity = Granularity.BLOCK
    most_layers: int = 6
    iterations: int = 200
    seconds: float | None = None
    batch: int = 8
    samples: int | None = None
    held: int = 5
    rounding_rate: float = 0.1
    scale_rate: float = 0.004
    bias_rate: float = 0.01
    warmup: float = 0.2
    beta: tuple[float, float] = (8.0, 2.0)
    pressure: float = 50.0
    drop: float = 0.0
    fisher: bool = True
    weight_bits: int | None = None
    memory_bytes: int = 2**30
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.granularity not in tuple(Granularity):
            raise UsageError(
                f"'granularity' is '{self.granularity}'", where="reconstruct", valid=tuple(Granularity)
            )
        for name, low in (
            ("most_layers", 1),
            ("iterations", 1),
            ("batch", 1),
            ("held", 2),
            ("threads", 1),
            ("memory_bytes", 2**26),
        ):
            if getattr(self, name) < low:
                raise UsageError(
                    f"'{name}' is {getattr(self, name)}", where="reconstruct", valid=(f"{low} or more",)
                )
        for name in ("rounding_rate", "scale_rate", "bias_rate", "pressure"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise UsageError(
                    f"'{name}' is {getattr(self, name)}", where="reconstruct", valid=("0 or more",)
                )
        for name in ("warmup", "drop"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"'{name}' is {getattr(self, name)}", where="reconstruct", valid=("from 0 to below 1",)
                )
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"'seconds' is {self.seconds}", where="reconstruct", valid=("above 0",))
        if self.samples is not None and self.samples < 2:
            raise UsageError(f"'samples' is {self.samples}", where="reconstruct", valid=("2 or more",))
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 16:
            raise UsageError(f"'weight_bits' is {self.weight_bits}", where="reconstruct", valid=("2 to 16",))


@dataclass(frozen=True)
class BlockResult:
    """What became of one block.

    Attributes:
        name: The tensor that it ends in.
        nodes: Its nodes with weights that run on integers, in execution order.
        noise_before: Error over signal of its output on held-out samples with nearest rounding and the ranges
            that were given, its input being that of the network reconstructed up to there. With ``fisher``
            both are weighted.
        noise_after: The same as it is in the result.
        seconds: Time spent on it.
        note: What was not done, and why; empty for a block that was reconstructed as asked.
    """

    name: str
    nodes: tuple[str, ...]
    noise_before: float
    noise_after: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Reconstruction:
    """What :func:`~edgekit.quantize.qdq.insert_qdq` needs for the reconstructed network.

    Attributes:
        graph: The float graph, with learned biases.
        params: Parameters of the activations.
        scales: Scales of the weights by node.
        codes: Codes of the weights by node, for nodes that were reconstructed (or have ``weight_bits``).
        blocks: One for each block, in execution order.
        peak_bytes: Largest resident memory of the process up to the end.
        seconds: Time spent.
        notes: What holds for the whole run and the user should know.
    """

    graph: Graph
    params: dict[str, QParams]
    scales: dict[str, Array]
    codes: dict[str, Array]
    blocks: tuple[BlockResult, ...]
    peak_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
