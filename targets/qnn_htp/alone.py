"""Every layer of a network by itself, all in one model.

A code that one runtime rounds the other way moves others behind it, so that the outputs of a deep network
say little about its kernels. Here each layer reads the codes of the reference instead of those of the layer
before it: what is left is the difference that the layer's own kernel makes.
"""

from __future__ import annotations

import onnx

from edgekit.graph import Graph

#: They only move codes; HTP takes them no apart from what is around them.
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SUFFIX = "@reference"


class Apart:
    """A QDQ graph that is open at every quantized tensor.

    Args:
        graph: The graph.

    Attributes:
        whole: The graph with the codes of inner tensors as further outputs: what the reference runs.
        opened: The same graph, whose layers read those codes from further inputs.
        tensors: Names of the codes.
        ops: What computes each of them.
    """

    def __init__(self, graph: Graph) -> None:
        self.whole: onnx.ModelProto = graph.to_proto()
        made = {output: node for node in self.whole.graph.node for output in node.output}
        known = {value.name: value for value in self.whole.graph.value_info}
        outputs = {value.name for value in self.whole.graph.output}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.whole.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)

        def moved(codes: str) -> bool:
            behind = [r for n in readers.get(codes, []) for r in readers.get(n.output[0], [])]
            return any(node.op_type in _MOVES for node in behind)

        self.tensors = tuple(
            node.output[0]
            for node in self.whole.graph.node
            if node.op_type == "QuantizeLinear"
            and node.output[0] in known
            and node.output[0] not in outputs
            and not moved(node.output[0])
        )
        self.ops = {
            name: made[made[name].input[0]].op_type for name in self.tensors if made[name].input[0] in made
        }
        self.opened = onnx.ModelProto()
        self.opened.CopyFrom(self.whole)
        inner = frozenset(self.tensors)
        for node in self.opened.graph.node:
            for index, name in enumerate(node.input):
                if name in inner:
                    node.input[index] = reference(name)
        for name in self.tensors:
            given = self.opened.graph.input.add()
            given.CopyFrom(known[name])
            given.name = reference(name)
            for model in (self.whole, self.opened):
                model.graph.output.append(known[name])


def reference(codes: str) -> str:
    """The input through which layers read a tensor's codes."""
    return f"{codes}{_SUFFIX}"
