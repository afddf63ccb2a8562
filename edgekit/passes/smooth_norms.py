"""Move the outlying channels of a normalization's result into the weights of the layers that read it.

    y = n gamma + beta;      y W + b = (y / s) (diag(s) W) + b          for any positive s over the channels

so that gamma and beta divided by s, and row k of W times s_k, leave the layers' results as they are.
Transformers have a few channels that reach ten times what the others do; one step for all channels then
drowns the others. With

    s_k = max|y_k|^a / max|W_k|^(1 - a)

(SmoothQuant, Xiao et al. 2022, arXiv:2211.10438, equation 4) the difficulty is shared between activations and
weights. Where the normalization comes last, as in BERT, its result also skips to an Add: that branch is
multiplied by s, one operator (as Gamma Migration does, Wei et al. 2022, arXiv:2209.13325).

Reshapes that keep the channels may stand in front of a layer. Nothing can be done in this way about the sum
in front of a normalization: it normalizes over the channels, and no factor for each of them survives that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import int_attribute, is_constant, set_constant, static_shape
from edgekit.passes.subgraph import Rewriter

Array = np.ndarray[Any, Any]

#: Factors stay between this and its inverse.
LIMIT = 32.0
#: Share by which the largest channel must shrink against the others for the change to be made.
WORTH = 0.8


@dataclass(frozen=True)
class Smoothable:
    """A normalization whose channels can be rescaled.

    Attributes:
        node: The LayerNormalization.
        layers: The MatMuls and Gemms whose rows are multiplied.
        shortcuts: Uses that get the factor as an operator: a node and the position of its input.
    """

    node: ir.Node
    layers: tuple[ir.Node, ...]
    shortcuts: tuple[tuple[ir.Node, int], ...]

    @property
    def tensor(self) -> str:
        """Name of the result."""
        return str(self.node.outputs[0].name)


def smooth_norms(
    graph: Graph,
    ranges: Mapping[str, Array],
    *,
    only: Collection[str] | None = None,
    strength: float = 0.5,
    shortcuts: bool = True,
) -> Graph:
    """Rescale the channels of every normalization that has outliers and layers behind it.

    Args:
        graph: A float graph with LayerNormalization nodes.
        ranges: Largest magnitude of each channel, ``[C]``, by the name of a normalization's result; those
            without are left alone.
        only: Names of the results to treat; None for all.
        strength: The exponent a: 0 leaves all to the activations, 1 all to the weights.
        shortcuts: Whether a branch that is no layer may get an operator of its own.

    Raises:
        UsageError: ``strength`` is not between 0 and 1, or a range does not fit its tensor.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"a strength of {strength:g} is no share", valid=["a number from 0 to 1"])
    result = graph.copy()
    refused: list[Refusal] = []
    smoothed: dict[str, float] = {}
    rewriter = Rewriter(result.model)
    for found in find_smoothable(result, refused):
        if found.tensor not in ranges or (only is not None and found.tensor not in only):
            continue
        if found.shortcuts and not shortcuts:
            reader = found.shortcuts[0][0]
            refused.append(Refusal(str(found.node.name), f"{reader.op_type} '{reader.name}' reads it too"))
            continue
        peaks = _peaks(found, ranges[found.tensor])
        factors = _factors(peaks, _rows(found), strength)
        gain = _spread(peaks) / _spread(peaks / factors)
        if gain * WORTH < 1:
            continue
        smoothed[found.tensor] = float(gain)
        _apply(rewriter, found, factors)
    summary = f"smoothed {len(smoothed)} normalizations"
    if smoothed:
        summary += f", largest channel against the others down to 1/{max(smoothed.values()):.1f}"
    return result.with_change(Change("smooth_norms", summary, tuple(refused), {"smoothed": smoothed}))


def find_smoothable(graph: Graph, refused: list[Refusal] | None = None) -> list[Smoothable]:
    """Every normalization that :func:`smooth_norms` could treat; reasons against others go to ``refused``."""
    found = []
    for node in graph.nodes:
        if node.op_type != "LayerNormalization" or node.domain:
            continue
        item, reason = _judge(node)
        if item is not None:
            found.append(item)
        elif refused is not None:
            refused.append(Refusal(str(node.name), reason))
    return found


