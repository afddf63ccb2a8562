"""The figures of a pruned network beside the original's: counted, and timed where it can run here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.prune.cost import weight_bytes
from edgekit.prune.options import CostKind, PruneOptions
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.stats import count
from edgekit.target import HasCostModel

if TYPE_CHECKING:
    from edgekit.target import CostModel, Target

#: Speedup from which a pruned network counts as faster: less is the machine's noise.
FASTER = 1.02
#: Percentile of the calls that counts: what disturbs a call makes it slower, never faster.
FAST = 10
#: Factors up to which the two ways to compare agree, and up to which a median is above the fast calls.
AGREE = 1.1
BUSY = 1.5
#: Times that an unsteady measurement is taken.
TRIES = 3


def figures(graph: Graph, kind: CostKind) -> dict[str, Measurement]:
    """``macs``, ``params`` and ``bytes`` of a graph."""
    stats = count(graph)
    values = {"macs": stats.macs, "params": stats.parameters, "bytes": weight_bytes(graph, kind)}
    note = "counted" if kind is CostKind.FLOAT else "counted, with one byte for each multiplied weight"
    return {
        name: Measurement(float(v), "bytes" if name == "bytes" else "", Method.MODEL_ESTIMATE, note=note)
        for name, v in values.items()
    }


def open_cost_model(graph: Graph, options: PruneOptions, target: Target | None) -> CostModel:
    """The target's cost model.

    Raises:
        UsageError: There is no target, or it has none.
        ToolError: The target could not measure.
    """
    if not isinstance(target, HasCostModel):
        name = f"'{target.name}' has" if target is not None else "without a target there is"
        raise UsageError(
            f"{name} no cost model for latency",
            where="latency",
            hint="ort-cpu on this machine has one; or prune to a share of macs, params or bytes",
        )
    return target.cost_model(graph, options.cost_kind.value, options.threads or 0)


def can_measure(target: Target) -> bool:
    """Whether networks for this target can be timed on this machine."""
    return target.profile.host and isinstance(target, HasCostModel)


@dataclass(frozen=True)
class Timing:
    """Original and pruned network, timed side by side.

    Attributes:
        before: The original, in ms: the fast runs, not the median.
        after: The pruned one.
        steady: Whether the fast runs and the median agree on how much faster one is. Where they do not, other
            programs decided the figures: nothing may be concluded from them.
        notes: What the reader must know.
    """

    before: Measurement
    after: Measurement
    steady: bool
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """What is left of the latency."""
        return self.after.value / self.before.value


def measure(original: Graph, pruned: Graph, options: PruneOptions, target: Target | None) -> Timing:
    """Time both, side by side; again, up to :data:`TRIES` times, while the machine is not quiet.

    For int8 both are quantized with made-up ranges, which do not change the time.

    Raises:
        ToolError: The measurement failed.
    """
    from edgekit.measure.latency import compare

    if target is None:
        raise ValueError("there is no target to measure for")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        files = {}
        for label, graph in (("original", original), ("pruned", pruned)):
            ready = graph
            if options.cost_kind is CostKind.INT8 and target.scheme is not None:
                ready = with_made_up_ranges(graph, target.scheme)
            place = Path(folder) / label
            place.mkdir()
            files[label] = target.compile(target.lower(ready), options.cost_kind.value, place).path
        threads = options.threads or target.profile.threads
        for _ in range(TRIES):
            result = compare(files, threads=threads, profile=target.profile, memory=False)
            timing = judge(result.samples_ms["original"], result.samples_ms["pruned"], result.notes)
            if timing.steady:
                break
    return timing


def judge(before: Sequence[float], after: Sequence[float], notes: Sequence[str] = ()) -> Timing:
    """Sum up the timed calls of both, in ms.

    A call that the system interrupts takes a scheduler's slice longer. Short calls slip through between two
    interruptions and long ones do not, so that medians on a busy machine can be off by ten times in favour of
    the shorter one. Then the ratio of the medians differs from that of the fast runs.
    """
    fast = [float(np.percentile(times, FAST)) for times in (before, after)]
    middle = [float(np.percentile(times, 50)) for times in (before, after)]
    shares = fast[1] / fast[0], middle[1] / middle[0]
    steady = max(shares) / min(shares) <= AGREE and all(
        m <= BUSY * f for f, m in zip(fast, middle, strict=True)
    )
    note = f"the fastest {FAST} % of {len(before)} calls"
    found = [
        Measurement(f, "ms", Method.HOST, {"p50": m, "min": min(t), "count": float(len(t))}, note)
        for f, m, t in zip(fast, middle, (before, after), strict=True)
    ]
    texts = list(notes)
    if not steady:
        texts.append(
            f"latency was not measured reliably: {100 * shares[0]:.0f} % is left by the fast calls, "
            f"{100 * shares[1]:.0f} % by the medians. "
            "Other work runs here; time it again when the machine is quiet"
        )
    return Timing(found[0], found[1], steady, tuple(texts))


def slower(before: Measurement, after: Measurement) -> list[str]:
    """A warning where the pruned network is not faster than the original."""
    speedup = before.value / after.value
    if speedup >= FASTER:
        return []
    word = "is slower than" if speedup < 1 else "is no faster than"
    return [
        f"the pruned network {word} the original: {after.value:.3f} ms against {before.value:.3f} ms, timed"
        " here. Prune to a share of latency, or raise align"
    ]
