"""Small edits that every pass needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir


class Names:
    """Hands out tensor names that are not taken yet in a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._taken.update(out.name for node in graph.all_nodes() for out in node.outputs)

    def fresh(self, base: str) -> str:
        """``base`` if it is free, else ``base.1``, ``base.2`` …"""
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}.{count}"
        self._taken.add(name)
        return name


def add_constant(graph: ir.Graph, name: str, value: np.ndarray[Any, Any]) -> ir.Value:
    """Register an initializer under a name that must be free."""
    tensor = ir.tensor(value, name=name)
    constant = ir.Value(
        name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(constant)
    return constant


def set_constant(value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    """Give an initializer another content; the tensor it held, which graphs may share, stays as it is."""
    tensor = ir.tensor(array, name=value.name)
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(tensor.dtype)


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no caller can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape as ints, or None where any dimension is unknown."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape.numpy())


def size_bytes(value: ir.Value) -> int:
    """Bytes of a tensor; 0 where shape or type is unknown, and for strings."""
    shape = static_shape(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def can_bypass(source: ir.Value, result: ir.Value) -> bool:
    """Whether ``source`` may stand in for ``result`` without touching the graph's interface.

    An output of the graph has to come out of a node under its own name, so its stand-in may not be an input,
    an initializer or another output.
    """
    if not result.is_graph_output():
        return True
    return source.producer() is not None and not source.is_graph_output() and source.graph is result.graph


def bypass(source: ir.Value, result: ir.Value, *, take_name: bool = False) -> None:
    """Let ``source`` stand in for ``result`` everywhere and remove the node that made ``result``.

    Args:
        source: The tensor that stays.
        result: The only output in use of the node to remove.
        take_name: Let ``source`` carry the name of ``result`` even where that is no graph output.
    """
    node = result.producer()
    if node is None or node.graph is None:
        raise ValueError(f"{result.name} is not made by a node of a graph")
    name = result.name
    source.type = source.type or result.type
    if source.shape is None and result.shape is not None:
        source.shape = result.shape.copy()
    take_name = take_name or result.is_graph_output()
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    if take_name:
        source.name = name


def remove_nodes(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove nodes whose outputs nobody uses."""
    graph.remove(list(nodes), safe=True)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def is_false(values: np.ndarray[Any, Any] | None) -> bool:
    """True for a constant of nothing but zeros (or False); not for None, a computed value."""
    return values is not None and not values.any()


def has_subgraph(node: ir.Node) -> bool:
    """True for If, Loop, Scan and whatever else carries a graph of its own."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