def _judge(node: ir.Node) -> tuple[Smoothable | None, str]:
    value = node.outputs[0]
    shape = static_shape(value)
    if shape is None or int_attribute(node, "axis", -1) not in (-1, len(shape) - 1):
        return None, "it does not normalize over the last axis alone"
    if not all(v is None or is_constant(v) for v in node.inputs[1:]):
        return None, "its gamma or beta is computed, not stored"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return None, "its mean or deviation is read too"
    if value.is_graph_output():
        return None, "its result is an output of the graph"
    layers: list[ir.Node] = []
    shortcuts: list[tuple[ir.Node, int]] = []
    _follow(value, shape[-1], layers, shortcuts)
    if not layers:
        return None, "no layer with stored weights reads its result"
    return Smoothable(node, tuple(dict.fromkeys(layers)), tuple(shortcuts)), ""


def _follow(
    value: ir.Value, channels: int, layers: list[ir.Node], shortcuts: list[tuple[ir.Node, int]]
) -> None:
    for use in value.uses():
        node = use.node
        if use.idx == 0 and _is_layer(node, channels):
            layers.append(node)
            continue
        shape = static_shape(node.outputs[0]) if node.op_type in ("Reshape", "Identity") else None
        if not node.domain and shape and shape[-1] == channels and not node.outputs[0].is_graph_output():
            further: list[ir.Node] = []
            others: list[tuple[ir.Node, int]] = []
            _follow(node.outputs[0], channels, further, others)
            if further:
                layers += further
                shortcuts += others
                continue
        shortcuts.append((node, use.idx))


def _is_layer(node: ir.Node, channels: int) -> bool:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    if node.op_type == "Gemm" and int_attribute(node, "transA", 0):
        return False
    weight = array(node.inputs[1]) if is_constant(node.inputs[1]) else None
    return weight is not None and weight.ndim >= 2 and weight.shape[_axis(node)] == channels


def _axis(node: ir.Node) -> int:
    """Axis of the inputs in a layer's weights."""
    return -1 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else -2


def _stored(value: ir.Value | None) -> Array:
    held = array(value)
    if held is None:
        raise ValueError("a constant is missing")
    return held


def _rows(found: Smoothable) -> Array:
    """Largest weight that each channel meets in any of the layers, ``[C]``."""
    rows = []
    for layer in found.layers:
        weight = np.moveaxis(np.abs(_stored(layer.inputs[1])), _axis(layer), 0)
        rows.append(weight.reshape(weight.shape[0], -1).max(1))
    return np.asarray(np.max(rows, axis=0), np.float64)


def _peaks(found: Smoothable, given: Array) -> Array:
    peaks = np.abs(np.asarray(given, np.float64)).reshape(-1)
    gamma = _stored(found.node.inputs[1])
    if peaks.size != gamma.size:
        raise UsageError(f"{peaks.size} ranges for {gamma.size} channels", where=f"tensor '{found.tensor}'")
    return np.maximum(peaks, 1e-8)


def _factors(peaks: Array, rows: Array, strength: float) -> Array:
    factors = peaks**strength / np.maximum(rows, 1e-8) ** (1 - strength)
    # Only the ratios matter to the ranges; around 1 they keep gamma and weights at their sizes.
    factors /= np.exp(np.log(factors).mean())
    return np.asarray(np.clip(factors, 1 / LIMIT, LIMIT), np.float32)


def _spread(peaks: Array) -> float:
    return float(peaks.max() / np.median(peaks))


def _apply(rewriter: Rewriter, found: Smoothable, factors: Array) -> None:
    node = found.node
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            held = _stored(node.inputs[index])
            _give(rewriter, node, index, held / factors.reshape(held.shape))
    for layer in found.layers:
        weight = _stored(layer.inputs[1])
        shape = [1] * weight.ndim
        shape[_axis(layer)] = -1
        _give(rewriter, layer, 1, weight * factors.reshape(shape))
    if not found.shortcuts:
        return
    first = min((reader for reader, _ in found.shortcuts), key=_position(rewriter.graph))
    build = rewriter.before(first, found.tensor)
    by_source: dict[str, ir.Value] = {}
    for reader, index in found.shortcuts:
        source = reader.inputs[index]
        if source is None:
            raise ValueError(f"{reader.name} has no input {index}")
        if str(source.name) not in by_source:
            by_source[str(source.name)] = build.node(
                "Mul", "restored", source, build.constant("factors", factors)
            )
        reader.replace_input_with(index, by_source[str(source.name)])


def _position(graph: ir.Graph) -> Any:
    order = {node: index for index, node in enumerate(graph)}
    return lambda node: order[node]


def _give(rewriter: Rewriter, node: ir.Node, index: int, data: Array) -> None:
    """New content for a constant; other readers of the old one keep it."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    content = np.asarray(data, np.float32)
    if len(value.uses()) == 1:
        set_constant(value, content)
    else:
        node.replace_input_with(index, rewriter.constant(f"{value.name}.{node.name}", content))
