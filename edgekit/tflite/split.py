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
from edgekit.parts import Parts, before_codes, behind_codes, divide, float_rule, is_op, quantizer
from edgekit.quantize.plan import MAC_OPS
from edgekit.tflite.lower.refuse import RefusedError, RefusedNode, RefusedNodesError
from edgekit.tflite.lower.view import constant, fusable, quantization_of
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
    nodes = list(graph.model.graph)
    plain = not any(is_op(n, "QuantizeLinear") for n in nodes)
    tail = (_unknown_and_after(nodes) if mixed else set()) if plain else behind_codes(nodes)
    if plain and not tail:
        return _result(Parts(graph, None, None))
    front: set[ir.Node] = set()
    if not plain:
        front = before_codes(nodes, tail, but=_is_lookup if lookups else None)
    if mixed:
        front = _only_unknown(nodes, front)
    else:
        _refuse_float([n for n in nodes if n not in tail and n not in front], reasons or {})
    return _result(divide(graph, front, tail))


def _unknown_and_after(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes of a float graph that have no operator in TFLite, and all behind them."""
    from edgekit.tflite.lower.lower import has_counterpart

    found: set[ir.Node] = set()
    for node in nodes:
        if not has_counterpart(node) or any(v is not None and v.producer() in found for v in node.inputs):
            found.add(node)
    return found


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
            if float_rule(node, absorbed_by) or (weight is not None and array(weight) is not None):
                found.add(node)
    for node in list(found):  # the activation that a float kernel absorbs
        found.update(user for v in node.outputs for user in v.consumers() if absorbed_by(user) is node)
    return found


def _is_lookup(node: ir.Node) -> bool:
    readers = node.outputs[0].consumers()
    return (
        is_op(node, "Gather")
        and constant(node.inputs[0]) is not None
        and bool(readers)
        and all(is_op(r, "QuantizeLinear") for r in readers)
    )


def _refuse_float(body: Sequence[ir.Node], reasons: Mapping[str, str]) -> None:
    """Raise RefusedNodesError for nodes of the body that read or write float tensors without codes."""
    refused = []
    for node in body:
        if is_op(node, "QuantizeLinear", "DequantizeLinear") or _is_lookup(node):
            continue
        rule = float_rule(node, absorbed_by)
        if rule:
            rule = f"{rule}: {reasons[str(node.name)]}" if str(node.name) in reasons else rule
            refused.append(RefusedNode(str(node.name), node.op_type, rule, _REMEDY))
    if refused:
        raise RefusedNodesError("float nodes stand between integer ones", tuple(refused))


def absorbed_by(node: ir.Node) -> ir.Node | None:
    """The node whose kernel computes this activation too, or None."""
    value = next((v for v in node.inputs if v is not None and constant(v) is None), None)
    if value is None or fusable(value) is not node or quantizer(value) is not None:
        return None
    maker = value.producer()
    return None if is_op(maker, "DequantizeLinear") else maker


def _result(parts: Parts) -> Split:
    body = parts.body
    return Split(
        body,
        parts.front,
        parts.decoder,
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
