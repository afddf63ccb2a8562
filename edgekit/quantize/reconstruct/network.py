"""The quantized network as it stands between two blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.quantize.bias import add_to_biases
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import MAC_OPS, Plan, name
from edgekit.quantize.qdq import insert_qdq, weight_axis
from edgekit.quantize.qparams import QParams, with_room_for_bias
from edgekit.quantize.reconstruct.blocks import Block, find_blocks
from edgekit.quantize.reconstruct.checkpoint import Done
from edgekit.quantize.reconstruct.options import ReconstructOptions
from edgekit.quantize.reconstruct.rounding import Grid, grid_scales
from edgekit.quantize.reconstruct.sections import Sections
from edgekit.quantize.scheme import Scheme


@dataclass(frozen=True)
class Network:
    """What is quantized, and how.

    Attributes:
        work: The float graph.
        plan: What is quantized.
        scheme: The target's number formats.
        params: Parameters of the activations.
        scales: Of the weights, by node; all have room for the biases.
        codes: Of the weights, where they are not the nearest.
        blocks: Of the graph.
        top: Largest magnitude of a weight's code.
        learned: Nodes whose codes have been learned: their scales stay.
    """

    work: Graph
    plan: Plan
    scheme: Scheme
    params: Mapping[str, QParams]
    scales: Mapping[str, Array]
    codes: Mapping[str, Array]
    blocks: tuple[Block, ...]
    top: int
    learned: frozenset[str] = field(default=frozenset())

    @staticmethod
    def start(
        work: Graph,
        plan: Plan,
        params: Mapping[str, QParams],
        scheme: Scheme,
        scales: Mapping[str, Array],
        options: ReconstructOptions,
    ) -> Network:
        """Everything rounded to nearest, to ``options.weight_bits`` where they are given."""
        top, known = scheme.weight.limits[1], dict(scales)
        nodes = weighted_nodes(work, plan)
        blocks = find_blocks(work, nodes, granularity=options.granularity, most=options.most_layers)
        if options.weight_bits is not None and 2 ** (options.weight_bits - 1) - 1 < top:
            top = 2 ** (options.weight_bits - 1) - 1
            for label, node in nodes.items():
                weight = weight_of(node)
                known[label] = grid_scales(weight, weight_axis(node, scheme, weight.ndim), top)
        return Network(work, plan, scheme, dict(params), known, {}, blocks, top)._settled()

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        """The integer nodes with stored weights, by name."""
        return weighted_nodes(self.work, self.plan)

    @cached_property
    def sections(self) -> Sections:
        """Of the QDQ graph."""
        graph = insert_qdq(self.work, self.plan, self.params, self.scheme, self.scales, self.codes)
        return Sections(graph, self.blocks)

    def grid(self, node: str) -> Grid:
        """Where the codes of a node's weight lie."""
        rank = weight_of(self.nodes[node]).ndim
        return Grid(self.scales[node], weight_axis(self.nodes[node], self.scheme, rank), self.top)

    def changed(self, done: Done) -> Network:
        """The network with what a block has learned."""
        if not (done.codes or done.shifts or done.steps):
            return self
        params = dict(self.params)
        for group, scale in done.steps.items():
            for tensor in self.plan.members(group):
                params[tensor] = replace(params[tensor], scale=scale)
        work = add_to_biases(self.work, done.shifts) if done.shifts else self.work
        return replace(
            self,
            work=work,
            params=params,
            codes={**self.codes, **done.codes},
            learned=self.learned | set(done.codes),
        )._settled()

    def without_room(self, nodes: Sequence[str]) -> list[str]:
        """Those of ``nodes`` whose bias does not fit int32 at their scales."""
        return [n for n in nodes if not np.array_equal(self._with_room(n), self.scales[n])]

    def _with_room(self, label: str) -> Array:
        node = self.nodes[label]
        bias, source = bias_of(node), node.inputs[0]
        if bias is None or source is None:
            return self.scales[label]
        params = self.params[str(source.name)]
        wide = label in self.plan.wide_nodes and params.wide is not None
        step = params.wide.scale if wide and params.wide is not None else params.scale
        return np.asarray(with_room_for_bias(self.scales[label], bias, step))

    def _settled(self) -> Network:
        """The network with room for all biases, and codes of few bits where they are asked for."""
        scales, codes = dict(self.scales), dict(self.codes)
        few = self.top < self.scheme.weight.limits[1]
        for label, node in self.nodes.items():
            if label in self.learned:
                continue
            roomy = self._with_room(label)
            same = np.array_equal(roomy, scales[label])
            scales[label] = roomy
            if few and (not same or label not in codes):
                weight = weight_of(node)
                grid = Grid(roomy, weight_axis(node, self.scheme, weight.ndim), self.top)
                codes[label] = grid.nearest(weight)
        return replace(self, scales=scales, codes=codes)


def weighted_nodes(graph: Graph, plan: Plan) -> dict[str, ir.Node]:
    """The integer nodes with stored weights, by name."""
    return {
        name(n): n
        for n in graph.nodes
        if n.op_type in MAC_OPS and name(n) in plan.integer_nodes and array(n.inputs[1]) is not None
    }


def weight_of(node: ir.Node) -> Array:
    """The stored weight of a node that has one."""
    return np.asarray(array(node.inputs[1]))


def bias_of(node: ir.Node) -> Array | None:
    """The stored bias, flat; None where there is none."""
    found = array(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if found is None else np.asarray(found.reshape(-1), np.float32)
