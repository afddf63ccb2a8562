"""Choosing the parameters of every quantized tensor from one calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator, Range, choose_range
from edgekit.quantize.observe import Calibration, silu, silu_inputs
from edgekit.quantize.plan import Plan, moved_inputs
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.scheme import Scheme


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are chosen.

    Attributes:
        calibrator: The method for all tensors.
        percentile: Share of the values, in percent, that the ``percentile`` method holds.
        tails: True chooses the range of a SiLU's input by what is left after the SiLU, which flattens everything far
            below zero: the tail need not be resolved.
        inputs: Ranges of graph inputs that are known from the preprocessing.
        chosen: Ranges of single tensors that were found by measuring.
    """

    calibrator: Calibrator = Calibrator.MSE
    percentile: float = 99.99
    tails: bool = True
    inputs: Mapping[str, Range] = field(default_factory=dict)
    chosen: Mapping[str, Range] = field(default_factory=dict)


def fixed_ranges(graph: Graph, scheme: Scheme, plan: Plan) -> dict[str, Range]:
    """Ranges that an op's definition fixes, by output tensor; these need no calibration."""
    found = {}
    for node in graph.nodes:
        rule = scheme.ops.get(node.op_type)
        if rule is not None and rule.range is not None and str(node.outputs[0].name) in plan.sources:
            found[str(node.outputs[0].name)] = rule.range
    return found


def choose_params(
    graph: Graph, plan: Plan, scheme: Scheme, calibration: Calibration, options: RangeOptions
) -> dict[str, QParams]:
    """Parameters of every tensor in ``plan.tensors``; the members of a same-scale group get the same."""
    fixed = fixed_ranges(graph, scheme, plan)
    moved = moved_inputs(graph, scheme)
    gated = frozenset(silu_inputs(graph).values()) if options.tails else frozenset()
    levels = 2**scheme.activation.bits
    own: dict[str, Range] = {}
    for tensor in plan.sources:
        histogram = calibration.histograms.get(tensor)
        if moved.get(tensor) in options.inputs:
            own[tensor] = options.inputs[moved[tensor]]
        elif tensor in fixed:
            own[tensor] = fixed[tensor]
        elif tensor in options.chosen:
            own[tensor] = options.chosen[tensor]
        elif histogram is not None and tensor in gated:
            own[tensor] = choose_range(histogram, Calibrator.MSE, levels=levels, function=silu)
        elif histogram is not None:
            own[tensor] = choose_range(
                histogram, options.calibrator, levels=levels, percentile=options.percentile
            )
    inherit_ranges(graph, plan, own)
    ranges: dict[str, Range] = {}
    for tensor, (low, high) in own.items():
        group = plan.groups[tensor]
        before = ranges.get(group, (low, high))
        ranges[group] = (min(before[0], low), max(before[1], high))
    return {t: activation_params(*ranges[plan.groups[t]], scheme.activation) for t in plan.tensors}


def inherit_ranges(graph: Graph, plan: Plan, own: dict[str, Range]) -> None:
    """Give the output of a Concat whose inputs are apart the range that holds them all."""
    for node in graph.nodes:
        output = str(node.outputs[0].name)
        if node.op_type != "Concat" or output not in plan.groups or output in own:
            continue
        inputs = [str(v.name) for v in node.inputs if v is not None and str(v.name) in plan.groups]
        apart = [t for t in inputs if plan.groups[t] != plan.groups[output]]
        found = [own[m] for t in apart for m in plan.members(plan.groups[t]) if m in own]
        if found:
            own[output] = (min(r[0] for r in found), max(r[1] for r in found))
