"""Raising single tensors above 8 bits, chosen by measured effect.

1. Every quantized tensor gets a local score from the calibration alone: the share of its channels' energy that its step
   drowns. The worst ``SCANNED`` are looked at.
2. Each of those is quantized alone in the float graph and the outputs are judged: its own damage.
3. From the most damaging down, a tensor is raised if the whole quantized graph gets better by ``MIN_GAIN_DB``, until the
   target is met or the limit reached; then each raised tensor must show that the result is worse without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.graph import Graph
from edgekit.quantize.equalize import channel_ranges
from edgekit.quantize.histogram import Histogram
from edgekit.quantize.judge import Judge
from edgekit.quantize.plan import Plan
from edgekit.quantize.qdq import insert_pairs
from edgekit.quantize.qparams import QParams

#: Tensors whose own damage is measured.
SCANNED = 24
#: Gain that a raised tensor must bring, in dB of the outputs.
MIN_GAIN_DB = 0.5
#: Tries in a row without a gain after which the search ends.
PATIENCE = 4


@dataclass(frozen=True)
class Raised:
    """A tensor that is kept above 8 bits.

    Attributes:
        tensor: Its name.
        op: Type of the node that computes it.
        format: What it is now.
        reason: Why, in words.
        gain_db: How much worse the outputs get when it alone goes back to 8 bits.
    """

    tensor: str
    op: str
    format: str
    reason: str
    gain_db: float


def raise_tensors(
    graph: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    histograms: Mapping[str, Histogram],
    judge: Judge,
    rebuild: Callable[[tuple[str, ...]], Graph],
    *,
    target_db: float,
    limit: int,
    raised_format: str,
) -> tuple[Raised, ...]:
    """Choose the tensors to raise.

    Args:
        graph: The float graph that is quantized.
        plan: What is quantized when nothing is raised.
        params: Parameters by tensor.
        histograms: Ranges by tensor.
        judge: Measures quality.
        rebuild: The quantized graph with the given tensors raised.
        target_db: Quality at which to stop.
        limit: Most tensors to raise.
        raised_format: For the result.
    """
    damage = _own_damage(graph, plan, params, histograms, judge)
    chosen: list[str] = []
    best = judge.score(rebuild(())).db
    misses = 0
    for tensor in sorted(damage, key=lambda t: -damage[t]):
        if best >= target_db or len(chosen) == limit or misses == PATIENCE:
            break
        found = judge.score(rebuild((*chosen, tensor))).db
        if found >= best + MIN_GAIN_DB:
            chosen.append(tensor)
            best, misses = found, 0
        else:
            misses += 1
    return _needed(graph, chosen, best, judge, rebuild, damage, raised_format)


def _own_damage(
    graph: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    histograms: Mapping[str, Histogram],
    judge: Judge,
) -> dict[str, float]:
    """Mean noise of the branches when one tensor alone is quantized."""
    local = {t: drowned(histograms[t], params[t]) for t in plan.sources if t in histograms and t in params}
    worst = sorted(local, key=lambda t: -local[t])[:SCANNED]
    found = {}
    for tensor in worst:
        noise = judge.score(insert_pairs(graph, {tensor: params[tensor]})).noise
        found[tensor] = float(np.mean(list(noise.values())))
    return found


def drowned(histogram: Histogram, params: QParams) -> float:
    """Mean over channels of the step's noise over the channel's largest power, capped at 1."""
    ranges = np.maximum(channel_ranges(histogram), 1e-9)
    return float(np.minimum(params.scale**2 / 12.0 / ranges**2, 1.0).mean())


def _needed(
    graph: Graph,
    chosen: list[str],
    best: float,
    judge: Judge,
    rebuild: Callable[[tuple[str, ...]], Graph],
    damage: Mapping[str, float],
    raised_format: str,
) -> tuple[Raised, ...]:
    producers = {str(v.name): node.op_type for node in graph.nodes for v in node.outputs}
    kept: dict[str, float] = {}
    for tensor in list(chosen):
        rest = tuple(t for t in chosen if t != tensor)
        without = judge.score(rebuild(rest)).db
        if best - without >= MIN_GAIN_DB / 2:
            kept[tensor] = best - without
        else:
            chosen.remove(tensor)
            best = without
    return tuple(
        Raised(
            tensor,
            producers.get(tensor, "input"),
            raised_format,
            f"8 bits in this tensor alone put {damage[tensor]:.0%} noise on the outputs",
            gain,
        )
        for tensor, gain in kept.items()
    )
