"""Finding and replacing groups of nodes: what the passes that fuse or take apart operators share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import Names, add_constant, is_constant
from edgekit.passes.infer_shapes import infer_node


def maker(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes ``value``, if it is one of ``ops`` of the standard domain."""
    node = None if value is None else value.producer()
    return node if node is not None and not node.domain and node.op_type in ops else None


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element; None for anything else."""
    if not is_constant(value):
        return None
    held = array(value)
    return float(held.reshape(())) if held is not None and held.size == 1 else None


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads ``value``, which is no output of the graph; None if there are several."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def read_outside(nodes: Collection[ir.Node], result: ir.Value) -> str:
    """The first tensor but ``result`` that ``nodes`` make and others need; empty when there is none."""
    for node in nodes:
        for out in node.outputs:
            if out is not result and (
                out.is_graph_output() or any(use.node not in nodes for use in out.uses())
            ):
                return str(out.name)
    return ""


def remove_dead(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node if nobody needs it, then those before it that only it needed, and their constants."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node.graph is not graph or any(out.uses() or out.is_graph_output() for out in node.outputs):
            continue
        sources = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        for value in sources:
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
            elif is_constant(value) and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(str(value.name), None)


class Rewriter:
    """Adds nodes to one graph under names that are free, with types and shapes inferred."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._opsets = model.opset_imports
        self._names = Names(model.graph)
        self._nodes = {str(node.name) for node in model.graph}

    def before(self, node: ir.Node, stem: str) -> Builder:
        """A builder whose nodes come right before ``node`` and are named after ``stem``."""
        return Builder(self, node, stem)

    def add(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any
    ) -> ir.Value:
        """Insert a node with one output; returns that."""
        node = ir.node(op, list(inputs), attributes or None, name=self._node_name(name))
        node.outputs[0].name = self._names.fresh(name)
        self.graph.insert_before(before, [node])
        infer_node(node, self._opsets)
        return node.outputs[0]

    def constant(self, name: str, values: np.ndarray[Any, Any]) -> ir.Value:
        return add_constant(self.graph, self._names.fresh(name), values)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new``, which a node has just been added for, take the place and the name of ``old``.

        What only ``old`` needed is removed.
        """
        node = old.producer()
        if node is None:
            raise ValueError(f"{old.name} is not made by a node")
        name = old.name
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        # Freed first, because a graph holds one tensor of a name; a node of several outputs may stay a while.
        old.name = None
        new.name = name
        remove_dead(self.graph, node)

    def _node_name(self, base: str) -> str:
        name, count = base, 0
        while name in self._nodes:
            count += 1
            name = f"{base}.{count}"
        self._nodes.add(name)
        return name


class Builder:
    """Adds nodes at one place; see :meth:`Rewriter.before`."""

    def __init__(self, rewriter: Rewriter, before: ir.Node, stem: str) -> None:
        self._rewriter, self._before, self._stem = rewriter, before, stem

    def node(self, op: str, label: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node named ``<stem>.<label>`` and its output, which has the same name."""
        return self._rewriter.add(self._before, op, inputs, f"{self._stem}.{label}", **attributes)

    def constant(self, label: str, values: Any, dtype: type[np.generic] = np.float32) -> ir.Value:
        """A constant named ``<stem>.<label>``."""
        return self._rewriter.constant(f"{self._stem}.{label}", np.asarray(values, dtype))

    def take(self, old: ir.Value, new: ir.Value) -> None:
        """:meth:`Rewriter.replace`"""
        self._rewriter.replace(old, new)
