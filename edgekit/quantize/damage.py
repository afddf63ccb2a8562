"""How much damage one tensor's 8 bits do: estimated from the calibration, then measured at the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.quantize.calibrators import Calibrator, Range, choose_range
from edgekit.quantize.equalize import channel_ranges, concat_offset
from edgekit.quantize.histogram import Array, Histogram
from edgekit.quantize.judge import Judge
from edgekit.quantize.observe import silu, silu_inputs
from edgekit.quantize.plan import Plan
from edgekit.quantize.qdq import insert_pairs
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.scheme import Scheme

#: Tensors whose damage is measured: the worst by estimate …
SCANNED = 18
#: … and the first of the network, whose noise has the longest way to grow, which no local estimate sees.
EARLY = 12
#: Damage from which other ranges are tried for a tensor.
WORTH_A_SEARCH = 0.001
#: Ops that a tensor's noise passes through on its way to the next weights, channel by channel.
THROUGH = frozenset(
    {
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Resize",
        "Add",
        "Sigmoid",
        "Mul",
    }
)


@dataclass(frozen=True)
class Damage:
    """What quantizing one tensor alone does to the outputs.

    Attributes:
        noise: Mean error energy over signal energy of the output branches, 0 to 1.
        range: The best range found for it.
        method: How that range was chosen.
    """

    noise: float
    range: Range
    method: str


def measure_damage(
    graph: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    histograms: Mapping[str, Histogram],
    judge: Judge,
    scheme: Scheme,
    *,
    search: bool,
) -> dict[str, Damage]:
    """Quantize the most suspicious tensors one at a time, everything else in float, and judge the outputs.

    Args:
        graph: The float graph that is quantized.
        plan: What is quantized.
        params: Parameters to measure with.
        histograms: Ranges by tensor.
        judge: Measures quality.
        scheme: The target's number formats.
        search: True also measures the ranges that the other calibrators would choose, and keeps the best.
    """
    estimates = estimate_damage(graph, plan, params, histograms)
    worst = sorted(estimates, key=lambda t: -estimates[t])[:SCANNED]
    early = [t for t in plan.sources if t in estimates][:EARLY]
    gated = frozenset(silu_inputs(graph).values())
    found = {}
    for tensor in dict.fromkeys((*early, *worst)):
        best = Damage(_noise(graph, tensor, params[tensor], judge), params[tensor].range, "")
        if search and best.noise >= WORTH_A_SEARCH:
            for method, low_high in _other_ranges(histograms[tensor], tensor in gated, scheme).items():
                noise = _noise(graph, tensor, activation_params(*low_high, scheme.activation), judge)
                if noise < 0.9 * best.noise:
                    best = Damage(noise, low_high, method)
        found[tensor] = best
    return found


def _noise(graph: Graph, tensor: str, params: QParams, judge: Judge) -> float:
    return judge.score(insert_pairs(graph, {tensor: params}), integer=False).mean


def _other_ranges(histogram: Histogram, gated: bool, scheme: Scheme) -> dict[str, Range]:
    levels = 2**scheme.activation.bits
    found = {method.value: choose_range(histogram, method, levels=levels) for method in Calibrator}
    if gated:
        low, high = choose_range(histogram, Calibrator.MSE, levels=levels, function=silu)
        found["mse after SiLU"] = (low, high)
        found["entropy, tail cut"] = (max(low, found["entropy"][0]), found["entropy"][1])
    return found


def estimate_damage(
    graph: Graph, plan: Plan, params: Mapping[str, QParams], histograms: Mapping[str, Histogram]
) -> dict[str, float]:
    """Noise over signal that each tensor's rounding puts on the outputs of the next weights, 0 to 1.

    A step ``s`` adds noise of power ``s^2 / 12`` to every channel; a row of weights adds up the squares of
    its own. The signal's power is taken as a sixteenth of the square of the row's largest output.
    """
    values = graph.values()
    found = {}
    for tensor in plan.sources:
        if tensor not in histograms or tensor not in params or len(histograms[tensor].channel_max) == 0:
            continue
        step_power = params[tensor].scale ** 2 / 12.0
        channels = len(histograms[tensor].channel_max)
        ahead = [
            float(np.minimum(step_power * _row_power(node, first, channels) / signal, 1.0).mean())
            for node, first in next_weights(values[tensor], 0)
            if (signal := _signal(node, histograms)) is not None
        ]
        ranges = np.maximum(channel_ranges(histograms[tensor]), 1e-9)
        own = float(np.minimum(step_power * 16.0 / ranges**2, 1.0).mean())
        found[tensor] = max(ahead, default=own)
    return found


def next_weights(value: ir.Value, first: int, depth: int = 6) -> Iterator[tuple[ir.Node, int]]:
    """The Convs that a tensor's channels reach next, each with the column that channel 0 meets."""
    for use in value.uses() if depth else ():
        node = use.node
        if node.op_type == "Conv" and use.idx == 0 and array(node.inputs[1]) is not None:
            yield node, first
        elif node.op_type in THROUGH:
            yield from next_weights(node.outputs[0], first, depth - 1)
        elif node.op_type == "Concat" and (offset := concat_offset(node, use.idx)) is not None:
            yield from next_weights(node.outputs[0], first + offset, depth - 1)


def _row_power(node: ir.Node, first: int, channels: int) -> Array:
    """Sum of squared weights that each output channel applies to the tensor's channels, shape ``[C_out]``."""
    weight = np.asarray(array(node.inputs[1]), np.float64)
    if weight.shape[1] == 1 or weight.shape[1] < channels:  # grouped: a row meets its own group only
        return np.asarray((weight**2).reshape(weight.shape[0], -1).sum(1))
    return np.asarray((weight[:, first : first + channels] ** 2).reshape(weight.shape[0], -1).sum(1))


def _signal(node: ir.Node, histograms: Mapping[str, Histogram]) -> Array | None:
    """Power of each output channel of a Conv, from its range or that of the activation behind it."""
    candidates: Sequence[ir.Value] = [
        node.outputs[0],
        *(v for user in node.outputs[0].consumers() for v in user.outputs),
    ]
    for value in candidates:
        histogram = histograms.get(str(value.name))
        if histogram is not None and len(histogram.channel_max) == np.asarray(array(node.inputs[1])).shape[0]:
            return np.maximum(channel_ranges(histogram) ** 2 / 16.0, 1e-12)
    return None
