"""Sequences, as ``torch.chunk`` and ``torch.split`` export them, written as a Split with several outputs.

    SequenceAt(SplitToSequence(x, sizes, axis), i) = i-th output of Split(x, sizes, axis)

Used while constants are folded, because the sizes and the places are constants that the exporter computes in
the graph. A sequence that is read at a place that is not constant is refused: no target has sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import array
from edgekit.passes.edit import Names, add_constant, static_shape

_Key = tuple[int, tuple[int, ...], int]


@dataclass
class Sequences:
    """The sequences of one graph that became Splits.

    Attributes:
        graph: The graph that is changed.
        opset: Its version; before 13 the sizes of Split are an attribute.
        names: Free names in it.
    """

    graph: ir.Graph
    opset: int
    names: Names
    _splits: dict[_Key, ir.Node] = field(default_factory=dict)
    _sequences: dict[ir.Value, ir.Node] = field(default_factory=dict)

    def rewrite(self, node: ir.Node) -> bool:
        """Replace ``node`` if it makes a sequence of known parts or picks one of them; True if it did.

        Raises:
            ModelError: It picks from a sequence in a way that no Split can do.
        """
        if node.domain:
            return False
        if node.op_type == "SplitToSequence":
            return self._split(node)
        return node.op_type == "SequenceAt" and self._pick(node)

    def _split(self, node: ir.Node) -> bool:
        source = node.inputs[0]
        sizes, axis = _sizes(node)
        readers = list(node.outputs[0].consumers())
        if source is None or not sizes or any(r.op_type != "SequenceAt" for r in readers):
            return False
        # torch writes the same chunk once for each part that is used.
        key = (id(source), sizes, axis)
        if key not in self._splits:
            self._splits[key] = self._make(node, source, sizes, axis)
        self._sequences[node.outputs[0]] = self._splits[key]
        return False  # the node goes with the last of its readers

    def _make(self, node: ir.Node, source: ir.Value, sizes: tuple[int, ...], axis: int) -> ir.Node:
        label = str(node.name or node.outputs[0].name)
        inputs, attributes = [source], {"axis": axis}
        if self.opset < 13:
            attributes["split"] = list(sizes)  # type: ignore[assignment]
        else:
            inputs.append(
                add_constant(self.graph, self.names.fresh(f"{label}.sizes"), np.array(sizes, np.int64))
            )
        split = ir.node(
            "Split",
            inputs,
            attributes=attributes,
            num_outputs=len(sizes),
            name=self.names.fresh(f"{label}.split"),
        )
        shape = static_shape(source) or ()
        for part, size in zip(split.outputs, sizes, strict=True):
            part.name = self.names.fresh(f"{label}.part")
            part.type = source.type
            part.shape = ir.Shape([size if i == axis % len(shape) else d for i, d in enumerate(shape)])
        self.graph.insert_before(node, split)
        return split

    def _pick(self, node: ir.Node) -> bool:
        sequence = node.inputs[0]
        split = self._sequences.get(sequence) if sequence is not None else None
        place = array(node.inputs[1])
        if split is None or sequence is None or place is None or not _fits(int(place), len(split.outputs)):
            raise ModelError(
                "picks a part of a sequence that is not known in advance",
                where=f"SequenceAt node '{node.name}'",
                hint="Split the tensor into parts of fixed size and use them by fixed places",
            )
        old = node.outputs[0]
        old.replace_all_uses_with(split.outputs[int(place)], replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        maker = sequence.producer()
        if maker is not None and not sequence.uses():
            self.graph.remove(maker, safe=True)
        return True


def _fits(place: int, count: int) -> bool:
    return -count <= place < count


def _sizes(node: ir.Node) -> tuple[tuple[int, ...], int]:
    """Size of every part and the axis; no sizes where they are not known."""
    shape = static_shape(node.inputs[0])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    split = array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if shape is None or split is None:
        # Without sizes the parts have one element each, and keepdims=0 drops the axis: no Split does that.
        return (), axis
    length = shape[axis]
    if split.ndim == 1:
        return tuple(int(s) for s in split), axis
    step = int(split)
    return tuple(min(step, length - start) for start in range(0, length, step)), axis
