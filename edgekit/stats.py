"""What a network weighs and works: parameters, multiply-accumulates, bytes of weights and activations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, is_constant, size_bytes, static_shape


@dataclass(frozen=True)
class NodeStats:
    """One node.

    Attributes:
        name: Its name.
        op: Operator type.
        macs: Multiply-accumulates for the batch as given; 0 for operators that are not counted.
        parameters: Floating-point weights that it reads. A weight that several nodes share counts at each of
            them.
        output_shape: Shape of the first output.
        output_bytes: Size of all outputs.
    """

    name: str
    op: str
    macs: int
    parameters: int
    output_shape: tuple[int, ...]
    output_bytes: int


@dataclass(frozen=True)
class ModelStats:
    """A whole network.

    Attributes:
        parameters: Floating-point numbers in the weights, each counted once.
        macs: Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul, for the batch as given.
        size_bytes: Bytes of all initializers.
        ops: Nodes by operator type, most frequent first.
        per_node: The nodes in execution order.
        activation_bytes: Bytes of all inputs and node outputs together.
        peak_activation_bytes: Most bytes of inputs and node outputs alive at once, executing in graph order
            and nothing computed in place.
    """

    parameters: int
    macs: int
    size_bytes: int
    ops: dict[str, int]
    per_node: tuple[NodeStats, ...]
    activation_bytes: int
    peak_activation_bytes: int


def count(graph: Graph) -> ModelStats:
    """Count a captured graph.

    Raises:
        ModelError: A tensor has no static shape.
    """
    nodes = tuple(_node(node) for node in graph.nodes)
    weights = [v for v in graph.model.graph.initializers.values() if not v.is_graph_input()]
    inputs = sum(_bytes(v) for v in graph.model.graph.inputs)
    return ModelStats(
        parameters=sum(_parameters(v) for v in weights),
        macs=sum(node.macs for node in nodes),
        size_bytes=sum(v.const_value.nbytes for v in weights if v.const_value is not None),
        ops=dict(Counter(node.op for node in nodes).most_common()),
        per_node=nodes,
        activation_bytes=inputs + sum(node.output_bytes for node in nodes),
        peak_activation_bytes=_peak(graph),
    )


def node_macs(node: ir.Node) -> int:
    """Multiply-accumulates of one node; 0 for operators other than Conv, ConvTranspose, Gemm and MatMul.

    Raises:
        ModelError: A shape it needs is not static.
    """
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right, out = _shape(node.inputs[0]), _shape(node.inputs[1]), _shape(node.outputs[0])
    if node.op_type == "Conv":
        return prod(out) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    inner = left[0] if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else left[-1]
    return prod(out) * inner


def _node(node: ir.Node) -> NodeStats:
    weights = {v for v in node.inputs if v is not None and is_constant(v)}
    return NodeStats(
        name=str(node.name),
        op=node.op_type,
        macs=node_macs(node),
        parameters=sum(_parameters(v) for v in weights),
        output_shape=_shape(node.outputs[0]),
        output_bytes=sum(_bytes(out) for out in node.outputs if out.name),
    )


def _parameters(value: ir.Value) -> int:
    return (
        value.const_value.size
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
        else 0
    )


def _peak(graph: Graph) -> int:
    """Largest sum of live tensors: a tensor dies after its last reader, outputs never."""
    main = graph.model.graph
    order = {node: index for index, node in enumerate(main)}
    deaths: dict[int, list[ir.Value]] = {}
    for value in (*main.inputs, *(out for node in main for out in node.outputs if out.name)):
        if not value.is_graph_output():
            producer = value.producer()
            born = order[producer] if producer is not None else 0
            last = max((order.get(user, born) for user in value.consumers()), default=born)
            deaths.setdefault(last, []).append(value)
    live = peak = sum(_bytes(v) for v in main.inputs)
    for node, index in order.items():
        live += sum(_bytes(out) for out in node.outputs if out.name)
        peak = max(peak, live)
        live -= sum(_bytes(v) for v in deaths.get(index, ()))
    return peak


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise ModelError(
            f"tensor '{value.name if value else ''}' has no static shape", hint="Capture the model first"
        )
    return shape


def _bytes(value: ir.Value) -> int:
    _shape(value)  # refuses an open shape
    return size_bytes(value)
