"""Choosing the parameters of every quantized tensor from one calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator, Range, choose_range
from edgekit.quantize.flat import flat_readers, seen_part
from edgekit.quantize.observe import Calibration, silu, silu_inputs
from edgekit.quantize.plan import Plan, inputs, moved_inputs
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.scheme import Scheme


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are chosen.

    Attributes:
        calibrator: The method for all tensors.
        percentile: Share of the values, in percent, that the ``percentile`` method holds.
        tails: True chooses the range of a SiLU's input by what is left after the SiLU, which flattens
            everything far below zero: the tail need not be resolved. Likewise for Sigmoid and Softmax, see
            :mod:`edgekit.quantize.flat`.
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
        fixed = None if rule is None else rule.range
        if rule is not None and scheme.activation.bits > 8 and rule.wide_range is not None:
            fixed = rule.wide_range
        if fixed is not None and str(node.outputs[0].name) in plan.sources:
            found[str(node.outputs[0].name)] = fixed
    return found


def unknown_ranges(graph: Graph, scheme: Scheme, plan: Plan, inputs: Collection[str]) -> list[str]:
    """The tensors that calibration must look at: not fixed by their op, not moved from one of ``inputs``."""
    fixed, origin = fixed_ranges(graph, scheme, plan), moved_inputs(graph, scheme)
    return [t for t in plan.sources if t not in fixed and origin.get(t) not in inputs]


def choose_params(
    graph: Graph, plan: Plan, scheme: Scheme, calibration: Calibration, options: RangeOptions
) -> dict[str, QParams]:
    """Parameters of every tensor in ``plan.tensors``; the members of a same-scale group get the same.

    Raises:
        ModelError: A tensor was not observed, and neither was what it is moved from.
    """
    chooser = _Chooser(graph, plan, scheme, calibration, options)
    narrow = _by_group(plan, chooser.range)
    wide = _by_group(plan, chooser.wide_range) if plan.formats else {}
    found = {}
    for tensor in plan.tensors:
        group, forms = plan.groups[tensor], plan.formats.get(tensor, ())
        params = activation_params(*narrow[group], scheme.activation)
        if scheme.wide is not None and forms:
            # What comes as 8-bit codes cannot exceed their range; what is computed with more bits can.
            known = wide[group] if forms[0] is scheme.wide else params.range
            more = activation_params(*known, scheme.wide)
            params = replace(params, wide=more) if scheme.activation in forms else more
        found[tensor] = params
    return found


def _by_group(plan: Plan, choose: Callable[[str], Range]) -> dict[str, Range]:
    """The range of every same-scale group, which holds those of all its members that are computed."""
    ranges: dict[str, Range] = {}
    for tensor in plan.sources:
        low, high = choose(tensor)
        before = ranges.get(plan.groups[tensor], (low, high))
        ranges[plan.groups[tensor]] = (min(before[0], low), max(before[1], high))
    return ranges


class _Chooser:
    def __init__(
        self, graph: Graph, plan: Plan, scheme: Scheme, calibration: Calibration, options: RangeOptions
    ) -> None:
        self.producers = {str(v.name): node for node in graph.nodes for v in node.outputs}
        self.scheme = scheme
        self.calibration = calibration
        self.options = options
        self.fixed = fixed_ranges(graph, scheme, plan)
        self.inputs = moved_inputs(graph, scheme)
        self.flat = flat_readers(graph) if options.tails else {}
        self.gated = frozenset(silu_inputs(graph).values()) if options.tails else frozenset()

    def range(self, tensor: str) -> Range:
        """In the order of trust: known from the preprocessing, from the op, measured, seen, or where it comes
        from."""
        known = self.options.inputs.get(self.inputs.get(tensor, ""))
        if known is not None:
            return known
        if tensor in self.fixed:
            return self.fixed[tensor]
        if tensor in self.options.chosen:
            return self.options.chosen[tensor]
        if tensor in self.calibration.histograms:
            seen = self._seen(tensor)
            return seen_part(*seen, self.flat[tensor]) if tensor in self.flat else seen
        producer = self.producers.get(tensor)
        rule = self.scheme.ops.get(producer.op_type) if producer is not None else None
        if producer is None or rule is None or not rule.moves:
            raise ModelError("was not observed, so that it has no range", where=f"tensor '{tensor}'")
        moved = [self.range(t) for t in inputs(producer)]
        return min(low for low, _ in moved), max(high for _, high in moved)

    def wide_range(self, tensor: str) -> Range:
        """The range for more than 8 bits, which resolve all that was seen."""
        rule = self.scheme.ops.get(self.producers[tensor].op_type) if tensor in self.producers else None
        if tensor in self.fixed and rule is not None and rule.wide_range is not None:
            return rule.wide_range
        if tensor not in self.calibration.histograms or tensor in self.fixed:
            return self.range(tensor)
        seen = self.calibration.histograms[tensor]
        return seen.min, seen.max

    def _seen(self, tensor: str) -> Range:
        if self.scheme.activation.bits > 8:
            seen = self.calibration.histograms[tensor]
            return seen.min, seen.max  # there are steps enough for all that was seen
        gated = tensor in self.gated
        calibrator = Calibrator.MSE if gated else self.options.calibrator
        levels, percentile = 2**self.scheme.activation.bits, self.options.percentile
        key = (tensor, calibrator, gated, levels, percentile)
        if key not in self.calibration.ranges:
            self.calibration.ranges[key] = choose_range(
                self.calibration.histograms[tensor],
                calibrator,
                levels=levels,
                percentile=percentile,
                function=silu if gated else None,
            )
        return self.calibration.ranges[key]
