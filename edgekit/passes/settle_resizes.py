"""Write a nearest-neighbour Resize in the one way that kernels agree on.

Along each axis ``y_i = x[index(i)]``, with indices that follow from attributes and sizes (ONNX, Resize).

    1.  the indices are floor(i / scale)    a Resize with ``asymmetric`` and ``floor``; by a whole factor most
                                            of the other modes are that
    2.  otherwise                           slices along each axis, joined, or a Gather

Some compilers read ``nearest_mode`` in few combinations and compute another one silently in the rest.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import is_constant, static_shape
from edgekit.passes.pick import pick
from edgekit.passes.rewrite import Verdict, given, rewrite_nodes
from edgekit.passes.subgraph import Builder

_COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
_PLAIN = ("asymmetric", "floor")


def settle_resizes(graph: Graph) -> Graph:
    """Rewrite every nearest-neighbour Resize of another mode; results keep their names."""
    words = "wrote {} nearest-neighbour Resizes in one way"
    return rewrite_nodes(graph, "settle_resizes", words, ("Resize",), _judge, _rewrite)


def _modes(node: ir.Node) -> tuple[str, str]:
    def text(name: str, default: str) -> str:
        attribute = node.attributes.get(name)
        return attribute.as_string() if attribute is not None else default

    coordinates = text("coordinate_transformation_mode", "half_pixel")
    return coordinates, text("nearest_mode", "round_prefer_floor")


def _judge(node: ir.Node) -> Verdict:
    mode = node.attributes.get("mode")
    if (mode is not None and mode.as_string() != "nearest") or _modes(node) == _PLAIN:
        return None
    if _modes(node)[0] not in _COORDINATES:
        return f"its coordinates are '{_modes(node)[0]}'"
    if static_shape(node.inputs[0]) is None or _scales(node) is None:
        return "its shapes or scales are not known"
    return ""


def _scales(node: ir.Node) -> list[float] | None:
    """Of every axis."""
    before, after = static_shape(node.inputs[0]) or (), static_shape(node.outputs[0])
    if after is None:
        return None
    given_scales = node.inputs[2] if len(node.inputs) > 2 else None
    held = array(given_scales) if is_constant(given_scales) else None
    if held is None or not held.size:
        return [b / a for a, b in zip(before, after, strict=True)]
    if held.size == len(before):
        return [float(s) for s in held]
    axes = node.attributes.get("axes")
    if axes is None or held.size != len(axes.as_ints()):
        return None
    scales = [1.0] * len(before)
    for axis, scale in zip(axes.as_ints(), held, strict=True):
        scales[axis] = float(scale)
    return scales


def nearest(modes: tuple[str, str], size: int, count: int, scale: float) -> list[int]:
    """Indices along an axis of ``size`` for a result of ``count``; in float32, as kernels compute them.

    Args:
        modes: ``coordinate_transformation_mode`` and ``nearest_mode``.
        size: Length of the axis.
        count: Length of the result.
        scale: As the operator has it, which need not be ``count / size``.
    """
    one, half, step = np.float32(1), np.float32(0.5), np.float32(scale)
    found = []
    for i in range(count):
        place = np.float32(i)
        if modes[0] == "align_corners":
            x = place * np.float32(size - 1) / np.float32(count - 1) if count > 1 else one * 0
        elif modes[0] == "asymmetric":
            x = place / step
        else:
            x = (place + half) / step - half if count > 1 or modes[0] == "half_pixel" else one * 0
        whole = {
            "floor": math.floor(x),
            "ceil": math.ceil(x),
            "round_prefer_floor": math.ceil(x - half),
            "round_prefer_ceil": math.floor(x + half),
        }[modes[1]]
        found.append(min(max(whole, 0), size - 1))
    return found


def _rewrite(build: Builder, node: ir.Node) -> None:
    x, modes = given(node, 0), _modes(node)
    shapes = zip(static_shape(x) or (), static_shape(node.outputs[0]) or (), _scales(node) or (), strict=True)
    axes = [(nearest(modes, *sizes), nearest(_PLAIN, *sizes)) for sizes in shapes]
    if all(wanted == plain for wanted, plain in axes):
        node.attributes["coordinate_transformation_mode"] = ir.AttrString(
            "coordinate_transformation_mode", _PLAIN[0]
        )
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", _PLAIN[1])
        return
    y = x
    for axis, (wanted, _) in enumerate(axes):
        y = pick(build, y, axis, wanted)
    build.take(node.outputs[0], build.node("Identity", "same", x) if y is x else y)
