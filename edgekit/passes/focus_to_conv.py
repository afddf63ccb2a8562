"""Write a Focus layer and the convolution behind it as one convolution on the pixels.

A Focus layer (YOLOv5, YOLOX) joins the pixels of every ``s x s`` block in channels: with offsets
``(a_m, b_m)``

    F[m C + c, i, j] = x[c, s i + a_m, s j + b_m].

A convolution of F with weights ``W``, stride ``t`` and padding ``p`` is a convolution of ``x`` with

    W'[o, c, s u + a_m, s v + b_m] = W[o, m C + c, u, v],    stride s t,    padding s p:

the same products in another order, without the strided slices, which few targets run well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import Names, add_constant, static_shape


@dataclass(frozen=True)
class _Picked:
    """Every ``step``-th pixel of ``source`` in both directions, from ``offset`` on."""

    source: ir.Value
    offset: tuple[int, int]
    step: tuple[int, int]


def focus_to_conv(graph: Graph) -> Graph:
    """Replace every Focus layer that only convolutions read."""
    result = graph.copy()
    main = result.model.graph
    names = Names(main)
    refused: list[Refusal] = []
    replaced = 0
    for join in [n for n in main if n.op_type == "Concat"]:
        picked = _focus(join)
        if not picked:
            continue
        readers = [use.node for use in join.outputs[0].uses()]
        reason = next((r for r in map(_unfit, readers) if r), "")
        if reason or not readers or join.outputs[0].is_graph_output():
            refused.append(Refusal(str(join.name), reason or "it is an output of the graph"))
            continue
        for conv in readers:
            _merge(main, conv, picked, names)
        _remove_unread(main, join)
        replaced += 1
    if not replaced and not refused:
        return graph
    summary = f"{replaced} Focus layers merged into the convolutions behind them"
    return result.with_change(Change("focus_to_conv", summary, tuple(refused)))


def _focus(join: ir.Node) -> list[_Picked]:
    """What each input of a Concat picks; empty when the Concat does not end a Focus layer."""
    shape = static_shape(join.outputs[0])
    if shape is None or len(shape) != 4 or join.attributes["axis"].as_int() not in (1, -3):
        return []
    picked = [_picked(v) for v in join.inputs if v is not None]
    found = [p for p in picked if p is not None]
    if len(found) < 2 or len(found) < len(picked):
        return []
    first, pixels = found[0], static_shape(found[0].source)
    step = first.step[0]
    if pixels is None or step < 2 or pixels[2] % step or pixels[3] % step:
        return []
    same = all(p.source is first.source and p.step == (step, step) for p in found)
    inside = all(0 <= o < step for p in found for o in p.offset)
    return found if same and inside and len({p.offset for p in found}) == len(found) else []


def _picked(value: ir.Value) -> _Picked | None:
    """Follow Slices backwards to the tensor that they pick pixels from."""
    offset, step = [0, 0], [1, 1]
    node = value.producer()
    if node is None or node.op_type != "Slice":
        return None
    while node is not None and node.op_type == "Slice":
        source, shape = node.inputs[0], static_shape(node.inputs[0])
        parts = [array(v) if v is not None else None for v in node.inputs[1:]]
        if source is None or shape is None or len(parts) < 3 or any(p is None for p in parts):
            return None
        starts, ends, axes = (np.asarray(p).ravel() for p in parts[:3])
        steps = np.asarray(parts[3]).ravel() if len(parts) > 3 else np.ones(len(axes), np.int64)
        for start, end, axis, stride in zip(starts, ends, axes % len(shape), steps, strict=True):
            if axis not in (2, 3) or stride < 1 or start < 0 or end < shape[axis]:
                return None
            # x[p::q][a::b] = x[p + q a :: q b]
            offset[axis - 2] = int(start) + int(stride) * offset[axis - 2]
            step[axis - 2] *= int(stride)
        value, node = source, source.producer()
    return _Picked(value, (offset[0], offset[1]), (step[0], step[1]))


def _unfit(conv: ir.Node) -> str:
    weight = array(conv.inputs[1]) if conv.op_type == "Conv" else None
    if weight is None or weight.ndim != 4:
        return f"{conv.op_type} '{conv.name}' reads it"
    if _ints(conv, "dilations", [1, 1]) != [1, 1] or _ints(conv, "group", [1]) != [1]:
        return f"Conv '{conv.name}' is dilated or grouped"
    if "auto_pad" in conv.attributes and conv.attributes["auto_pad"].as_string() != "NOTSET":
        return f"Conv '{conv.name}' pads by a rule"
    return ""


def _merge(main: ir.Graph, conv: ir.Node, picked: list[_Picked], names: Names) -> None:
    source, step = picked[0].source, picked[0].step[0]
    old = np.asarray(array(conv.inputs[1]))
    channels = old.shape[1] // len(picked)
    weight = np.zeros((old.shape[0], channels, step * old.shape[2], step * old.shape[3]), old.dtype)
    for m, part in enumerate(picked):
        a, b = part.offset
        weight[:, :, a::step, b::step] = old[:, m * channels : (m + 1) * channels]
    held = conv.inputs[1]
    conv.replace_input_with(0, source)
    label = str(held.name) if held is not None else str(conv.name)
    if held is not None and len(held.uses()) == 1:
        main.initializers.pop(label)
    else:
        label = names.fresh(f"{label}.pixels")
    conv.replace_input_with(1, add_constant(main, label, weight))
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(weight.shape[2:]))
    conv.attributes["strides"] = ir.AttrInt64s("strides", [step * t for t in _ints(conv, "strides", [1, 1])])
    conv.attributes["pads"] = ir.AttrInt64s("pads", [step * p for p in _ints(conv, "pads", [0, 0, 0, 0])])


def _ints(node: ir.Node, key: str, default: list[int]) -> list[int]:
    if key not in node.attributes:
        return default
    attribute = node.attributes[key]
    return [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())


def _remove_unread(main: ir.Graph, node: ir.Node) -> None:
    """Remove a node and then those before it that nothing else reads."""
    sources = [v for v in node.inputs if v is not None]
    main.remove(node, safe=True)
    for value in sources:
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            if all(not out.uses() for out in producer.outputs) and producer in main:
                _remove_unread(main, producer)
        elif value.is_initializer() and not value.uses():
            main.initializers.pop(str(value.name), None)
