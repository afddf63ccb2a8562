"""The part of a graph that belongs to a block, as a model of its own.

The float graph and its QDQ form are cut alike. Of the nodes that quantization inserts, a QuantizeLinear and
the DequantizeLinear behind it belong to the block that computes the tensor, those of constants to the block
that reads them. The pairs on the graph's inputs are the *entry*, before the first block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import is_constant, size_bytes
from edgekit.quantize.plan import name
from edgekit.quantize.reconstruct.blocks import Block

if TYPE_CHECKING:
    import onnx

#: Number of the section of nodes on the graph's inputs alone.
ENTRY = -1
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Section:
    """Nodes of one block in one graph.

    Attributes:
        nodes: The nodes, in execution order.
        inputs: Tensors that they read from elsewhere, constants not counted.
        outputs: Tensors that other sections read, or that are outputs of the graph.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all tensors that the nodes make for one sample."""
        return sum(size_bytes(v) for n in self.nodes for v in n.outputs)


class Sections:
    """A graph cut into the sections of blocks.

    Args:
        graph: The float graph that the blocks were found in, or its QDQ form.
        blocks: From :func:`~edgekit.quantize.reconstruct.blocks.find_blocks`.

    Attributes:
        sections: By number of the block, and :data:`ENTRY`.
        last_read: By tensor, the number of the last block that reads it.
    """

    def __init__(self, graph: Graph, blocks: Sequence[Block]) -> None:
        self.graph = graph
        self.values = graph.values()
        self._owner = self._assign(blocks)
        members: dict[int, list[ir.Node]] = {number: [] for number in range(ENTRY, len(blocks))}
        for node in graph.nodes:
            members[self._owner[node]].append(node)
        self.last_read: dict[str, int] = {}
        for number, nodes in members.items():
            for tensor in _read(nodes):
                self.last_read[tensor] = max(number, self.last_read.get(tensor, ENTRY))
        self.sections = {number: self._section(number, nodes) for number, nodes in members.items()}

    def _assign(self, blocks: Sequence[Block]) -> dict[ir.Node, int]:
        by_name = {node: number for number, block in enumerate(blocks) for node in block.nodes}
        owner: dict[ir.Node, int] = {}
        stored = []
        for node in self.graph.nodes:
            if name(node) in by_name:
                owner[node] = by_name[name(node)]
                continue
            source = node.inputs[0]
            if is_constant(source):
                stored.append(node)
                continue
            producer = source.producer() if source is not None else None
            owner[node] = ENTRY if producer is None else owner[producer]
        for node in stored:
            owner[node] = min(owner[user] for value in node.outputs for user in value.consumers())
        return owner

    def _section(self, number: int, nodes: Sequence[ir.Node]) -> Section:
        made = {str(v.name) for n in nodes for v in n.outputs}
        outside = [
            str(value.name)
            for node in nodes
            for value in node.outputs
            if value.is_graph_output() or any(self._owner[u] != number for u in value.consumers())
        ]
        return Section(tuple(nodes), tuple(t for t in _read(nodes) if t not in made), tuple(outside))

    def quantized_name(self, tensor: str) -> str:
        """What a tensor of the float graph is called once quantized; its own name where it is not."""
        paired = f"{tensor}_dequantized"
        return paired if paired in self.values else tensor

    def float_name(self, tensor: str) -> str:
        """The tensor of the float graph that a tensor of the QDQ form stands for."""
        value = self.values[tensor]
        while (producer := value.producer()) is not None and producer.op_type in _PAIR:
            source = producer.inputs[0]
            if source is None:
                break
            value = source
        found = str(value.name)
        # An output of the graph hands its name on to the dequantized tensor.
        return found.removesuffix("_raw") if found.removesuffix("_raw") in self.values else found

    def model(
        self,
        number: int,
        outputs: Iterable[str] = (),
        given: Iterable[str] = (),
        skip: Iterable[ir.Node] = (),
    ) -> onnx.ModelProto:
        """A section as a model.

        Args:
            number: The block's.
            outputs: Tensors to hand out besides the section's own.
            given: Constants to make inputs.
            skip: Nodes to leave out, whose results become inputs.
        """
        from onnx import helper

        section, skipped = self.sections[number], set(skip)
        nodes = [n for n in section.nodes if n not in skipped]
        made = {str(v.name) for n in nodes for v in n.outputs}
        free = set(given)
        read = list(dict.fromkeys(str(v.name) for n in nodes for v in n.inputs if v is not None))
        constants = [t for t in read if is_constant(self.values[t]) and t not in free]
        inputs = [t for t in read if t not in made and t not in constants]
        results = list(dict.fromkeys((*section.outputs, *outputs)))
        graph = helper.make_graph(
            [ir.to_proto(n) for n in nodes],
            "section",
            [self._info(t) for t in inputs],
            [self._info(t) for t in results if t in made],
            [_tensor(self.values[t]) for t in constants],
            value_info=[self._info(t) for t in sorted(made - set(results))],
        )
        opsets = [helper.make_opsetid(d, v) for d, v in self.graph.model.opset_imports.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.graph.model.ir_version)

    def _info(self, tensor: str) -> onnx.ValueInfoProto:
        return ir.serde.serialize_value(self.values[tensor])


def _read(nodes: Iterable[ir.Node]) -> list[str]:
    found = (v for n in nodes for v in n.inputs if v is not None and not is_constant(v))
    return list(dict.fromkeys(str(v.name) for v in found))


def _tensor(value: ir.Value) -> onnx.TensorProto:
    from onnx import numpy_helper

    if value.const_value is None:
        raise ValueError(f"'{value.name}' has no content")
    return numpy_helper.from_array(value.const_value.numpy(), str(value.name))
