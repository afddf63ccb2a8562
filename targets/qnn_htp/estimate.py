"""Latency on a Hexagon Tensor Processor from a roofline model; nothing here is measured.

Each layer takes the longest of

1. *matrix*: multiply-accumulates with input and output channels padded to 32, by the rate of the matrix unit
   for 8 or 16 bits;
2. *vector*: bytes read and written, by the bytes that all vector units take in one cycle; a depthwise
   convolution is one byte for each multiply-accumulate;
3. *ddr*: bytes from and to the memory outside, by its peak bandwidth: weights once, inputs and outputs of the
   network once, and of each activation as much as the activations alive at the same time exceed the VTCM by,
   once written and once for each reader.

The network takes the sum of its layers. Every term grows with every dimension, so that of two forms of one
network the one with more work is never estimated faster. The method is that of Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.targets.qnn_htp.layers import Layer, Network, live_bytes, read_network
from edgekit.targets.qnn_htp.profiles import HtpProfile

_NAMED = 5
_MODEL = (
    "each layer takes the longest of its matrix, vector and memory time; layers follow one another",
    "channels are padded to 32; depthwise convolutions run on the vector unit",
    "weights come from memory once in each inference; activations stay in the VTCM where they fit",
    "kernels, DMA and memory reach their peak and starting an inference costs nothing: a lower bound",
)


@dataclass(frozen=True)
class HtpEstimate:
    """What the model says of one network on one profile.

    Attributes:
        latency: Of one inference, in ms, as ``model-estimate``; ``spread`` has the part that is bound by the
            matrix unit, the vector units and the memory.
        layers: Slowest first, each with ``name``, ``op``, ``cycles`` and ``bound``; those that multiply also
            with ``macs`` and ``utilization`` (share of the matrix unit's peak).
        memory: Bytes: ``weights``, ``largest activation``, ``peak activations``, ``VTCM``, ``spilled`` and
            ``DDR traffic``.
        assumptions: What has to hold for the figures to be right, in words.
        left: Names of the nodes that compute in float beside the processor; their time is not counted.
    """

    latency: Measurement
    layers: tuple[dict[str, Any], ...]
    memory: dict[str, int]
    assumptions: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Cycles of one layer by what could bind it.

    Attributes:
        matrix: Cycles of the matrix unit.
        vector: Cycles of the vector units.
        ddr: Cycles of the memory outside.
    """

    matrix: float
    vector: float
    ddr: float

    @property
    def cycles(self) -> int:
        """The longest, rounded up."""
        return math.ceil(max(self.matrix, self.vector, self.ddr))

    @property
    def bound(self) -> str:
        """``matrix``, ``vector`` or ``ddr``."""
        parts = {"matrix": self.matrix, "vector": self.vector, "ddr": self.ddr}
        return max(parts, key=lambda name: parts[name])


@dataclass
class _Traffic:
    """Bytes from and to the memory outside: by layer, and what is spilled there."""

    by_layer: list[int]
    spilled: int = 0
    seen: set[ir.Value] = field(default_factory=set)


def estimate(graph: Graph, profile: HtpProfile, *, item: int = 1) -> HtpEstimate:
    """Estimate one inference.

    Args:
        graph: A QDQ graph; a float one is taken as if it were quantized.
        profile: The processor.
        item: Bytes of one activation element of a float graph: 1 for a8w8, 2 for a16w8.

    Raises:
        ModelError: A tensor has no static shape.
    """
    network = read_network(graph, item)
    live = live_bytes(network)
    traffic = _traffic(network, live, profile.vtcm_bytes)
    costs = [cost_of(layer, traffic.by_layer[i], profile) for i, layer in enumerate(network.layers)]
    order = sorted(range(len(costs)), key=lambda i: (-costs[i].cycles, i))
    sizes = [t.size for t in network.tensors.values() if not t.outside]
    return HtpEstimate(
        latency=_latency(costs, profile),
        layers=tuple(_row(network.layers[i], costs[i], profile) for i in order),
        memory={
            "weights": sum(layer.weight_bytes for layer in network.layers),
            "largest activation": max(sizes, default=0),
            "peak activations": max(live, default=0),
            "VTCM": profile.vtcm_bytes,
            "spilled": traffic.spilled,
            "DDR traffic": sum(traffic.by_layer),
        },
        assumptions=_assumptions(network, profile),
        left=tuple(str(node.name) for node in network.left),
    )


def cost_of(layer: Layer, ddr_bytes: int, profile: HtpProfile) -> Cost:
    """Cycles of one layer that moves ``ddr_bytes`` from and to the memory outside."""
    return Cost(
        layer.work.matrix_macs / profile.mac_rate(layer.item),
        layer.work.vector_bytes / profile.vector_bytes_per_cycle,
        ddr_bytes / profile.ddr_bytes_per_cycle,
    )


def _traffic(network: Network, live: list[int], vtcm: int) -> _Traffic:
    found = _Traffic([layer.weight_bytes for layer in network.layers])
    excess = {}
    for value, tensor in network.tensors.items():
        over = max(live[tensor.born : tensor.last + 1]) - vtcm
        excess[value] = tensor.size if tensor.outside else min(tensor.size, max(0, over))
        found.spilled += 0 if tensor.outside else excess[value]
    for number, layer in enumerate(network.layers):
        found.by_layer[number] += sum(excess[value] for value in layer.writes)
        for value in layer.reads:
            # What comes from outside is fetched once and then is an activation like any other.
            if not network.tensors[value].outside or value not in found.seen:
                found.by_layer[number] += excess[value]
            found.seen.add(value)
    return found


def _latency(costs: list[Cost], profile: HtpProfile) -> Measurement:
    parts = {"matrix": 0, "vector": 0, "ddr": 0}
    for cost in costs:
        parts[cost.bound] += cost.cycles
    spread = {name: profile.milliseconds(cycles) for name, cycles in parts.items()}
    note = f"computed from figures of {profile.soc}, not measured and not simulated"
    return Measurement(profile.milliseconds(sum(parts.values())), "ms", Method.MODEL_ESTIMATE, spread, note)


def _row(layer: Layer, cost: Cost, profile: HtpProfile) -> dict[str, Any]:
    row = {"name": layer.name, "op": layer.op, "cycles": cost.cycles, "bound": cost.bound}
    if layer.macs:
        row["macs"] = layer.macs
        row["utilization"] = layer.macs / (max(1, cost.cycles) * profile.mac_rate(layer.item))
    return row


def _assumptions(network: Network, profile: HtpProfile) -> tuple[str, ...]:
    found = [*_MODEL]
    if not network.quantized:
        found.append(f"the graph is in float: activations are taken as {8 * network.item} bits, weights as 8")
    if network.left:
        names = ", ".join(f"'{node.name}' ({node.op_type})" for node in network.left[:_NAMED])
        more = f" and {len(network.left) - _NAMED} more" if len(network.left) > _NAMED else ""
        found.append(f"nodes that compute in float beside the processor are not counted: {names}{more}")
    return (*found, *profile.assumptions)
