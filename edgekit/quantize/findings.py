"""Range clashes: values of very different size that share one scale.

1. *Channels*: some channels of a tensor get only a few of its 256 steps.
2. *Branches*: the inputs of a Concat or an Add differ widely in range.
3. *Pre-activation tail*: the input of a SiLU reaches far below zero, where the SiLU is flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgekit.graph import Graph
from edgekit.quantize.equalize import channel_ranges
from edgekit.quantize.histogram import Array, Histogram
from edgekit.quantize.observe import silu_inputs
from edgekit.quantize.plan import Plan, name
from edgekit.quantize.qparams import QParams

#: Ratio of the largest channel to the tenth-smallest in a hundred from which a tensor is named.
CHANNEL_RATIO = 32.0
#: Ratio of two branches' ranges from which their meeting is named.
BRANCH_RATIO = 16.0
#: Value below which a SiLU is flat: it is within 0.003 of zero there.
FLAT = -8.0


class Kind(StrEnum):
    """Causes that are told apart."""

    CHANNELS = "channel-range-clash"
    BRANCHES = "branch-range-clash"
    TAIL = "pre-activation-tail"


@dataclass(frozen=True)
class Finding:
    """One clash and what was done about it.

    Attributes:
        kind: The cause.
        where: The tensor or node.
        text: What was seen, in words.
        action: What was done.
        ratio: How many times larger the large values are.
    """

    kind: Kind
    where: str
    text: str
    action: str
    ratio: float


def find_clashes(
    graph: Graph,
    plan: Plan,
    histograms: Mapping[str, Histogram],
    params: Mapping[str, QParams],
    actions: Mapping[str, str],
    branches: Mapping[str, float] | None = None,
) -> tuple[Finding, ...]:
    """Clashes of a float graph, worst first within each kind.

    Args:
        graph: The float graph as captured.
        plan: What is quantized when nothing is raised.
        histograms: Ranges by tensor.
        params: Parameters by tensor.
        actions: What was done about a tensor; for the others nothing was.
        branches: Largest magnitude of the branches of the outputs; calibration does not look at those that
            stay in float.
    """
    largest = {t: float(channel_ranges(h).max()) for t, h in histograms.items()}
    found = [
        *_channels(graph, plan, histograms, actions),
        *_branches(graph, plan, {**(branches or {}), **largest}, actions),
        *_tails(graph, histograms, params),
    ]
    order = list(Kind)
    return tuple(sorted(found, key=lambda f: (order.index(f.kind), -f.ratio)))


def channel_ratio(ranges: Array) -> float:
    """Largest channel over the one that 10 % of the live channels stay below."""
    top = float(ranges.max())
    live = ranges[ranges > top * 1e-5]
    return top / float(np.percentile(live, 10)) if len(live) > 1 else 1.0


def _channels(
    graph: Graph, plan: Plan, histograms: Mapping[str, Histogram], actions: Mapping[str, str]
) -> list[Finding]:
    found = []
    # What a Concat joins is looked at branch by branch.
    joined = {str(node.outputs[0].name) for node in graph.nodes if node.op_type == "Concat"}
    for tensor in plan.sources:
        if tensor in joined or tensor not in histograms or len(histograms[tensor].channel_max) < 2:
            continue
        ranges = channel_ranges(histograms[tensor])
        ratio = channel_ratio(ranges)
        if ratio < CHANNEL_RATIO:
            continue
        few = int((ranges < ranges.max() / 64).sum())
        text = f"the ranges of its {len(ranges)} channels differ {ratio:.0f} to 1"
        if few:
            text += f": {few} of them get fewer than 4 of 256 steps"
        action = actions.get(tensor, "none needed: its effect on the outputs is small")
        found.append(Finding(Kind.CHANNELS, tensor, text, action, ratio))
    return found


def _branches(
    graph: Graph, plan: Plan, largest: Mapping[str, float], actions: Mapping[str, str]
) -> list[Finding]:
    found = []
    for node in graph.nodes:
        if node.op_type not in ("Concat", "Add"):
            continue
        tensors = [str(v.name) for v in node.inputs if v is not None and str(v.name) in largest]
        tops = [largest[t] for t in tensors]
        if len(tops) < 2 or max(tops) < BRANCH_RATIO * max(min(tops), 1e-9):
            continue
        ratio = max(tops) / max(min(tops), 1e-9)
        small, large = tensors[int(np.argmin(tops))], tensors[int(np.argmax(tops))]
        text = (
            f"'{large}' reaches {max(tops):.3g}, '{small}' {min(tops):.3g}, and they meet in a {node.op_type}"
        )
        if name(node) not in plan.integer_nodes:
            action = "joined in float, so that they share no scale"
        elif node.op_type == "Add" or len({plan.groups.get(t) for t in tensors}) > 1:
            action = f"each keeps a scale of its own up to the {node.op_type}"
        else:
            done = [actions[t] for t in tensors if t in actions]
            action = done[0] if done else "none: they share one scale"
        found.append(Finding(Kind.BRANCHES, name(node), text, action, ratio))
    return found


def _tails(graph: Graph, histograms: Mapping[str, Histogram], params: Mapping[str, QParams]) -> list[Finding]:
    found = []
    for tensor in dict.fromkeys(silu_inputs(graph).values()):
        if tensor not in histograms or tensor not in params:
            continue
        seen, chosen = histograms[tensor].min, params[tensor].range[0]
        if seen < 2 * FLAT and chosen > seen / 2:
            text = f"reaches {seen:.3g}, but SiLU is flat below {FLAT:.0f}"
            action = f"range cut at {chosen:.3g}"
            found.append(Finding(Kind.TAIL, tensor, text, action, seen / min(chosen, -1e-9)))
    return found
