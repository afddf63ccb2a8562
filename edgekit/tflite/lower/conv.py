"""Convolutions. Weights are [O, H, W, I] in TFLite, [1, H, W, O] when depthwise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import int_attribute
from edgekit.tflite.lower.builder import Builder, Val
from edgekit.tflite.lower.common import (
    absorbed,
    clipped,
    compute,
    image,
    image_order,
    image_shape,
    ints_attribute,
    shape_of,
    text_attribute,
)
from edgekit.tflite.lower.layout import NHWC, Atom, element_order, from_axes
from edgekit.tflite.lower.padding import padded_image, window_of, window_options
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.lower.view import Const
from edgekit.tflite.model import Array, DType, Quantization


def weight_of(ctx: Builder, node: ir.Node, index: int = 1) -> Const:
    """The stored weights of a node: int8 codes in a quantized model, else float32.

    Raises:
        RefusedError: They are computed, or not quantized as TFLite wants them.
    """
    weight = ctx.const(node, index)
    if weight is None:
        raise RefusedError("its weights are computed, not stored", "fold constants before")
    if not ctx.quantized:
        return Const(weight.name, weight.real())
    if weight.quantization is None or weight.data.dtype != np.int8:
        raise RefusedError("its weights are not int8", "quantize them with a scheme of int8 weights")
    if weight.quantization.zero_point.any():
        raise RefusedError("its weights have a zero point", "TFLite wants symmetric weights")
    return weight


def weight_quantization(
    weight: Const, axis: int, stored: int, order: Array | None = None
) -> Quantization | None:
    """The scales of weights whose output channels lie at ``stored``.

    Args:
        weight: Weights in ONNX's shape.
        axis: ONNX axis of the output channels.
        stored: Where TFLite has it.
        order: Output channels in the order in which they are stored.

    Raises:
        RefusedError: The scales belong to another axis.
    """
    q = weight.quantization
    if q is None or len(q.scale) == 1:
        return q
    if q.axis != axis:
        raise RefusedError(
            f"its weights have scales along axis {q.axis}, not along output channels", "set weight_axis"
        )
    scale = q.scale if order is None else q.scale[order]
    return Quantization(scale, np.zeros(len(scale), np.int64), stored)


def bias_of(
    ctx: Builder,
    node: ir.Node,
    source: Val,
    scales: Quantization | None,
    outputs: int,
    order: Array | None = None,
    added: Array | None = None,
) -> str:
    """The bias as a kernel adds it to its accumulator: step = input step x weight step, zero where none is.

    Args:
        ctx: The model under construction.
        node: A node whose input 2 is the bias.
        source: What it computes from.
        scales: Of the weights, in the order in which output channels are stored.
        outputs: Output channels.
        order: Output channels in the order in which they are stored.
        added: The bias, where it is no input of the node.
    """
    bias = ctx.const(node, 2) if added is None else Const(f"{node.name}/bias", added)
    if bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        raise RefusedError("its bias is computed, not stored", "fold constants before")
    real = np.zeros(outputs, np.float32) if bias is None else bias.real().reshape(-1)
    if real.size == 1:
        real = np.repeat(real, outputs)
    if order is not None:
        real = real[order]
    name = f"{node.name}/bias" if bias is None else bias.name
    if source.quantization is None or scales is None:
        return ctx.store(name, real.astype(np.float32))
    step = (scales.scale * source.quantization.scale[0]).astype(np.float32)
    kind = DType.INT64 if source.dtype is DType.INT16 else DType.INT32
    if bias is not None and bias.quantization is not None and bias.data.size == outputs:
        codes = bias.data.reshape(-1) if order is None else bias.data.reshape(-1)[order]
        held = np.broadcast_to(bias.quantization.scale, outputs)
        held = held if order is None else held[order]
        if not np.array_equal(held, np.broadcast_to(step, outputs)):
            codes = _bias_codes(real, step)
    else:
        codes = _bias_codes(real, step)
    zero = np.zeros(len(step), np.int64)
    return ctx.store(name, codes.astype(kind.numpy), Quantization(step, zero, 0))


def _bias_codes(real: Array, step: Array) -> Array:
    codes = np.round(real.astype(np.float64) / step.astype(np.float64))
    return np.clip(codes, -(2.0**31) + 1, 2.0**31 - 1)


@lowering("Conv")
def conv(ctx: Builder, node: ir.Node) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D; channels in another order are met by the order of the weights."""
    weight = weight_of(ctx, node)
    groups, outputs = int_attribute(node, "group", 1), weight.data.shape[0]
    val = ctx.val(node)
    channels = val.shape[1]
    depthwise = groups == channels and groups > 1 and outputs % groups == 0
    free = groups == 1 or (depthwise and outputs == groups)
    val, runs = image(ctx, val, node, any_channels=free)
    out = image_shape(shape_of(node.outputs[0]))
    kernel = weight.data.shape[2:]
    window = window_of(node, kernel, (val.shape[2], val.shape[3]), (out[2], out[3]))
    val, scheme = padded_image(ctx, val, window, node)
    codes = weight.data if len(kernel) == 2 else weight.data[:, :, None]
    options = window_options(window, scheme)
    options |= {"dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1]}
    order: Array | None = None
    made: tuple[Atom, ...] = (Atom(1, outputs, 1),)
    if depthwise:
        op, stored = "DEPTHWISE_CONV_2D", codes.transpose(1, 2, 3, 0)
        options["depthMultiplier"] = outputs // groups
        if len(runs) > 1:
            order, made = element_order(runs), runs
            stored = stored[..., order]
        scales = weight_quantization(weight, 0, 3, order)
    else:
        op, stored = "CONV_2D", codes.transpose(0, 2, 3, 1)
        if len(runs) > 1:
            stored = stored[..., element_order(runs)]
        block = ctx.blocks.get(str(node.outputs[0].name))
        if block is not None:
            # The reader is a DepthToSpace that wants the pixels of a block outside of the channels.
            made = (Atom(1, block, 1), Atom(1, outputs // block, block))
            order = element_order(made)
            stored = stored[order]
        scales = weight_quantization(weight, 0, 0, order)
    place, dims = image_order(out, made)
    inputs = [
        val.tensor,
        ctx.store(weight.name, stored, scales),
        bias_of(ctx, node, val, scales, outputs, order),
    ]
    compute(ctx, node, op, inputs, place, dims, options, fuse=True)


@lowering("ConvTranspose")
def conv_transpose(ctx: Builder, node: ir.Node) -> None:
    """TRANSPOSE_CONV; groups become zeros in dense weights, padding that TFLite lacks is cut off."""
    weight = weight_of(ctx, node)
    if any(d != 1 for d in ints_attribute(node, "dilations", [1])):
        raise RefusedError("it is dilated", "TFLite's TRANSPOSE_CONV is not; use another kernel size")
    val, runs = image(ctx, ctx.val(node), node)
    out = image_shape(shape_of(node.outputs[0]))
    codes = weight.data if weight.data.ndim == 4 else weight.data[:, :, None]
    groups, outputs = int_attribute(node, "group", 1), out[1]
    stored, scales = _dense_transposed(weight, codes, groups)
    if len(runs) > 1:
        stored = stored[..., element_order(runs)]
    strides = ints_attribute(node, "strides", [1] * (weight.data.ndim - 2))
    strides = [1] * (2 - len(strides)) + strides
    whole_same = "TRANSPOSE_CONV" in ctx.avoid
    full, begins, scheme = _transposed_size(
        node, val.shape, out, codes.shape[2:], strides, whole_same=whole_same
    )
    shape = (out[0], outputs, *full)
    dims = tuple(shape[a] for a in NHWC)
    options = {"padding": scheme, "strideH": strides[0], "strideW": strides[1]}
    inputs = [
        ctx.ints("shape", dims),
        ctx.store(weight.name, stored, scales),
        val.tensor,
        bias_of(ctx, node, val, scales, outputs),
    ]
    if full == out[2:]:
        compute(ctx, node, "TRANSPOSE_CONV", inputs, from_axes(shape, NHWC), dims, options, fuse=True)
        return
    form = ctx.form(node)
    value, taken, bounds = absorbed(ctx, node, form)
    whole = ctx.new(f"{node.name}/whole", dims, form)
    ctx.emit("TRANSPOSE_CONV", inputs, [whole], options | taken, source=node)
    cut = tuple(out[a] for a in NHWC)
    made = ctx.result(value, out, from_axes(out, NHWC), cut, form)
    place = [ctx.ints("begin", [0, *begins, 0]), ctx.ints("size", cut)]
    ctx.emit("SLICE", [whole, *place], [made.tensor], source=node)
    ctx.bind(value, made if bounds is None else clipped(ctx, made, *bounds, node))


def _dense_transposed(weight: Const, codes: Array, groups: int) -> tuple[Array, Quantization | None]:
    """Weights [I, O / groups, H, W] as [O, H, W, I] with their scales."""
    inner, each = codes.shape[:2]
    q = weight.quantization
    if groups == 1:
        return codes.transpose(1, 2, 3, 0), weight_quantization(weight, 1, 0)
    per = inner // groups
    dense = np.zeros((each * groups, *codes.shape[2:], inner), codes.dtype)
    for g in range(groups):
        rows = slice(g * per, (g + 1) * per)
        dense[g * each : (g + 1) * each, ..., rows] = codes[rows].transpose(1, 2, 3, 0)
    if q is None or len(q.scale) == 1:
        return dense, q
    if q.axis != 1:
        raise RefusedError("its weights have scales along input channels", "set weight_axis = 1")
    scale = np.tile(q.scale, groups)
    return dense, Quantization(scale, np.zeros(len(scale), np.int64), 0)


def _transposed_size(
    node: ir.Node,
    shape: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    *,
    whole_same: bool,
) -> tuple[tuple[int, int], list[int], str]:
    """Size that TFLite computes, where ONNX's result begins in it, and the padding scheme.

    ``whole_same`` allows SAME only where the result is the input times the stride.
    """
    rank = len(ints_attribute(node, "kernel_shape", kernel))
    pads = ints_attribute(node, "pads", [0] * (2 * rank))
    begins = [0] * (2 - rank) + pads[:rank]
    auto = text_attribute(node, "auto_pad", "NOTSET")
    whole = [(shape[i + 2] - 1) * strides[i] + kernel[i] for i in (0, 1)]
    totals = [max(0, whole[i] - out[i + 2]) for i in (0, 1)]
    if auto.startswith("SAME"):
        begins = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    if any(out[i + 2] + begins[i] > whole[i] for i in (0, 1)):
        raise RefusedError("its output padding reaches beyond the kernel", "use a smaller output_padding")
    if (whole[0], whole[1]) == out[2:]:
        return (out[2], out[3]), [0, 0], "VALID"
    same = all(begins[i] == totals[i] // 2 and shape[i + 2] == -(-out[i + 2] // strides[i]) for i in (0, 1))
    whole_steps = all(out[i + 2] == shape[i + 2] * strides[i] for i in (0, 1))
    if same and (whole_steps or not whole_same):
        return (out[2], out[3]), [0, 0], "SAME"
    return (whole[0], whole[1]), begins, "VALID"
