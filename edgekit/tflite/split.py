"""Cutting a QDQ graph into what runs as TFLite and the float arithmetic around it.

1. The *decoder* holds the nodes from which no QuantizeLinear can be reached: arithmetic on the network's
   results that stays in float on purpose. It reads what the body dequantizes.
2. The *front* holds float nodes that nothing quantized feeds: casts and masks made from the graph's inputs.
   Looking up rows of a stored table is no part of it where the result is quantized at once: codes can be
   looked up as well (unless ``lookups`` is off, for targets that cannot). Its inputs are those of the graph.
3. The *body* is the rest. A node in it that computes in float is refused; where float is allowed (``mixed``)
   it becomes a float operator, and so do the nodes of the front that TFLite has operators for.
4. A graph without QuantizeLinear is all body; where float is allowed, up to the first node that TFLite has
   no operator for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, TensorSpec, array
from edgekit.quantize.plan import MAC_OPS
from edgekit.tflite.lower.refuse import RefusedError, RefusedNode, RefusedNodesError
from edgekit.tflite.lower.view import constant, fusable, is_op, quantization_of, quantizer
from edgekit.tflite.model import Quantization

#: What needs no operator in TFLite, whatever it holds.
_RELABELS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_REMEDY = "give its operator a rule in the scheme, or replace it"


@dataclass(frozen=True)
class Port:
    """A tensor at the edge of the body.

    Attributes:
        name: The float tensor in the ONNX graph.
        shape: Its ONNX shape.
        dtype: Its element type in the ONNX graph.
        quantization: Meaning of the codes that the body has for it; None where it has none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    quantization: Quantization | None


@dataclass(frozen=True)
class Split:
    """A graph in up to three parts.

    Attributes:
        body: What becomes TFLite.
        front: Float nodes before it, which take all inputs of the graph; None where there are none.
        decoder: Float nodes behind it; its inputs are outputs of the body or inputs of the graph, its outputs
            those of the graph that the body does not have. None where there are none.
        inputs: Of the body.
        outputs: Of the body.
    """

    body: Graph
    front: Graph | None
    decoder: Graph | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def split(
    graph: Graph, reasons: Mapping[str, str] | None = None, *, mixed: bool = False, lookups: bool = True
) -> Split:
    """Cut a QDQ graph at its float parts.

    Args:
        graph: A QDQ graph, or a plain float graph.
        reasons: Why nodes were left in float, by name, where the caller has the plan of the quantization.
        mixed: Whether what runs the body computes in float too.
        lookups: Whether it looks up rows of stored tables.

    Raises:
        RefusedNodesError: Float nodes stand between integer ones; all of them are named.
    """
    whole = graph.model.graph
    nodes = list(whole)
    plain = not any(is_op(n, "QuantizeLinear") for n in nodes)
    tail = (_unknown_and_after(nodes) if mixed else set()) if plain else _tail(nodes)
    if plain and not tail:
        return _result(graph, graph, None, None)
    front: set[ir.Node] = set() if plain else _front(nodes, tail, lookups)
    if mixed:
        front = _only_unknown(nodes, front)
    body = [n for n in nodes if n not in tail and n not in front]
    if not mixed:
        _refuse_float(body, front, reasons or {})
    ends = _ends(body, tail)
    starts = _starts(whole, body)
    body_graph = _part(graph, starts, ends)
    computed = [v for v in starts if not v.is_graph_input()]
    front_graph = _part(graph, whole.inputs, computed) if computed else None
    results = [v for v in whole.outputs if v not in set(ends)]
    decoder = _part(graph, _sources(results, frozenset(ends)), results) if results else None
    return _result(graph, body_graph, front_graph, decoder)


