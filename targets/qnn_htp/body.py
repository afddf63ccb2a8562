"""The part of a quantized network that HTP runs, and what stays around it on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.parts import Parts, cut, is_op
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import Arrays, OrtRunner, open_runner
from edgekit.target import LeftNode

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_FLOAT = "it computes in float or on integers that are no codes"
_REMEDY = "HTP does neither: it runs on the CPU, before or behind the rest"


def settled(graph: Graph) -> Graph:
    """A graph whose nodes all have names and whose tensors all have shapes, which the trace is read by."""
    return name_nodes(infer_shapes(graph))


@dataclass(frozen=True)
class Body:
    """A QDQ graph with what HTP runs cut out of it.

    Attributes:
        whole: The graph.
        parts: Front, body and decoder.
    """

    whole: Graph
    parts: Parts
    _runners: dict[str, OrtRunner] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, graph: Graph, refused: Collection[str] = ()) -> Body:
        """Cut a graph; ``refused`` are names of nodes that HTP does not take.

        Raises:
            ModelError: Nothing is quantized.
            CutError: What HTP does not take stands in the middle of the network.
        """
        names = frozenset(refused)
        return cls(graph, cut(graph, runs=lambda node: str(node.name) not in names))

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The body's nodes, without conversions."""
        return tuple(n for n in self.parts.body.nodes if not is_op(n, *_CONVERSIONS))

    def left(self, reasons: Mapping[str, LeftNode]) -> tuple[LeftNode, ...]:
        """The nodes outside of the body, each once.

        Args:
            reasons: What is known of single nodes, by name.
        """
        found: dict[str, LeftNode] = {}
        for part in (self.parts.front, self.parts.decoder):
            for node in () if part is None else part.nodes:
                name = str(node.name)
                if not is_op(node, *_CONVERSIONS):
                    found[name] = reasons.get(name, LeftNode(name, node.op_type, _FLOAT, _REMEDY))
        return tuple(found.values())

    def to_body(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """What the body is fed with, from what the network is fed with."""
        known = dict(feeds)
        if self.parts.front is not None:
            known |= self._runner("front", self.parts.front).run(feeds)
        return {spec.name: known[spec.name] for spec in self.parts.body.inputs}

    def from_body(
        self, outputs: Mapping[str, np.ndarray[Any, Any]], feeds: Mapping[str, np.ndarray[Any, Any]]
    ) -> Arrays:
        """The network's outputs, from those of the body."""
        known = dict(outputs)
        decoder = self.parts.decoder
        if decoder is not None:
            both = {**feeds, **outputs}
            known |= self._runner("decoder", decoder).run({s.name: both[s.name] for s in decoder.inputs})
        return {spec.name: known[spec.name] for spec in self.whole.outputs}

    def _runner(self, label: str, part: Graph) -> OrtRunner:
        if label not in self._runners:
            self._runners[label] = open_runner(part, threads=1)
        return self._runners[label]
