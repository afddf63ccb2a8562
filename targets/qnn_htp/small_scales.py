"""Weight scales that HTP's 16-bit kernels can carry.

A layer's sums become codes of its output by a factor, input scale x weight scale / output scale. Where it is
below 2^-24 for some channel, kernels with 16-bit outputs put out the largest code all over that channel,
whatever the sum is (onnxruntime-qnn 2.7.0; 8-bit outputs are right down to 2^-30). It happens in channels
whose weights are next to nothing, of which networks with weight decay have some.

Larger scales cost nothing there: a step of a weight moves the output by less than a hundredth of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, array
from edgekit.parts import clipped, is_op, is_stored, quantizer
from edgekit.passes.edit import add_constant
from edgekit.quantize.plan import MAC_OPS

Array = np.ndarray[Any, Any]
#: Smallest factor that is right in 16 bits, with a fifth on top.
FLOOR = 1.2 * 2.0**-24


def raise_small_scales(graph: Graph) -> Graph:
    """The QDQ graph with such weights, and the biases beside them, in larger steps.

    Args:
        graph: A QDQ graph.

    Returns:
        The graph itself where there are none.
    """
    result = graph.copy()
    raised = {}
    for node in list(result.model.graph):
        count = _raise(result.model.graph, node) if is_op(node, *MAC_OPS) else 0
        if count:
            raised[str(node.name)] = count
    if not raised:
        return graph
    summary = (
        f"raised the weight scales of {sum(raised.values())} channels that 16-bit kernels would not carry"
    )
    return result.with_change(Change("raise_small_scales", summary, (), {"channels": raised}))


@dataclass(frozen=True)
class _Stored:
    """Stored codes and the DequantizeLinear that reads them."""

    maker: ir.Node
    codes: Array
    scales: Array

    @classmethod
    def of(cls, value: ir.Value | None) -> Self | None:
        maker = None if value is None else value.producer()
        if maker is None or not is_op(maker, "DequantizeLinear"):
            return None
        codes, scales = (array(v) for v in maker.inputs[:2])
        return None if codes is None or scales is None else cls(maker, codes, scales)


def _raise(main: ir.Graph, node: ir.Node) -> int:
    """Channels of one layer whose scales were raised."""
    step, out, weight = _step(node.inputs[0]), _out_step(node), _Stored.of(node.inputs[1])
    if step is None or out is None or weight is None:
        return 0
    bias = _Stored.of(node.inputs[2]) if len(node.inputs) > 2 else None
    scales, maker = weight.scales, weight.maker
    if bias is not None and scales.size not in (1, bias.scales.size):
        return 0  # groups that share scales: one channel of them may not be moved alone
    fresh = np.maximum(scales, np.float32(FLOOR * out / step))
    if np.array_equal(fresh, scales):
        return 0
    shares = scales.astype(np.float64) / fresh
    axis = maker.attributes["axis"].as_int() if "axis" in maker.attributes else 1
    shape = [-1 if i == axis else 1 for i in range(weight.codes.ndim)] if scales.size > 1 else ()
    codes = np.round(weight.codes * shares.reshape(shape)).astype(weight.codes.dtype)
    node.replace_input_with(1, _again(main, maker, codes, fresh))
    if bias is not None:
        codes = np.round(bias.codes * shares).astype(bias.codes.dtype)
        steps = np.broadcast_to((fresh * np.float32(step)).astype(np.float32), bias.scales.shape)
        node.replace_input_with(2, _again(main, bias.maker, codes, steps.copy()))
    for old in (weight, bias):
        if old is not None and not old.maker.outputs[0].uses():
            main.remove(old.maker, safe=True)
    return int((fresh != scales).sum())


def _again(main: ir.Graph, maker: ir.Node, codes: Array, scales: Array) -> ir.Value:
    """A DequantizeLinear beside another one, of other codes."""
    name = f"{maker.name}.raised"
    while any(name == n.name for n in main) or f"{name}_codes" in main.initializers:
        name += "'"
    inputs = [
        add_constant(main, f"{name}_codes", codes),
        add_constant(main, f"{name}_scales", scales),
        *maker.inputs[2:],
    ]
    node = ir.node("DequantizeLinear", inputs, dict(maker.attributes), name=name)
    out, old = node.outputs[0], maker.outputs[0]
    out.name, out.shape, out.type = f"{name}_dequantized", old.shape, old.type
    main.insert_before(maker, node)
    return out


def _step(value: ir.Value | None) -> float | None:
    """The step of a computed tensor that a layer reads; None where it reads no codes."""
    maker = None if value is None else value.producer()
    if maker is None or not is_op(maker, "DequantizeLinear") or (value is not None and is_stored(value)):
        return None
    scale = array(maker.inputs[1])
    return None if scale is None or scale.size != 1 else float(scale.reshape(()))


def _out_step(node: ir.Node) -> float | None:
    """The step of a layer's 16-bit output, behind the activation that it absorbs; None for other outputs."""
    value = node.outputs[0]
    behind = next((u for u in value.consumers() if clipped(u) is node), None)
    if behind is not None:
        value = behind.outputs[0]
    maker = quantizer(value)
    if maker is None:
        return None
    scale, zero = array(maker.inputs[1]), array(maker.inputs[2])
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint16:
        return None
    return float(scale.reshape(()))
