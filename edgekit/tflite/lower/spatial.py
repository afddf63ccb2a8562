"""Resize and the exchange of pixels with channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import int_attribute
from edgekit.tflite.lower.builder import Builder, Val
from edgekit.tflite.lower.common import (
    image,
    image_order,
    image_shape,
    move,
    settle,
    shape_of,
    text_attribute,
)
from edgekit.tflite.lower.layout import NHWC, Atom, from_atoms, from_axes
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.model import Array

#: What may stand between a convolution and the DepthToSpace that it orders its channels for.
_KEEPS_CHANNELS = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "LeakyRelu", "PRelu"),
        *("Sigmoid", "Tanh", "HardSwish", "Gelu"),
    )
)
#: alignCorners and halfPixelCenters of the interpolations that ONNX's coordinate modes are.
_LINEAR = {
    "half_pixel": (False, True),
    "pytorch_half_pixel": (False, True),
    "align_corners": (True, False),
    "asymmetric": (False, False),
}


@lowering("Resize")
def resize(ctx: Builder, node: ir.Node) -> None:
    """RESIZE_NEAREST_NEIGHBOR where the same pixels are taken, RESIZE_BILINEAR."""
    val, runs = image(ctx, ctx.val(node), node)
    out = image_shape(shape_of(node.outputs[0]))
    if out[:2] != val.shape[:2]:
        raise RefusedError("it resizes channels", "resize height and width only")
    mode = text_attribute(node, "mode", "nearest")
    coordinates = text_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        op, found = "RESIZE_NEAREST_NEIGHBOR", _nearest_options(ctx, node, coordinates, val.shape, out)
    elif mode == "linear" and not int_attribute(node, "antialias", 0):
        op, found = "RESIZE_BILINEAR", _LINEAR.get(coordinates)
        if found is not None and any(
            abs(s * val.shape[i] - out[i]) > 1e-3
            for i, s in zip((2, 3), _scales(ctx, node, val.shape, out), strict=True)
        ):
            raise RefusedError("its scales are not the ratio of its sizes", "resize to sizes, not by scales")
    else:
        raise RefusedError(f"its mode is {mode}", "use nearest or linear without antialias")
    if found is None:
        raise RefusedError(f"its coordinates are {coordinates}", "use asymmetric with nearest_mode floor")
    order, dims = image_order(out, runs)
    options = {"alignCorners": found[0], "halfPixelCenters": found[1]}
    move(ctx, node, op, val, [val.tensor, ctx.ints("size", out[2:])], order, dims, options)


def _scales(
    ctx: Builder, node: ir.Node, inside: tuple[int, ...], out: tuple[int, ...]
) -> tuple[float, float]:
    given = ctx.const(node, 2)
    if given is None or given.data.size == 0:
        return out[2] / inside[2], out[3] / inside[3]
    scales = [float(s) for s in given.data.reshape(-1)]
    return (scales[-2] if len(scales) > 3 else 1.0), scales[-1]


def _nearest_options(
    ctx: Builder, node: ir.Node, coordinates: str, inside: tuple[int, ...], out: tuple[int, ...]
) -> tuple[bool, bool] | None:
    """The options under which TFLite takes the same pixels as ONNX, or None."""
    rounding = text_attribute(node, "nearest_mode", "round_prefer_floor")
    scales = _scales(ctx, node, inside, out)
    axes = [(scales[i], inside[i + 2], out[i + 2]) for i in (0, 1)]
    wanted = [_onnx_pixels(coordinates, rounding, *axis) for axis in axes]
    for options in ((False, False), (False, True), (True, False)):
        found = [_tflite_pixels(*options, *axis[1:]) for axis in axes]
        if all(w is not None and np.array_equal(w, f) for w, f in zip(wanted, found, strict=True)):
            return options
    return None


def _onnx_pixels(coordinates: str, rounding: str, scale: float, inside: int, out: int) -> Array | None:
    x = np.arange(out, dtype=np.float64)
    if coordinates == "asymmetric":
        place = x / scale
    elif coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and out > 1):
        place = (x + 0.5) / scale - 0.5
    elif coordinates == "align_corners" and out > 1:
        place = x * (inside - 1) / (out - 1)
    else:
        return None
    if rounding == "floor":
        index = np.floor(place)
    elif rounding == "ceil":
        index = np.ceil(place)
    else:
        index = np.ceil(place - 0.5) if rounding == "round_prefer_floor" else np.floor(place + 0.5)
    return np.clip(index, 0, inside - 1).astype(np.int64)


def _tflite_pixels(align: bool, half: bool, inside: int, out: int) -> Array:
    x = np.arange(out, dtype=np.float32)
    scale = np.float32((inside - 1) / (out - 1) if align and out > 1 else inside / out)
    place = (x + np.float32(0.5 if half else 0.0)) * scale
    # Halves go away from zero.
    index = np.floor(place + np.float32(0.5)) if align else np.floor(place)
    return np.asarray(np.clip(index, 0, inside - 1), np.int64)


@lowering("DepthToSpace")
def depth_to_space(ctx: Builder, node: ir.Node) -> None:
    """DEPTH_TO_SPACE, or the TRANSPOSE that it is; in CRD mode the channels have to lie with the pixels of a
    block outside."""
    val, out = ctx.val(node), image_shape(shape_of(node.outputs[0]))
    block = int_attribute(node, "blocksize", 1)
    if text_attribute(node, "mode", "DCR") == "DCR":
        val, _ = image(ctx, val, node, any_channels=False)
    else:
        val = _pixels_outside(ctx, val, block * block, node)
    if "DEPTH_TO_SPACE" in ctx.avoid:
        n, _, h, w = image_shape(val.shape)
        rows, columns = Atom(2, block, 1), Atom(3, block, 1)
        runs = [Atom(0, n, 1), Atom(2, h, block), Atom(3, w, block), rows, columns, Atom(1, out[1], 1)]
        _exchange(ctx, node, val, out, runs)
        return
    order, dims = image_order(out, (Atom(1, out[1], 1),))
    move(ctx, node, "DEPTH_TO_SPACE", val, [val.tensor], order, dims, {"blockSize": block})


def _pixels_outside(ctx: Builder, val: Val, pixels: int, node: ir.Node) -> Val:
    n, c, h, w = image_shape(val.shape)
    runs = [Atom(0, n, 1), Atom(2, h, 1), Atom(3, w, 1), Atom(1, pixels, 1), Atom(1, c // pixels, pixels)]
    why = "DepthToSpace in CRD mode takes neighbouring channels as pixels, TFLite distant ones"
    return ctx.arranged(val, from_atoms(val.shape, runs), (n, h, w, c), node, why)


@lowering("SpaceToDepth")
def space_to_depth(ctx: Builder, node: ir.Node) -> None:
    """SPACE_TO_DEPTH, or the TRANSPOSE that it is."""
    val, _ = image(ctx, ctx.val(node), node, any_channels=False)
    out = image_shape(shape_of(node.outputs[0]))
    block = int_attribute(node, "blocksize", 1)
    if "SPACE_TO_DEPTH" in ctx.avoid:
        n, c, _, _ = val.shape
        rows, columns = Atom(1, block, block * c), Atom(1, block, c)
        runs = [Atom(0, n, 1), Atom(2, out[2], 1), rows, Atom(3, out[3], 1), columns, Atom(1, c, 1)]
        _exchange(ctx, node, val, out, runs)
        return
    dims = tuple(out[a] for a in NHWC)
    move(ctx, node, "SPACE_TO_DEPTH", val, [val.tensor], from_axes(out, NHWC), dims, {"blockSize": block})


def _exchange(ctx: Builder, node: ir.Node, val: Val, out: tuple[int, ...], runs: list[Atom]) -> None:
    """Bind the result of ``node``, whose elements lie in the memory of ``val`` as ``runs`` say, to NHWC."""
    seen = replace(val, shape=out, order=from_atoms(out, runs))
    made = ctx.by_axes(seen, NHWC, node, f"{node.op_type} is written as the TRANSPOSE that it is")
    settle(ctx, node, made, "its result has another scale than its input")


def block_hints(nodes: list[ir.Node]) -> dict[str, int]:
    """Outputs of convolutions that only a DepthToSpace in CRD mode reads, with the pixels of its block.

    The convolution can write its channels in the order that TFLite's operator wants.
    """
    found = {}
    for node in nodes:
        if node.op_type != "DepthToSpace" or text_attribute(node, "mode", "DCR") != "CRD":
            continue
        value = node.inputs[0]
        while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
            maker = value.producer()
            if maker is None or maker.op_type not in _KEEPS_CHANNELS:
                break
            value = maker.inputs[0]
        maker = None if value is None else value.producer()
        if value is None or maker is None or maker.op_type != "Conv" or len(value.uses()) != 1:
            continue
        found[str(value.name)] = int_attribute(node, "blocksize", 1) ** 2
    return found
