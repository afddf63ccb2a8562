"""Equalizing the ranges of channels inside one tensor (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

Let ``T = f(W1 x + b1)`` be read by ``W2 T + b2``. For any positive vector ``s`` over the channels

    f(z / s) = f(z) / s      when f is linear, ReLU, LeakyReLU or PReLU,

so dividing the rows of ``W1`` and ``b1`` by ``s`` and multiplying the columns of ``W2`` by ``s`` changes
nothing but the ranges. Channel ``c`` of ``T`` shrinks by ``s_c``; small channels are raised (``s_c < 1``)
towards the largest, which fixes the step of the whole tensor.

1. ``Clip(0, h)`` is equal as long as a raised channel stays below ``h``, which the seen ranges decide: nearly
   exact.
2. SiLU is ``z * sigmoid(z)``: exact when the gate reads ``s * (z / s)``, which costs one multiplication.
3. A depthwise reader has a weight scale of its own for each channel, so ranges can be made fully equal. Any
   other reader holds the columns of one row to one scale; there the square root shares the burden between
   activation and weight (Xiao et al. 2022, arXiv:2211.10438, equation 4 with exponent 0.5).
4. Pooling between ``T`` and its readers passes channels through and does not matter. Through a Concat, the
   channels of ``T`` meet a slice of the reader's columns, and are raised towards the largest channel of the
   whole Concat: that repairs branches of different range.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import add_constant
from edgekit.quantize.histogram import Array, Histogram
from edgekit.quantize.plan import name

#: Largest factor by which a channel is raised.
LIMIT = 32.0
#: Share of a Clip's ceiling that a raised channel may reach on the samples, so that unseen ones stay
#: below it.
HEADROOM = 0.8
#: Ops between a tensor and its readers that keep channels apart and scale with their input.
TRANSPARENT = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
#: Activations that scale with their input.
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu"})


@dataclass(frozen=True)
class Pair:
    """A tensor whose channels can be rescaled.

    Attributes:
        tensor: The activation between the pair.
        writer: The node whose rows are divided.
        gate: The Sigmoid of a SiLU, whose input gets its scale back; None for other activations.
        readers: The nodes whose columns are multiplied, each with the first of the columns.
        joined: The Concat output that shares the tensor's scale; None when there is none.
        ceiling: Value that the activation clips at; None when it does not.
    """

    tensor: str
    writer: ir.Node
    gate: ir.Node | None
    readers: tuple[tuple[ir.Node, int], ...]
    ceiling: float | None
    joined: str | None


def equalize(graph: Graph, histograms: Mapping[str, Histogram], only: Collection[str] | None = None) -> Graph:
    """Equalize every tensor that can be.

    Args:
        graph: A captured float graph.
        histograms: Ranges by tensor; tensors without one are left alone.
        only: Names of the tensors to treat; None for all but those behind a SiLU, which cost a
            multiplication.
    """
    result = graph.copy()
    refused: list[Refusal] = []
    gains: dict[str, float] = {}
    for pair in find_pairs(result, refused):
        if pair.tensor not in histograms or (
            pair.gate is not None if only is None else pair.tensor not in only
        ):
            continue
        factors = _factors(pair, histograms)
        if factors.min() > 0.9:
            continue
        gains[pair.tensor] = float(1.0 / factors.min())
        _apply(result, pair, factors)
    summary = (
        f"{len(gains)} tensors, channels raised by up to {max(gains.values()):.0f}x"
        if gains
        else "no tensor needed it"
    )
    return result.with_change(Change("equalize", summary, tuple(refused), {"raised": gains}))


def channel_ranges(histogram: Histogram) -> Array:
    """Largest magnitude of each channel, shape ``[C]``."""
    return np.maximum(np.abs(histogram.channel_min), np.abs(histogram.channel_max)).astype(np.float64)


def find_pairs(graph: Graph, refused: list[Refusal] | None = None) -> list[Pair]:
    """Every tensor that :func:`equalize` could treat; the reasons against the others go to ``refused``."""
    found = []
    for node in graph.nodes:
        if node.op_type != "Conv" or array(node.inputs[1]) is None:
            continue
        pair, reason = _pair(node)
        if pair is not None:
            found.append(pair)
        elif refused is not None:
            refused.append(Refusal(name(node), reason))
    return found


def _pair(writer: ir.Node) -> tuple[Pair | None, str]:
    tensor, gate, ceiling = writer.outputs[0], None, None
    uses = list(tensor.consumers())
    if len(uses) == 1 and uses[0].op_type in HOMOGENEOUS:
        tensor = uses[0].outputs[0]
    elif len(uses) == 1 and uses[0].op_type == "Clip":
        low, high = (array(v) for v in (*uses[0].inputs[1:], None, None)[:2])
        if low is None or float(low) != 0.0 or high is None:
            return None, "its Clip does not start at zero"
        tensor, ceiling = uses[0].outputs[0], float(high)
    elif len(uses) == 2 and {u.op_type for u in uses} == {"Sigmoid", "Mul"}:
        gate = next(u for u in uses if u.op_type == "Sigmoid")
        product = next(u for u in uses if u.op_type == "Mul")
        if gate.outputs[0] not in product.inputs or len(gate.outputs[0].uses()) != 1:
            return None, "its Sigmoid gates another tensor"
        tensor = product.outputs[0]
    readers, joined, reason = _readers(tensor, 0)
    if reason:
        return None, reason
    return Pair(str(tensor.name), writer, gate, tuple(readers), ceiling, joined), ""


def _readers(tensor: ir.Value, first: int) -> tuple[list[tuple[ir.Node, int]], str | None, str]:
    """The Convs that read ``tensor``, the column that its first channel meets, the Concat on the way."""
    if tensor.is_graph_output():
        return [], None, f"'{tensor.name}' is an output of the graph"
    readers: list[tuple[ir.Node, int]] = []
    joined: str | None = None
    for use in tensor.uses():
        node = use.node
        if node.op_type == "Conv" and use.idx == 0 and array(node.inputs[1]) is not None:
            readers.append((node, first))
            continue
        offset = concat_offset(node, use.idx) if node.op_type == "Concat" else None
        if node.op_type not in TRANSPARENT and offset is None:
            return (
                [],
                None,
                f"{node.op_type} '{node.name}' reads '{tensor.name}' and takes no scale per channel",
            )
        more, further, reason = _readers(node.outputs[0], first + (offset or 0))
        if reason:
            return [], None, reason
        readers += more
        joined = further or (str(node.outputs[0].name) if offset is not None else joined)
    return readers, joined, "" if readers else f"nothing reads '{tensor.name}'"


def concat_offset(node: ir.Node, index: int) -> int | None:
    """Channels in front of an input of a Concat over channels; None for another axis or unknown shapes."""
    shapes = [v.shape for v in node.inputs if v is not None]
    if any(s is None or len(s) < 3 for s in shapes) or node.attributes["axis"].as_int() not in (
        1,
        1 - len(shapes[0] or ()),
    ):
        return None
    sizes = [s[1] for s in shapes[:index] if s is not None]
    known = [s for s in sizes if isinstance(s, int)]
    return sum(known) if len(known) == len(sizes) else None


def _factors(pair: Pair, histograms: Mapping[str, Histogram]) -> Array:
    ranges = np.maximum(channel_ranges(histograms[pair.tensor]), 1e-8)
    top = ranges.max()
    if pair.joined in histograms:
        top = max(top, channel_ranges(histograms[str(pair.joined)]).max())
    columns = [_columns(r)[o : o + len(ranges)] for r, o in pair.readers if not _is_depthwise(r)]
    factors = ranges / top
    if columns:
        weight = np.maximum(np.max(columns, axis=0), 1e-8)
        shared = np.sqrt(ranges / weight)
        factors = np.maximum(factors, shared / shared[ranges.argmax()] * np.sqrt(ranges.max() / top))
    # Never lower a channel, nor lift a dead one out of sight.
    factors = np.clip(factors, 1.0 / LIMIT, 1.0)
    if pair.ceiling is not None:
        factors = np.maximum(factors, np.minimum(ranges / (HEADROOM * pair.ceiling), 1.0))
    return np.asarray(factors, np.float32)


def _is_depthwise(node: ir.Node) -> bool:
    weight = array(node.inputs[1])
    return weight is not None and weight.shape[1] == 1 and _group(node) > 1


def _group(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _columns(node: ir.Node) -> Array:
    """Largest weight that each input channel meets, relative to its row, shape ``[C_in]``."""
    weight = np.asarray(array(node.inputs[1]), np.float64)
    groups, per_group = _group(node), weight.shape[1]
    magnitude = np.abs(weight).reshape(groups, weight.shape[0] // groups, per_group, -1).max(-1)
    rows = np.maximum(magnitude.max(2, keepdims=True), 1e-12)
    return np.asarray((magnitude / rows).max(1).reshape(-1))


def _apply(graph: Graph, pair: Pair, factors: Array) -> None:
    weight = np.asarray(array(pair.writer.inputs[1]))
    shape = [-1] + [1] * (weight.ndim - 1)
    _set_constant(graph, pair.writer, 1, weight / factors.reshape(shape))
    bias = array(pair.writer.inputs[2]) if len(pair.writer.inputs) > 2 else None
    if bias is not None:
        _set_constant(graph, pair.writer, 2, bias / factors)
    for reader, first in pair.readers:
        weight = np.asarray(array(reader.inputs[1]))
        groups, per_group = _group(reader), weight.shape[1]
        columns = np.ones(groups * per_group, np.float32)
        columns[first : first + len(factors)] = factors
        per_row = np.repeat(columns.reshape(groups, per_group), weight.shape[0] // groups, axis=0)
        _set_constant(graph, reader, 1, weight * per_row.reshape(*per_row.shape, *[1] * (weight.ndim - 2)))
    if pair.gate is not None:
        scaled = pair.writer.outputs[0]
        value = add_constant(
            graph.model.graph, f"{pair.tensor}.equalize", factors.reshape(1, -1, *[1] * (weight.ndim - 2))
        )
        restore = ir.node("Mul", [scaled, value], name=f"{pair.tensor}.restore")
        restore.outputs[0].name = f"{scaled.name}.restored"
        restore.outputs[0].shape, restore.outputs[0].type = scaled.shape, scaled.type
        graph.model.graph.insert_before(pair.gate, restore)
        pair.gate.replace_input_with(0, restore.outputs[0])


def _set_constant(graph: Graph, node: ir.Node, index: int, data: Array) -> None:
    """Give ``node`` new data for an initializer; other readers of the old one keep it."""
    old = node.inputs[index]
    if old is None:
        raise ValueError(f"node '{node.name}' has no input {index}")
    shared = len(old.uses()) > 1
    label = f"{old.name}.{name(node)}" if shared else str(old.name)
    if not shared:
        graph.model.graph.initializers.pop(str(old.name))
    node.replace_input_with(index, add_constant(graph.model.graph, label, data.astype(np.float32)))
