"""Pools and reductions."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.passes.edit import int_attribute
from edgekit.tflite.lower.builder import Builder
from edgekit.tflite.lower.common import (
    apart,
    compute,
    image,
    image_order,
    image_shape,
    ints_attribute,
    move,
    shape_of,
    stored_ints,
)
from edgekit.tflite.lower.layout import canonical, strides_of
from edgekit.tflite.lower.padding import (
    includes_pads,
    no_dilation,
    padded_image,
    window_of,
    window_options,
)
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering

_REDUCE = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}


@lowering("MaxPool", "AveragePool")
def pool(ctx: Builder, node: ir.Node) -> None:
    """MAX_POOL_2D and AVERAGE_POOL_2D, which keep scale and channel order."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise RefusedError("its indices are read", "TFLite's pool has none")
    no_dilation(node)
    largest = node.op_type == "MaxPool"
    val, runs = image(ctx, ctx.val(node), node)
    out = image_shape(shape_of(node.outputs[0]))
    kernel = tuple(ints_attribute(node, "kernel_shape", []))
    window = window_of(node, kernel, (val.shape[2], val.shape[3]), (out[2], out[3]))
    if not largest:
        if int_attribute(node, "ceil_mode", 0) and _overhangs(node, window.after, len(kernel)):
            raise RefusedError("its last windows overhang the image", "switch its ceil_mode off")
        if window.scheme is None and not includes_pads(node):
            raise RefusedError(
                "it leaves out padding that is not TFLite's SAME", "pad evenly or set count_include_pad"
            )
    force = not largest and includes_pads(node)
    if (window.scheme is None or force) and len(runs) > 1:
        val, runs = image(ctx, val, node, any_channels=False)
    val, scheme = padded_image(ctx, val, window, node, lowest=largest, force=force)
    options = window_options(window, scheme)
    options |= {"filterHeight": window.kernel[0], "filterWidth": window.kernel[1]}
    order, dims = image_order(out, runs)
    op = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    move(ctx, node, op, val, [val.tensor], order, dims, options)


def _overhangs(node: ir.Node, after: tuple[int, int], rank: int) -> bool:
    given = ints_attribute(node, "pads", [0] * (2 * rank))[rank:]
    return any(a > g for a, g in zip(after[2 - rank :], given, strict=True))


@lowering("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Builder, node: ir.Node) -> None:
    """A reduction over all spatial axes."""
    op = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    reduce(ctx, node, op, list(range(2, len(shape_of(node.inputs[0])))), keep=True)


@lowering("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def reduction(ctx: Builder, node: ir.Node) -> None:
    """MEAN, SUM, REDUCE_MAX, REDUCE_MIN."""
    axes = stored_ints(ctx, node, 1)
    if axes is None:
        axes = ints_attribute(node, "axes", [])
    rank = len(ctx.val(node).shape)
    if not axes:
        if int_attribute(node, "noop_with_empty_axes", 0):
            raise RefusedError("it reduces nothing", "remove it")
        axes = list(range(rank))
    reduce(
        ctx,
        node,
        _REDUCE[node.op_type],
        [a % rank for a in axes],
        keep=bool(int_attribute(node, "keepdims", 1)),
    )


def reduce(ctx: Builder, node: ir.Node, op: str, axes: list[int], *, keep: bool) -> None:
    """Emit a reduction.

    A mean of images is MEAN, not AVERAGE_POOL_2D: it rescales, XNNPACK takes it, and so does Ethos-U.
    """
    val = ctx.val(node)
    val, where, runs = apart(ctx, val, node, axes, pieces=True)
    kept = [a for a in runs if a.axis not in axes]
    out = shape_of(node.outputs[0])
    names = [a for a in range(len(val.shape)) if keep or a not in axes]
    strides = strides_of(out)
    order = canonical([(a.size, a.step * strides[names.index(a.axis)]) for a in kept])
    positions = [i for i, axis in enumerate(where) if axis in axes]
    dims = tuple(1 if i in positions else n for i, n in enumerate(val.dims))
    inputs = [val.tensor, ctx.ints("axes", positions)]
    options = {"keepDims": True}
    if op in ("REDUCE_MAX", "REDUCE_MIN"):
        move(ctx, node, op, val, inputs, order, dims, options)
    else:
        compute(ctx, node, op, inputs, order, dims, options, form=None)
