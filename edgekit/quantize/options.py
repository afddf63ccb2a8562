"""What the user of the quantizer can choose, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.findings import Finding
from edgekit.quantize.histogram import Array
from edgekit.quantize.judge import Judge
from edgekit.quantize.plan import Plan
from edgekit.quantize.qparams import QParams
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.raising import Raised

#: The calibrator that chooses among the others by measuring.
AUTO = "auto"
#: ``auto`` tries these and keeps the one whose outputs are best.
TRIED = (Calibrator.MSE, Calibrator.MINMAX, Calibrator.PERCENTILE, Calibrator.ENTROPY)

Feeds = Callable[[], Iterable[Mapping[str, Array]]]


@dataclass(frozen=True)
class Options:
    """What the user can choose.

    Attributes:
        calibrator: ``auto`` or one of the calibrators.
        percentile: Share of the values, in percent, that the ``percentile`` calibrator holds.
        equalize: Whether channels are equalized.
        correct_biases: Whether biases are corrected.
        max_raised: Most tensors above 8 bits; None takes the target's own limit.
        target_db: Signal-to-noise ratio of the outputs, in dB, below which repairs that cost latency are
            tried.
        judge_samples: Samples on which candidates are compared; they are spread over all of them.
        kept_samples: Samples, spread likewise, from which channel means are taken.
        reconstruct_seconds: Most seconds that blocks are trained for, where the rungs before are not good
            enough; 0 leaves that rung out.
    """

    calibrator: str = AUTO
    percentile: float = 99.99
    equalize: bool = True
    correct_biases: bool = True
    max_raised: int | None = None
    target_db: float = 13.0
    judge_samples: int = 8
    kept_samples: int = 16
    reconstruct_seconds: float = 120.0


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder that was climbed.

    Attributes:
        name: ``plain``, ``equalize``, ``reconstruct`` or ``mixed``.
        db: Signal-to-quantization-noise ratio of the outputs after it.
        seconds: Time it took.
        text: What it did.
    """

    name: str
    db: float
    seconds: float
    text: str


@dataclass(frozen=True)
class QuantizeResult:
    """A quantized graph and how it came about.

    Attributes:
        graph: The QDQ graph.
        plan: What is quantized in it.
        params: Parameters of the activations.
        calibrator: The calibrator that was used.
        raised: Tensors above 8 bits.
        findings: Range clashes and what was done.
        db: Signal-to-quantization-noise ratio of the outputs on the judged samples.
        rungs: Every candidate in order, with its ratio in dB.
        ladder: The rungs that were climbed.
        seconds: Time spent, by part.
        quantization: What the graph was made from.
        judge: What measured the ratios, for further rungs to be compared with these.
    """

    graph: Graph
    plan: Plan
    params: dict[str, QParams]
    calibrator: Calibrator
    raised: tuple[Raised, ...]
    findings: tuple[Finding, ...]
    db: float
    rungs: tuple[tuple[str, float], ...]
    ladder: tuple[Rung, ...]
    seconds: dict[str, float]
    quantization: Quantization
    judge: Judge
