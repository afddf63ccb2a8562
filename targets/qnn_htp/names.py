"""The nodes of an ONNX file, found by the names that the QNN execution provider gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

_FLOATS = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 of onnx.TensorProto
_SUFFIX = re.compile(r"(?:_token_\d+|/duplicated(?:_token_\d+|_\d+)?)$")
_Q = re.compile(r"(?:QuantizeLinear|_q)(?:_\d+)?$")
_DQ = re.compile(r"(?:DequantizeLinear|_dq)(?:_\d+)?$")


@dataclass(frozen=True)
class _Node:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class NodeTable:
    """Nodes by name, and which tensors are float. Without a file every name is taken for the file's."""

    nodes: dict[str, _Node] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    producers: dict[str, str] = field(default_factory=dict)
    readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    known: bool = False

    @classmethod
    def read(cls, model: Path | None) -> Self:
        """The table of a file; without one an empty table."""
        if model is None:
            return cls()
        import onnx

        proto = onnx.load(model, load_external_data=False)
        return cls._of(proto.graph, onnx.shape_inference.infer_shapes(proto).graph)

    @classmethod
    def _of(cls, graph: Any, typed: Any) -> Self:
        nodes = {n.name: _Node(n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node if n.name}
        values = [*typed.value_info, *typed.input, *typed.output]
        readers: dict[str, tuple[str, ...]] = {}
        for name, node in nodes.items():
            readers |= {tensor: (*readers.get(tensor, ()), name) for tensor in set(node.inputs)}
        constants = {i.name for i in graph.initializer}
        constants |= {o for n in graph.node if n.op_type == "Constant" for o in n.output}
        return cls(
            nodes,
            frozenset(v.name for v in values if v.type.tensor_type.elem_type in _FLOATS),
            {output: name for name, node in nodes.items() for output in node.outputs},
            readers,
            frozenset(constants),
            known=True,
        )

    def find(self, name: str) -> str:
        """The file's name of what the provider calls ``name``; empty where the file has no such node."""
        while name not in self.nodes:
            shorter = _SUFFIX.sub("", name)
            if shorter == name:
                return "" if self.known or name in ("QuantizeLinear", "DequantizeLinear") else name
            name = shorter
        return name

    def op(self, name: str) -> str:
        """The type of a node; for one that is not in the file, what its name says."""
        found = self.find(name)
        if found in self.nodes:
            return self.nodes[found].op
        while (shorter := _SUFFIX.sub("", name)) != name:
            name = shorter
        if _DQ.search(name):
            return "DequantizeLinear"
        return "QuantizeLinear" if _Q.search(name) else ""

    def absorbed(self, nodes: Sequence[str], quantizers: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """The Q and DQ of the file that a group of nodes takes in.

        Those that the provider replaced by its own around a Transpose are found by the tensors between them.

        Args:
            nodes: The group's nodes that are neither.
            quantizers: Name (empty for one that is not in the file) and type of its Q and DQ.
        """
        names = dict.fromkeys(name for name, _ in quantizers if name)
        replaced = {op for name, op in quantizers if not name}
        for node in (self.nodes[name] for name in nodes if name in self.nodes):
            around = [self.producers.get(tensor, "") for tensor in node.inputs]
            around += [reader for tensor in node.outputs for reader in self.readers.get(tensor, ())]
            names |= dict.fromkeys(n for n in around if n and self.nodes[n].op in replaced)
        return tuple(names)

    def is_float(self, nodes: Sequence[str], quantizers: Sequence[tuple[str, str]]) -> bool:
        """Whether a float tensor enters or leaves a group of nodes other than through its Q and DQ.

        Args:
            nodes: The group's nodes that are neither.
            quantizers: Name (empty for one that is not in the file) and type of its Q and DQ.
        """
        members = [self.nodes[name] for name in nodes if name in self.nodes]
        inner = {o for node in members for o in node.outputs}
        absorbed = {name for name, _ in quantizers}
        reads = [i for node in members for i in node.inputs if self._varies(i) and i not in inner]
        read_by = {i for node in members for i in node.inputs}
        leaves = [o for o in inner if o in self.floats and o not in read_by]
        dq = any(op == "DequantizeLinear" and not self._weight(name) for name, op in quantizers)
        q = any(op == "QuantizeLinear" for _, op in quantizers)
        enters = [i for i in reads if self.producers.get(i) not in absorbed]
        return bool((enters and not dq) or (leaves and not q))

    def _varies(self, tensor: str) -> bool:
        return tensor in self.floats and tensor not in self.constants

    def _weight(self, name: str) -> bool:
        """Whether a DequantizeLinear of the file reads a constant."""
        node = self.nodes.get(name)
        return node is not None and node.inputs[0] in self.constants
