"""What can be wrong with stored weights.

1. One scale for all output channels, where their ranges differ: small channels get few codes. Depthwise
   convolutions suffer most (Krishnamoorthi 2018, arXiv:1806.08342, section 3).
2. A node whose weights need more than 8 bits all the same.
3. Saturation: x86 CPUs without VNNI add two products of an unsigned and a signed byte into 16 bits
   (``VPMADDUBSW``), which hold 32767. How often two neighbouring products exceed that, and what is lost, is
   counted on the codes of a sample; depthwise convolutions have kernels of their own, which do not.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.explain.cause import REMEDIES, Cause, Finding, Fix
from edgekit.explain.sites import Site, Weight
from edgekit.explain.switchboard import Bench, decibels
from edgekit.graph import Graph
from edgekit.quantize.qparams import weight_codes, weight_scales
from edgekit.quantize.scheme import Format
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]

#: Nodes whose weights are measured alone, the worst rounded first.
SCANNED = 12
#: Largest channel over the small ones from which one scale for all is named.
RATIO = 8.0
#: Codes below which a channel has too few, where the float weights are not known.
FEW_CODES = 8
#: Error over signal of a node's sums from which saturation is named (20 dB).
LOST = 1e-2
#: Positions, and outputs, that saturation is counted on.
POSITIONS, ROWS = 32, 128


def weight_findings(bench: Bench, weights: Sequence[Weight], *, worth: float, share: float) -> list[Finding]:
    """Cases 1 and 2.

    Args:
        bench: To measure with.
        weights: Of the graph.
        worth: Noise from which a node is named.
        share: Noise of all rounded weights together.
    """
    known = [w for w in weights if w.original is not None]
    found = [f for w in weights if w.original is None and (f := _by_codes(w)) is not None]
    if share < worth:
        return found
    # Where all share one scale, the worst channel counts: its row is lost before the whole is.
    order = sorted(known, key=lambda w: -_error(w))[:SCANNED]
    for weight in order:
        noise = bench.with_weight(weight.node, weight.rounded)
        if noise.mean < worth:
            continue
        finding = _one_scale(bench, weight, noise.mean)
        if finding is None:
            finding = _finding(
                Cause.WEIGHTS,
                weight,
                f"its weights alone put {noise.mean:.1%} noise on the outputs",
                noise.mean,
                {"noise": noise.mean},
                (Fix.RAISE,),
            )
        found.append(finding)
    return found


def _error(weight: Weight) -> float:
    """Error over signal of the worst output channel."""
    if weight.original is None:
        return 0.0
    axis = _rows_axis(weight)
    rows = np.moveaxis(weight.original, axis, 0).reshape(weight.original.shape[axis], -1)
    errors = np.moveaxis(weight.rounded, axis, 0).reshape(rows.shape) - rows
    shares = (errors**2).sum(1) / np.maximum((rows**2).sum(1), 1e-12)
    return float(np.mean(np.minimum(shares, 1.0)))


def _rows_axis(weight: Weight) -> int:
    if weight.axis is not None:
        return weight.axis
    return 0 if weight.op == "Conv" else weight.rounded.ndim - 1


def _channel_tops(weight: Weight, values: Array) -> Array:
    axis = _rows_axis(weight)
    return np.asarray(np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(1))


def _one_scale(bench: Bench, weight: Weight, noise: float) -> Finding | None:
    if weight.axis is not None or weight.original is None:
        return None
    tops = _channel_tops(weight, weight.original)
    ratio = float(tops.max() / max(float(np.percentile(tops, 10)), 1e-9))
    if len(tops) < 2 or ratio < RATIO:
        return None
    axis = _rows_axis(weight)
    form = Format(str(weight.codes.dtype)) if weight.codes.dtype.kind == "i" else Format.INT8
    scales = weight_scales(weight.original, axis, form)
    codes = weight_codes(weight.original, scales, axis, form)
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
    other = bench.with_weight(weight.node, codes * scales.reshape(shape)).mean
    if other > 0.5 * noise:
        return None
    return _finding(
        Cause.PER_TENSOR if weight.depthwise else Cause.ONE_SCALE,
        weight,
        f"the weights of its {len(tops)} channels differ {ratio:.0f} to 1 and have one scale: "
        f"{decibels(noise):.1f} dB, with a scale for each {decibels(other):.1f} dB",
        noise,
        {"ratio": ratio, "noise": noise, "noise_per_channel": other},
        (Fix.PER_CHANNEL, Fix.EQUALIZE),
    )


def _by_codes(weight: Weight) -> Finding | None:
    """Case 1 where only the codes are known."""
    if weight.axis is not None or weight.codes.ndim < 2:
        return None
    zero = 0 if weight.codes.dtype.kind == "i" else 128
    tops = _channel_tops(weight, weight.codes.astype(np.int64) - zero)
    few = int((tops < FEW_CODES).sum())
    if len(tops) < 2 or few < max(2, len(tops) // 8):
        return None
    text = f"{few} of its {len(tops)} channels use fewer than {2 * FEW_CODES} codes, since all have one scale"
    cause = Cause.PER_TENSOR if weight.depthwise else Cause.ONE_SCALE
    return _finding(cause, weight, text, None, {"channels": few}, (Fix.PER_CHANNEL,))


def _finding(
    cause: Cause,
    weight: Weight,
    text: str,
    noise: float | None,
    evidence: dict[str, Any],
    fixes: tuple[Fix, ...],
) -> Finding:
    return Finding(
        cause,
        weight.node,
        weight.op,
        text,
        REMEDIES[cause],
        alone_db=None if noise is None else decibels(noise),
        evidence=evidence,
        fixes=fixes,
    )


@dataclass(frozen=True)
class Saturation:
    """Nodes whose sums exceed 16 bits on CPUs without VNNI.

    Attributes:
        nodes: Share of the sums that do, by node.
        here: Whether this machine is such a CPU.
    """

    nodes: dict[str, float]
    here: bool


def find_saturation(
    graph: Graph, sites: Sequence[Site], weights: Sequence[Weight], feed: Mapping[str, Array]
) -> Saturation:
    """Case 3, on one sample.

    Args:
        graph: The QDQ graph.
        sites: Its sites.
        weights: Its weights.
        feed: The sample.
    """
    codes = {s.key for s in sites if s.zero.dtype == np.uint8}
    reading = {}
    nodes = {str(n.name): n for n in graph.nodes}
    for weight in weights:
        value = nodes[weight.node].inputs[0]
        source = value.producer() if value is not None else None
        key = str(source.inputs[0].name) if source is not None and source.inputs[0] is not None else ""
        if key in codes and weight.codes.dtype == np.int8 and not weight.depthwise:
            reading[weight.node] = key
    if not reading:
        return Saturation({}, saturates_here())
    names = list(dict.fromkeys(reading.values()))
    run = open_runner(graph, threads=1, integer=False, extra_outputs=names).run(feed)
    zeros = {s.key: int(s.zero.reshape(-1)[0]) for s in sites}
    shares = {
        w.node: _saturating(w, run[reading[w.node]], zeros[reading[w.node]])
        for w in weights
        if w.node in reading
    }
    return Saturation({n: s for n, (s, lost) in shares.items() if lost >= LOST}, saturates_here())


def _saturating(weight: Weight, codes: Array, zero: int) -> tuple[float, float]:
    """The share of the sums in which two neighbours along the channels exceed 16 bits, and what is lost by
    that: error energy over signal energy of the sums."""
    if weight.op == "Conv":
        rows = weight.codes.reshape(*weight.codes.shape[:2], -1)
        pixels = codes[0].reshape(codes.shape[1], -1)
    else:
        flat = np.moveaxis(weight.codes, _rows_axis(weight), -1).reshape(
            -1, weight.codes.shape[_rows_axis(weight)]
        )
        rows, pixels = flat.T[:, :, None], codes.reshape(-1, codes.shape[-1]).T
    if pixels.shape[0] != rows.shape[1]:
        return 0.0, 0.0  # grouped: its products are not those of neighbouring channels
    step = max(1, pixels.shape[1] // POSITIONS)
    taken = pixels[:, ::step][:, :POSITIONS].astype(np.int32)
    rows = rows[:: max(1, len(rows) // ROWS)].astype(np.int32)
    lost = np.zeros((len(rows), taken.shape[1]))
    for tap in range(rows.shape[2]):
        for first in range(0, rows.shape[1] // 2 * 2, 2):
            pair = rows[:, first, tap, None] * taken[first] + rows[:, first + 1, tap, None] * taken[first + 1]
            lost += pair - np.clip(pair, -32768, 32767)
    sums = np.einsum("oct,cp->op", rows, taken - zero)
    energy = max(float((sums.astype(np.float64) ** 2).sum()), 1.0)
    return float((lost != 0).mean()), float((lost**2).sum()) / energy


def saturates_here() -> bool:
    """Whether this machine is an x86 CPU without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # not Linux: it cannot be told
    return "vnni" not in text
