"""Hypotheses on why rounding one unit hurts, each with what would be rounded instead if it were true.

A hypothesis has a sign in the ranges (two branches of very different size, a channel that towers above the
others …) and a counterfactual: the same unit, rounded without that sign. It holds when the noise on the
outputs falls to half. Of several that hold, the most special one that does nearly as well as the best, or
that leaves next to no noise, is named.

1. *Minus infinity*: the range reaches below -1000, where no activation means anything; without it.
2. *Unlike*: what is seen exceeds the range that the file was calibrated to; the range that is seen.
3. *Few images*: a few samples reach much further than all others; the range of the others. Likewise where a
   file's range is far wider than what is seen.
4. *Concat*: its inputs differ in range; each gets its own.
5. *Tail*: all that reads the tensor is flat over a good part of the range; the rest of it.
6. *Channel*: a few channels tower above the others; a scale for each channel.
7. *Spikes*: least squared error cuts the range; the range that it chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.explain.cause import Cause, Fix
from edgekit.explain.seen import Seen
from edgekit.explain.sites import Site, Unit
from edgekit.explain.switchboard import Board, Noise, Params
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator, Range, choose_range
from edgekit.quantize.findings import FLAT, channel_ratio
from edgekit.quantize.flat import flat_readers, seen_part
from edgekit.quantize.histogram import Histogram
from edgekit.quantize.observe import silu_inputs
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.scheme import Format

Array = np.ndarray[Any, Any]

#: Value below which nothing but a stand-in for minus infinity lies, and what it is cut at.
NEVER, MASK = -1000.0, -20.0
#: What is seen over the file's range from which the data is unlike; the same the other way round.
EXCEEDS, UNUSED = 1.25, 2.0
#: Share of the samples that are "a few", and how much further than the others they reach.
FEW, REACH = 0.05, 1.8
#: Largest over smallest input of a Concat; largest channel over the small ones.
BRANCHES, CHANNELS = 4.0, 16.0
#: Share of the range over which its readers are flat; range over the one of least squared error.
TAIL, SPIKE = 0.4, 1.5
#: Noise with a counterfactual, over that without, at which a hypothesis holds; and over the best of them, or
#: in all, up to which it does as well.
HOLDS, NEARLY, CURED = 0.5, 2.0, 1e-3
#: Order in which causes are preferred.
_ORDER = (
    *(Cause.INFINITY, Cause.UNLIKE, Cause.FEW_IMAGES, Cause.CONCAT, Cause.TAIL, Cause.CHANNEL, Cause.SPIKES),
)


@dataclass(frozen=True)
class Hypothesis:
    """One possible cause.

    Attributes:
        cause: The cause.
        text: The sign, in words.
        params: What the counterfactual rounds with, by site.
        off: Sites that it does not round.
        ranges: Its ranges by tensor, for repairs.
        evidence: The figures of the sign.
        fixes: Repairs, the most fitting first.
    """

    cause: Cause
    text: str
    params: dict[str, Params]
    fixes: tuple[Fix, ...]
    off: frozenset[str] = frozenset()
    ranges: dict[str, Range] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
    """What is known of the tensors' values.

    Attributes:
        seen: By tensor, on every sample.
        histograms: By tensor.
        flat: Tensors with the kind of node that alone reads them and is flat somewhere.
        names: Names of the samples.
        given: Whether the file's ranges come from other samples than these.
    """

    seen: Mapping[str, Seen]
    histograms: Mapping[str, Histogram]
    flat: Mapping[str, str]
    names: tuple[str, ...]
    given: bool


def flat_tensors(graph: Graph) -> dict[str, str]:
    """Tensors whose readers are flat over a part of the range: ``SiLU``, ``Sigmoid`` or ``Softmax``."""
    return {**flat_readers(graph), **dict.fromkeys(silu_inputs(graph).values(), "SiLU")}


def hypotheses(unit: Unit, known: Ranges) -> list[Hypothesis]:
    """All that have their sign."""
    sites = [s for s in unit.sites if s.tensor in known.seen]
    if not sites:
        return []
    low = min(known.seen[s.tensor].range[0] for s in sites)
    high = max(known.seen[s.tensor].range[1] for s in sites)
    spans = (low, high)
    found = [
        _infinity(unit, sites, spans),
        _unlike(unit, sites, spans, known),
        _few(unit, sites, spans, known),
        _concat(unit, known),
        _tail(unit, sites, spans, known),
        _channel(unit, sites, known),
        _spikes(unit, sites, spans, known),
    ]
    return [h for h in found if h is not None]


def choose(
    unit: Unit, board: Board, before: Noise, found: list[Hypothesis]
) -> tuple[Hypothesis, Noise] | None:
    """The hypothesis that explains the noise of a unit, with the noise of its counterfactual; None for none.

    Args:
        unit: The unit.
        board: Switches for its sites, nothing else rounded.
        before: Noise of the unit as it is.
        found: Of :func:`hypotheses`.
    """
    keys = {s.key for s in unit.sites}
    tried = [(h, board.noise(keys - h.off, h.params)) for h in found]
    holding = [(h, n) for h, n in tried if n.typical <= HOLDS * before.typical]
    if not holding:
        return None
    least = min(n.typical for _, n in holding)
    close = [(h, n) for h, n in holding if n.typical <= max(NEARLY * least, CURED)]
    return min(close, key=lambda pair: _ORDER.index(pair[0].cause))


def one_scale(site: Site, low: float, high: float) -> Params:
    """Parameters of a site for a range."""
    made = activation_params(low, high, Format(str(site.zero.dtype)))
    return np.asarray(made.scale, np.float32), np.asarray(made.zero_point, site.zero.dtype)


def _same(sites: list[Site], low: float, high: float) -> dict[str, Params]:
    return {s.key: one_scale(s, low, high) for s in sites}


def _spread(sites: list[Site], low: float, high: float) -> dict[str, Range]:
    return {s.tensor: (low, high) for s in sites}


def _infinity(unit: Unit, sites: list[Site], spans: Range) -> Hypothesis | None:
    low, high = spans
    if low > NEVER:
        return None
    cut = MASK - abs(high)
    return Hypothesis(
        Cause.INFINITY,
        f"reaches {low:.3g}, which stands for minus infinity: one step is {unit.sites[0].scale.max():.3g}",
        _same(sites, cut, high),
        (Fix.BOUND, Fix.CUT),
        ranges=_spread(sites, cut, high),
        evidence={"low": low, "high": high},
    )


def _unlike(unit: Unit, sites: list[Site], spans: Range, known: Ranges) -> Hypothesis | None:
    if not known.given:
        return None
    low, high = unit.sites[0].range
    width, seen = high - low, max(spans[1], high) - min(spans[0], low)
    if seen < EXCEEDS * width:
        return None
    beyond = [known.seen[s.tensor] for s in sites]
    share = float(np.mean([((b.high.max(1) > high) | (b.low.min(1) < low)).mean() for b in beyond]))
    return Hypothesis(
        Cause.UNLIKE,
        f"takes {spans[0]:.3g} to {spans[1]:.3g}, but its codes end at {low:.3g} and {high:.3g}: "
        f"{share:.0%} of the samples go beyond",
        _same(sites, *spans),
        (Fix.MORE_DATA,),
        ranges=_spread(sites, *spans),
        evidence={"seen": list(spans), "calibrated": [low, high], "samples_beyond": share},
    )


def _few(unit: Unit, sites: list[Site], spans: Range, known: Ranges) -> Hypothesis | None:
    count = len(known.names)
    few = max(1, math.floor(FEW * count))
    width = spans[1] - min(spans[0], 0.0)
    if count >= 8:
        parts = [known.seen[s.tensor].without_extremes(few) for s in sites]
        rest = (min(p[0][0] for p in parts), max(p[0][1] for p in parts))
        inner = max(rest[1], 0.0) - min(rest[0], 0.0)
        if width >= REACH * inner:
            widest = max(range(len(parts)), key=lambda i: float(known.seen[sites[i].tensor].channels.max()))
            culprits = [known.names[i] for i in parts[widest][1]]
            return Hypothesis(
                Cause.FEW_IMAGES,
                f"{_listed(culprits)} of {count} samples set its range: {spans[0]:.3g} to {spans[1]:.3g}; "
                f"all others stay within {rest[0]:.3g} to {rest[1]:.3g}",
                _same(sites, *rest),
                (Fix.CUT, Fix.CALIBRATOR),
                ranges=_spread(sites, *rest),
                evidence={"range": list(spans), "others": list(rest), "samples": culprits},
            )
    low, high = unit.sites[0].range
    if known.given and high - low >= UNUSED * max(width, 1e-9):
        return Hypothesis(
            Cause.FEW_IMAGES,
            f"its range is {low:.3g} to {high:.3g}, but the samples stay within {spans[0]:.3g} to "
            f"{spans[1]:.3g}: other images set it",
            _same(sites, *spans),
            (Fix.CUT, Fix.CALIBRATOR),
            ranges=_spread(sites, *spans),
            evidence={"range": [low, high], "others": list(spans)},
        )
    return None


def _concat(unit: Unit, known: Ranges) -> Hypothesis | None:
    if not unit.joins:
        return None
    sources = [s for s in unit.sources if s.tensor in known.seen]
    tops = [float(known.seen[s.tensor].channels.max()) for s in sources]
    if len(tops) < 2 or max(tops) < BRANCHES * max(min(tops), 1e-9):
        return None
    small, large = sources[int(np.argmin(tops))].tensor, sources[int(np.argmax(tops))].tensor
    ratio = max(tops) / max(min(tops), 1e-9)
    return Hypothesis(
        Cause.CONCAT,
        f"'{large}' reaches {max(tops):.3g}, '{small}' {min(tops):.3g}, and they share one scale: "
        f"{ratio:.0f} to 1",
        {s.key: one_scale(s, *known.seen[s.tensor].range) for s in sources},
        (Fix.APART, Fix.EQUALIZE, Fix.RAISE),
        off=frozenset(s.key for s in unit.sites) - {s.key for s in sources},
        evidence={"ratio": ratio, "large": large, "small": small, "tops": tops},
    )


def _tail(unit: Unit, sites: list[Site], spans: Range, known: Ranges) -> Hypothesis | None:
    kinds = {known.flat.get(s.tensor, "") for s in unit.sources}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if not kind:
        return None
    low, high = unit.sites[0].range
    cut = (max(low, FLAT), high) if kind == "SiLU" else seen_part(low, high, kind)
    wasted = 1.0 - (cut[1] - cut[0]) / max(high - low, 1e-9)
    if wasted < TAIL:
        return None
    return Hypothesis(
        Cause.TAIL,
        f"its range is {low:.3g} to {high:.3g}, but the {kind} that reads it is flat below {cut[0]:.3g}"
        + (f" and above {cut[1]:.3g}" if cut[1] < high else "")
        + f": {wasted:.0%} of the codes tell nothing apart",
        _same(sites, *cut),
        (Fix.CUT, Fix.RAISE),
        ranges=_spread(sites, *cut),
        evidence={"range": [low, high], "seen_by_reader": list(cut), "wasted": wasted},
    )


def _channel(unit: Unit, sites: list[Site], known: Ranges) -> Hypothesis | None:
    first = max(unit.sources, key=lambda s: _top(known, s))
    if first.tensor not in known.seen or unit.joins:
        return None
    ranges = known.seen[first.tensor].channels
    ratio = channel_ratio(ranges) if len(ranges) > 1 and ranges.max() > 0 else 1.0
    if ratio < CHANNELS:
        return None
    params = {}
    for site in sites:
        seen = known.seen[site.tensor]
        if seen.low.shape[1] != len(ranges):
            continue
        rows = [
            one_scale(site, float(a), float(b))
            for a, b in zip(seen.low.min(0), seen.high.max(0), strict=True)
        ]
        params[site.key] = (np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
    few = int((ranges < ranges.max() / 64).sum())
    return Hypothesis(
        Cause.CHANNEL,
        f"channel {int(ranges.argmax())} reaches {ranges.max():.3g}, the middle one of {len(ranges)} "
        f"{float(np.median(ranges)):.3g}: {few} channels get fewer than 4 of 256 steps",
        params,
        (Fix.EQUALIZE, Fix.RAISE),
        evidence={"ratio": ratio, "channel": int(ranges.argmax()), "drowned": few, "channels": len(ranges)},
    )


def _spikes(unit: Unit, sites: list[Site], spans: Range, known: Ranges) -> Hypothesis | None:
    held = [known.histograms[s.tensor] for s in unit.sources if s.tensor in known.histograms]
    if not held:
        return None
    cuts = [choose_range(h, Calibrator.MSE) for h in held]
    cut = (min(c[0] for c in cuts), max(c[1] for c in cuts))
    width = unit.sites[0].range[1] - unit.sites[0].range[0]
    if width < SPIKE * max(cut[1] - cut[0], 1e-9):
        return None
    return Hypothesis(
        Cause.SPIKES,
        f"nearly all values lie within {cut[0]:.3g} to {cut[1]:.3g}, its range is {spans[0]:.3g} to "
        f"{spans[1]:.3g}",
        _same(sites, *cut),
        (Fix.CUT, Fix.CALIBRATOR, Fix.RAISE),
        ranges=_spread(sites, *cut),
        evidence={"range": list(spans), "nearly_all": list(cut)},
    )


def _top(known: Ranges, site: Site) -> float:
    return float(known.seen[site.tensor].channels.max()) if site.tensor in known.seen else 0.0


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
