"""Reading a QDQ graph: where activations are rounded, which weights are, and which sites belong together.

A *site* is a QuantizeLinear with the DequantizeLinear nodes behind it. Sites that only moving nodes (Concat,
MaxPool, Reshape …) lie between, and that have the same scale, make up one *unit*: leaving out one of them
alone would change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.parts import is_op, is_stored
from edgekit.passes.edit import add_constant, bypass, int_attribute
from edgekit.quantize.plan import MAC_OPS

Array = np.ndarray[Any, Any]

#: Nodes that only move values.
MOVERS = frozenset(
    {
        *("Concat", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"),
        *("Gather", "Resize", "DepthToSpace", "SpaceToDepth", "Identity", "Pad"),
    }
)


@dataclass(frozen=True)
class Site:
    """One place where an activation is rounded.

    Attributes:
        key: Name of its QuantizeLinear's output; no two sites share it.
        tensor: The activation's name in the float graph.
        scale: Step, a scalar or one for each channel.
        zero: Code of 0.0, of the same shape.
        op: Type of the node that computes the activation; ``input`` for an input of the graph.
        node: Name of that node.
    """

    key: str
    tensor: str
    scale: Array
    zero: Array
    op: str
    node: str

    @property
    def limits(self) -> tuple[int, int]:
        info = np.iinfo(self.zero.dtype)
        return int(info.min), int(info.max)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value that has a code, over all channels."""
        low, high = self.limits
        zero = self.zero.astype(np.int64)
        return float(((low - zero) * self.scale).min()), float(((high - zero) * self.scale).max())


@dataclass(frozen=True)
class Unit:
    """Sites that share values and scale.

    Attributes:
        sites: In graph order.
        joins: Names of the Concat nodes between them.
    """

    sites: tuple[Site, ...]
    joins: tuple[str, ...]

    @property
    def sources(self) -> tuple[Site, ...]:
        """Those whose values are computed, not moved from another one."""
        return tuple(s for s in self.sites if s.op not in MOVERS) or self.sites[:1]

    @property
    def where(self) -> str:
        return self.joins[-1] if self.joins else self.sources[0].tensor

    @property
    def op(self) -> str:
        return "Concat" if self.joins else self.sources[0].op


@dataclass(frozen=True)
class Weight:
    """The stored weights of one node.

    Attributes:
        node: Name of the node.
        op: Its type.
        output: Name of its output in the float graph.
        rounded: What the codes stand for.
        original: What they were made from, None where that is not known or was changed on the way.
        codes: As stored.
        scale: One, or one for each channel of ``axis``.
        axis: Channel axis of the scales; None for one scale.
        depthwise: Whether every channel has a filter of its own.
    """

    node: str
    op: str
    output: str
    rounded: Array
    original: Array | None
    codes: Array
    scale: Array
    axis: int | None
    depthwise: bool


