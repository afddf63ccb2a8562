"""The questions that the rules of this target ask about single nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import int_attribute, static_shape

Broken = Callable[[ir.Node], bool]
_MORE_EQUATIONS = frozenset({"bhwc,hkc->bhwk", "bhwc,wkc->bhwk"})


def shape(value: ir.Value | None) -> tuple[int, ...]:
    return static_shape(value) or ()


def stored(node: ir.Node, index: int) -> bool:
    """Whether an input is stored, in float or as codes."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return False
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        value = maker.inputs[0]
    return array(value) is not None


def computed(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None and not stored(node, index)


def text(node: ir.Node, key: str, default: str) -> str:
    return node.attributes[key].as_string() if key in node.attributes else default


def integers(node: ir.Node, key: str) -> tuple[int, ...]:
    return tuple(int(v) for v in node.attributes[key].as_ints()) if key in node.attributes else ()


def above_4d(node: ir.Node) -> bool:
    return len(shape(node.inputs[0])) > 4


def three_d(node: ir.Node) -> bool:
    return len(shape(node.inputs[0])) == 5


def dilated(node: ir.Node) -> bool:
    return any(d != 1 for d in integers(node, "dilations"))


def shared_groups(node: ir.Node) -> bool:
    return int_attribute(node, "group", 1) > 1 and shape(node.inputs[1])[1:2] != (1,)


def scaled(node: ir.Node) -> bool:
    return any(key in node.attributes and node.attributes[key].as_float() != 1.0 for key in ("alpha", "beta"))


def computed_weights(node: ir.Node) -> bool:
    return computed(node, 1)


def computed_bias(node: ir.Node) -> bool:
    return computed(node, 2)


def stored_first(node: ir.Node) -> bool:
    return stored(node, 0)


def stored_weights_above_4d(node: ir.Node) -> bool:
    return above_4d(node) and stored(node, 1)


def batches_above_4d(node: ir.Node) -> bool:
    return math.prod(shape(node.inputs[0])[:-3]) > 1 and above_4d(node) and not stored(node, 1)


def uncommon_einsum(node: ir.Node) -> bool:
    """Whether an Einsum is anything but ``[batch, m, k] x [batch, k, n]``, the second perhaps transposed."""
    equation = text(node, "equation", "").replace(" ", "")
    if equation in _MORE_EQUATIONS:
        return False
    operands, _, result = equation.partition("->")
    parts = operands.split(",")
    if len(parts) != 2 or len({len(p) for p in (*parts, result)}) != 1 or len(result) < 3:
        return True
    (left, right), batch = parts, result[:-2]
    k = left[-1]
    plain = right[-2:] == k + result[-1]
    turned = right[-2:] == result[-1] + k
    return not (left == batch + result[-2] + k and right[:-2] == batch and (plain or turned))


def two_outputs(node: ir.Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output())


def beyond_edge(node: ir.Node) -> bool:
    """Whether rounding the output size up adds a window."""
    if not int_attribute(node, "ceil_mode", 0):
        return False
    kernel, size = integers(node, "kernel_shape"), shape(node.inputs[0])[2:]
    strides = integers(node, "strides") or (1,) * len(kernel)
    pads = integers(node, "pads") or (0,) * 2 * len(kernel)
    for i, (s, k, stride) in enumerate(zip(size, kernel, strides, strict=True)):
        if (s + pads[i] + pads[i + len(kernel)] - k) % stride:
            return True
    return False


def several_slopes(node: ir.Node) -> bool:
    return math.prod(shape(node.inputs[1])) > 1


def not_last_axis(node: ir.Node) -> bool:
    rank = len(shape(node.inputs[0]))
    return int_attribute(node, "axis", -1) % rank != rank - 1


def not_p2(node: ir.Node) -> bool:
    return int_attribute(node, "p", 2) != 2


def selects_last(node: ir.Node) -> bool:
    return bool(int_attribute(node, "select_last_index", 0))


def uncommon_sum(node: ir.Node) -> bool:
    return any(int_attribute(node, key, 0) for key in ("exclusive", "reverse"))


def many(node: ir.Node) -> bool:
    return len(node.inputs) != 2


def integer_exponent(node: ir.Node) -> bool:
    return node.inputs[1] is not None and node.inputs[1].dtype != ir.DataType.FLOAT


def casts_codes(node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    return source is not None and source.dtype == ir.DataType.FLOAT and result.dtype != ir.DataType.FLOAT


def scatters_largest(node: ir.Node) -> bool:
    return text(node, "reduction", "none") in ("max", "min")


def wraps(node: ir.Node) -> bool:
    return text(node, "mode", "constant") == "wrap"


def cubic(node: ir.Node) -> bool:
    return text(node, "mode", "linear") in ("cubic", "bicubic")


def resizes_channels(node: ir.Node) -> bool:
    return shape(node.inputs[0])[:2] != shape(node.outputs[0])[:2]


def antialiased(node: ir.Node) -> bool:
    return bool(int_attribute(node, "antialias", 0))


def other_pixels(node: ir.Node) -> bool:
    """Whether HTP's nearest pixels are others than ONNX's, along any axis."""
    if text(node, "mode", "nearest") != "nearest":
        return False
    way = text(node, "coordinate_transformation_mode", "half_pixel")
    rounding = text(node, "nearest_mode", "round_prefer_floor")
    if way not in _HTP_ROUNDING or (way == "asymmetric" and rounding in ("ceil", "round_prefer_floor")):
        return True  # the second pair is refused, the same pixels or not
    factors = array(node.inputs[2]) if len(node.inputs) > 2 else None
    sizes = list(zip(shape(node.inputs[0]), shape(node.outputs[0]), strict=True))
    known = factors if factors is not None and factors.size == len(sizes) else [o / i for i, o in sizes]
    for (before, after), factor in zip(sizes, known, strict=True):
        wanted = _pixels(before, after, float(factor), way, rounding)
        if wanted != _pixels(before, after, float(factor), way, _HTP_ROUNDING[way]):
            return True
    return False


#: How HTP rounds coordinates, found by comparing.
_HTP_ROUNDING = {
    "asymmetric": "floor",
    "half_pixel": "round_prefer_ceil",
    "align_corners": "round_prefer_ceil",
    "pytorch_half_pixel": "round_prefer_floor",
}


def _pixels(before: int, after: int, factor: float, way: str, rounding: str) -> list[int]:
    """Which input pixel each output pixel takes, as the ONNX operator specification has it."""
    index = np.arange(after)
    x: np.ndarray[Any, np.dtype[Any]]
    if way == "asymmetric":
        x = index / factor
    elif way == "align_corners":
        x = index * (before - 1) / max(after - 1, 1)
    else:
        x = (index + 0.5) / factor - 0.5
        if way == "pytorch_half_pixel" and after == 1:
            x = np.zeros(1)
    # Coordinates that are halves but for float noise count as halves, as in float32 kernels.
    x = np.round(x, 5)
    found = {
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
    }[rounding]
    return [int(i) for i in np.clip(found, 0, before - 1)]


def part_pixels(node: ir.Node) -> bool:
    """Whether the stated factor gives no whole number of pixels, so that output / input is another factor."""
    factors = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if (
        factors is None
        or factors.size == 0
        or text(node, "coordinate_transformation_mode", "") == "align_corners"
    ):
        return False
    sizes = zip(shape(node.inputs[0]), shape(node.outputs[0]), factors, strict=True)
    return any(abs(before * float(factor) - after) > 1e-3 for before, after, factor in sizes)