def _tail(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes, other than DequantizeLinear, from which no QuantizeLinear can be reached."""
    reaching: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [u for v in node.outputs for u in v.consumers()]
        if is_op(node, "QuantizeLinear") or any(r in reaching for r in readers):
            reaching.add(node)
    return {n for n in nodes if n not in reaching and not is_op(n, "DequantizeLinear")}


def _unknown_and_after(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes of a float graph that have no operator in TFLite, and all behind them."""
    from edgekit.tflite.lower.lower import has_counterpart

    found: set[ir.Node] = set()
    for node in nodes:
        if not has_counterpart(node) or any(v is not None and v.producer() in found for v in node.inputs):
            found.add(node)
    return found


def _front(nodes: Sequence[ir.Node], tail: set[ir.Node], lookups: bool) -> set[ir.Node]:
    """Float nodes that nothing quantized feeds, without those whose codes can be looked up."""
    fed: set[ir.Node] = set()
    found = set()
    for node in nodes:
        makers = [v.producer() for v in node.inputs if v is not None]
        stored = is_op(node, "DequantizeLinear") and constant(node.outputs[0]) is not None
        if not stored and (
            is_op(node, "QuantizeLinear", "DequantizeLinear") or any(m in fed for m in makers)
        ):
            fed.add(node)
        elif not stored and node not in tail and not (lookups and _is_lookup(node)):
            found.add(node)
    # What reads a stored tensor through DequantizeLinear and is not fed is integer work on an input.
    quantized = {n for n in found if any(_is_stored_codes(v) for v in n.inputs)}
    return found - quantized


def _only_unknown(nodes: Sequence[ir.Node], front: set[ir.Node]) -> set[ir.Node]:
    """The nodes of the front that have no operator in TFLite, or compute with integers, and all before
    them."""
    # Here and not above: the lowering asks this module what computes in float.
    from edgekit.tflite.lower.lower import has_counterpart

    found: set[ir.Node] = set()
    for node in reversed(nodes):
        floats = all(v.dtype == ir.DataType.FLOAT for v in node.outputs) or is_op(node, *_RELABELS)
        needed = any(user in found for v in node.outputs for user in v.consumers())
        if node in front and (needed or not (floats and has_counterpart(node))):
            found.add(node)
    return found


def float_nodes(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes that compute in float: they read or write float tensors that stand for no codes."""
    found = set()
    for node in nodes:
        if not is_op(node, "QuantizeLinear", "DequantizeLinear") and not _is_lookup(node):
            weight = node.inputs[1] if node.op_type in MAC_OPS and len(node.inputs) > 1 else None
            if _float_rule(node) or (weight is not None and array(weight) is not None):
                found.add(node)
    for node in list(found):  # the activation that a float kernel absorbs
        found.update(user for v in node.outputs for user in v.consumers() if absorbed_by(user) is node)
    return found


def _is_stored_codes(value: ir.Value | None) -> bool:
    return value is not None and is_op(value.producer(), "DequantizeLinear")


def _is_lookup(node: ir.Node) -> bool:
    readers = node.outputs[0].consumers()
    return (
        is_op(node, "Gather")
        and constant(node.inputs[0]) is not None
        and bool(readers)
        and all(is_op(r, "QuantizeLinear") for r in readers)
    )


def _refuse_float(body: Sequence[ir.Node], front: set[ir.Node], reasons: Mapping[str, str]) -> None:
    """Raise RefusedNodesError for nodes of the body that read or write float tensors without codes."""
    refused = []
    for node in body:
        if is_op(node, "QuantizeLinear", "DequantizeLinear") or _is_lookup(node):
            continue
        rule = _float_rule(node)
        if rule:
            rule = f"{rule}: {reasons[str(node.name)]}" if str(node.name) in reasons else rule
            refused.append(RefusedNode(str(node.name), node.op_type, rule, _REMEDY))
    if refused:
        raise RefusedNodesError("float nodes stand between integer ones", tuple(refused))


def _float_rule(node: ir.Node) -> str:
    if absorbed_by(node) is not None:
        return ""
    for value in node.outputs:
        if value.dtype != ir.DataType.FLOAT or not (value.uses() or value.is_graph_output()):
            continue
        activation = fusable(value)
        written = activation.outputs[0] if activation is not None and quantizer(value) is None else value
        if quantizer(written) is None:
            return f"its output '{value.name}' is not quantized"
    for read in node.inputs:
        if read is None or read.dtype != ir.DataType.FLOAT or constant(read) is not None:
            continue
        if not is_op(read.producer(), "DequantizeLinear") and quantizer(read) is None:
            return f"its input '{read.name}' is not quantized"
    return ""


def absorbed_by(node: ir.Node) -> ir.Node | None:
    """The node whose kernel computes this activation too, or None."""
    value = next((v for v in node.inputs if v is not None and constant(v) is None), None)
    if value is None or fusable(value) is not node or quantizer(value) is not None:
        return None
    maker = value.producer()
    return None if is_op(maker, "DequantizeLinear") else maker


def _ends(body: Sequence[ir.Node], tail: set[ir.Node]) -> list[ir.Value]:
    """Outputs of the body: what the tail reads and what leaves the graph, in graph order."""
    return [
        v
        for node in body
        for v in node.outputs
        if v.is_graph_output() or (any(r in tail for r in v.consumers()) and constant(v) is None)
    ]


def _starts(whole: ir.Graph, body: Sequence[ir.Node]) -> list[ir.Value]:
    inside = set(body)
    found = {
        v
        for node in body
        for v in node.inputs
        if v is not None and not v.is_initializer() and v.producer() not in inside
    }
    inputs = [v for v in whole.inputs if v in found]
    return inputs + [v for node in whole for v in node.outputs if v in found]


def _sources(values: Iterable[ir.Value], known: frozenset[ir.Value]) -> list[ir.Value]:
    """What ``values`` are computed from: ``known`` tensors and inputs of the graph."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    waiting: list[ir.Value] = list(values)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in known or value.is_graph_input():
            found[value] = None
        elif (node := value.producer()) is not None:
            waiting.extend(source for source in reversed(node.inputs) if source is not None)
    return list(found)


def _part(graph: Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Graph:
    """The nodes between tensors of ``graph``, as a graph of their own."""
    from onnx_ir import convenience

    part = convenience.extract(graph.model.graph, list(inputs), list(outputs))
    model = ir.Model(part, ir_version=graph.model.ir_version)
    return Graph(model, graph.history)


def _result(whole: Graph, body: Graph, front: Graph | None, decoder: Graph | None) -> Split:
    return Split(
        body,
        front,
        decoder,
        tuple(_port(v, s, quantizer(v)) for v, s in zip(body.model.graph.inputs, body.inputs, strict=True)),
        tuple(_port(v, s, _maker(v)) for v, s in zip(body.model.graph.outputs, body.outputs, strict=True)),
    )


def _maker(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if is_op(node, "DequantizeLinear") else None


def _port(value: ir.Value, spec: TensorSpec, node: ir.Node | None) -> Port:
    try:
        quantization = None if node is None else quantization_of(node)[0]
    except RefusedError as error:
        place = RefusedNode(str(value.name), "tensor", error.rule, error.remedy)
        raise RefusedNodesError("TFLite cannot run the network", (place,)) from error
    return Port(spec.name, spec.shape, spec.dtype, quantization)