def read_sites(graph: Graph) -> tuple[Site, ...]:
    """Every site of a QDQ graph, in graph order.

    Raises:
        ModelError: The graph has none.
    """
    found: dict[str, Site] = {}
    chained: dict[str, Site] = {}
    for quantize in graph.nodes:
        source = quantize.inputs[0] if quantize.inputs else None
        if not is_op(quantize, "QuantizeLinear") or source is None or is_stored(source):
            continue
        behind = dequantizers(quantize)
        scale = array(quantize.inputs[1])
        if not behind or scale is None or quantize.outputs[0].is_graph_output():
            continue
        zero = array(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
        zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
        first = chained.get(str(source.name))
        producer = source.producer()
        tensor = first.tensor if first else _plain_name(source, behind)
        op, node = (producer.op_type, str(producer.name)) if producer is not None else ("input", tensor)
        key = str(quantize.outputs[0].name)
        site = Site(key, tensor, scale, zero, first.op if first else op, first.node if first else node)
        found[key] = site
        chained.update({str(d.outputs[0].name): site for d in behind})
    if not found:
        raise ModelError(
            "no activation of the network is quantized", hint="Give the float network, or a QDQ file"
        )
    return tuple(found.values())


def dequantizers(quantize: ir.Node) -> list[ir.Node]:
    """The DequantizeLinear nodes that read a QuantizeLinear."""
    return [u for u in quantize.outputs[0].consumers() if is_op(u, "DequantizeLinear")]


def _plain_name(source: ir.Value, behind: Sequence[ir.Node]) -> str:
    """The tensor's name in the float graph: an output's name has moved to what is dequantized."""
    outputs = [str(d.outputs[0].name) for d in behind if d.outputs[0].is_graph_output()]
    return outputs[0] if outputs else str(source.name)


def group_sites(graph: Graph, sites: Sequence[Site]) -> tuple[Unit, ...]:
    """Sites by unit, in graph order."""
    parent = {s.key: s.key for s in sites}
    by_key = {s.key: s for s in sites}

    def find(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    order = {s.key: i for i, s in enumerate(sites)}
    joins: dict[str, str] = {}
    for node in graph.nodes:
        if not is_op(node, *MOVERS):
            continue
        keys = [*_read_keys(node, by_key), *_written_keys(node, by_key)]
        same = [k for k in keys if _same(by_key[k], by_key[keys[-1]])]
        for other in same[1:]:
            first, second = sorted((find(same[0]), find(other)), key=order.__getitem__)
            parent[second] = first
        if node.op_type == "Concat" and len(same) > 2:
            joins[str(node.name)] = same[0]
    members: dict[str, list[Site]] = {}
    for site in sites:
        members.setdefault(find(site.key), []).append(site)
    named: dict[str, list[str]] = {}
    for node_name, key in joins.items():
        named.setdefault(find(key), []).append(node_name)
    return tuple(Unit(tuple(m), tuple(named.get(k, ()))) for k, m in members.items())


def _read_keys(node: ir.Node, known: dict[str, Site]) -> Iterator[str]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and is_op(producer, "DequantizeLinear") and producer.inputs[0] is not None:
            key = str(producer.inputs[0].name)
            if key in known:
                yield key


def _written_keys(node: ir.Node, known: dict[str, Site]) -> Iterator[str]:
    for value in node.outputs:
        for user in value.consumers():
            if is_op(user, "QuantizeLinear") and str(user.outputs[0].name) in known:
                yield str(user.outputs[0].name)


def _same(a: Site, b: Site) -> bool:
    return bool(
        a.scale.shape == b.scale.shape and np.allclose(a.scale, b.scale) and np.array_equal(a.zero, b.zero)
    )


def read_weights(graph: Graph, original: Graph | None) -> tuple[Weight, ...]:
    """The stored weights of a QDQ graph.

    Args:
        graph: The QDQ graph.
        original: The float graph that it was made from, where there is one.
    """
    makers = {str(v.name): n for n in original.nodes for v in n.outputs} if original is not None else {}
    found = []
    for node in graph.nodes:
        if not is_op(node, *MAC_OPS) or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        source = node.inputs[1].producer()
        codes = array(source.inputs[0]) if source is not None and is_op(source, "DequantizeLinear") else None
        if source is None or codes is None:
            continue
        rounded, scale, axis = _dequantized(source)
        output = str(node.outputs[0].name)
        maker = makers.get(output) or makers.get(output.removesuffix("_raw"))
        plain = array(maker.inputs[1]) if maker is not None and len(maker.inputs) > 1 else None
        depthwise = node.op_type == "Conv" and rounded.shape[1] == 1 and int_attribute(node, "group", 1) > 1
        found.append(
            Weight(
                str(node.name),
                node.op_type,
                output,
                rounded,
                plain if _fits(plain, rounded, scale, axis) else None,
                codes,
                scale,
                axis,
                depthwise,
            )
        )
    return tuple(found)


def _dequantized(node: ir.Node) -> tuple[Array, Array, int | None]:
    """What stored codes stand for, with scale and axis."""
    codes, scale = array(node.inputs[0]), array(node.inputs[1])
    zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scale is None:
        raise ModelError("its scale is computed, not stored", where=f"node '{node.name}'")
    axis = int_attribute(node, "axis", 1) % max(codes.ndim, 1) if scale.size > 1 else None
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if axis is not None else [1] * codes.ndim
    step = scale.reshape(shape) if codes.ndim else scale.reshape(())
    shift = 0 if zero is None else zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * codes.ndim)
    return np.asarray((codes.astype(np.int64) - shift) * step, np.float32), scale, axis


def _fits(plain: Array | None, rounded: Array, scale: Array, axis: int | None) -> bool:
    """Whether rounding ``plain`` gives about ``rounded``: an equalized weight is another one."""
    if plain is None or plain.shape != rounded.shape:
        return False
    shape = [-1 if i == axis else 1 for i in range(rounded.ndim)]
    steps = np.abs(plain - rounded) / np.maximum(scale.reshape(shape) if axis is not None else scale, 1e-12)
    return bool(np.mean(steps <= 1.5) > 0.95)


def with_weights(graph: Graph, weights: Sequence[Weight], original: Graph | None, *, rounded: bool) -> Graph:
    """``graph`` with its stored codes turned into floats: what they stand for, or what they were made from.

    Args:
        graph: The QDQ graph.
        weights: Of :func:`read_weights`.
        original: The float graph, for the biases.
        rounded: False takes the originals of weights, and of biases that are about the same.
    """
    result = graph.copy()
    chosen = {w.node: w for w in weights}
    makers = {str(n.name): n for n in original.nodes} if original is not None else {}
    main = result.model.graph
    for node in [n for n in main if is_op(n, "DequantizeLinear")]:
        if array(node.inputs[0]) is None:
            continue
        value, scale, axis = _dequantized(node)
        for use in list(node.outputs[0].uses()):
            label = str(use.node.name)
            held = value
            if not rounded and label in chosen and use.idx == 1:
                found = chosen[label].original
                held = value if found is None else found
            elif not rounded and label in chosen and use.idx == 2 and chosen[label].original is not None:
                maker = makers.get(label)
                bias = array(maker.inputs[2]) if maker is not None and len(maker.inputs) > 2 else None
                held = bias if bias is not None and _fits(bias, value, scale, axis) else value
            constant = add_constant(
                main, f"{node.outputs[0].name}.{label}.{use.idx}", held.astype(np.float32)
            )
            use.node.replace_input_with(use.idx, constant)
        main.remove(node, safe=True)
    _drop_unused(main)
    return result


def strip(graph: Graph, keep: Collection[str] = ()) -> Graph:
    """``graph`` without its sites but those to keep: what it computes when they do not round."""
    result = graph.copy()
    main = result.model.graph
    for quantize in [n for n in main if is_op(n, "QuantizeLinear")]:
        source, codes = quantize.inputs[0], quantize.outputs[0]
        if source is None or is_stored(source) or codes.is_graph_output() or str(codes.name) in keep:
            continue
        behind = dequantizers(quantize)
        if len(behind) != len(list(codes.consumers())):
            continue
        for node in behind:
            bypass(source, node.outputs[0])
        main.remove(quantize, safe=True)
    _drop_unused(main)
    return result


def _drop_unused(main: ir.Graph) -> None:
    for label, value in list(main.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            main.initializers.pop(label)
