"""Quantization without samples, for what does not depend on ranges: speed, and what runs where."""

from __future__ import annotations

from dataclasses import replace

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Range
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.ranges import fixed_ranges
from edgekit.quantize.scheme import Scheme

#: Within what a Relu or a Clip lets through, so that a runtime can drop those nodes, as it does in a network
#: whose ranges were observed behind them.
UNIT: Range = (0.0, 1.0)


def with_made_up_ranges(graph: Graph, scheme: Scheme, given: Range = UNIT) -> Graph:
    """A QDQ graph in which every range is ``given``, but for those that an operator's definition fixes."""
    plan = make_plan(graph, scheme)
    fixed = fixed_ranges(graph, scheme, plan)
    by_group = {plan.groups[tensor]: known for tensor, known in fixed.items()}
    params = {}
    for tensor in plan.tensors:
        known = by_group.get(plan.groups[tensor], given)
        narrow = activation_params(*known, scheme.activation)
        forms = plan.formats.get(tensor, ())
        if scheme.wide is not None and scheme.wide in forms:
            wide = activation_params(*known, scheme.wide)
            narrow = replace(narrow, wide=wide) if scheme.activation in forms else wide
        params[tensor] = narrow
    return insert_qdq(graph, plan, params, scheme)
