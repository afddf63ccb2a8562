"""What the lowerings of many operators share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.parts import quantizer
from edgekit.passes.edit import static_shape
from edgekit.tflite.lower.builder import Builder, Form, Val
from edgekit.tflite.lower.layout import (
    NHWC,
    Atom,
    Order,
    Shape,
    atoms_of,
    axes_of,
    from_atoms,
    from_axes,
)
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.view import Const, bounds_of, fusable
from edgekit.tflite.model import Array, DType, Quantization


def shape_of(value: ir.Value | None) -> Shape:
    """The static shape of a tensor.

    Raises:
        RefusedError: A dimension is not known.
    """
    shape = static_shape(value)
    if shape is None:
        raise RefusedError("a shape around it is not static", "pin the shapes with --input-shape")
    return shape


def limits(form: Form) -> tuple[int, int]:
    """Smallest and largest code."""
    info = np.iinfo(form.dtype.numpy)
    return int(info.min), int(info.max)


def codes_of(data: Array, form: Form) -> Array:
    """Real values as codes of one scale (rounded half to even, clipped), or as they are in a float model."""
    q = form.quantization
    if q is None:
        return np.asarray(data, form.dtype.numpy)
    low, high = limits(form)
    with np.errstate(invalid="ignore"):
        codes = np.round(np.clip(data.astype(np.float64) / q.scale[0] + q.zero_point[0], -(2**31), 2**31))
    return np.asarray(np.clip(codes, low, high), form.dtype.numpy)


def const_form(data: Array, dtype: DType) -> Form:
    """Codes for stored real values: their range, in which zero has a code."""
    if dtype is DType.FLOAT32:
        return Form(dtype, None)
    low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    if dtype is DType.INT16:
        return Form(dtype, Quantization.single(max(-low, high, 1e-12) / 32767, 0))
    scale = np.float32(max((high - low) / 255, 1e-12))
    return Form(
        dtype, Quantization.single(float(scale), int(np.clip(np.round(-128 - low / scale), -128, 127)))
    )


def operand_codes(const: Const, dtype: DType) -> tuple[Array, Quantization | None]:
    """A stored operand in the type that a kernel wants; a float one is quantized where the model is."""
    q = const.quantization
    if dtype is DType.FLOAT32 or dtype in (DType.INT32, DType.BOOL):
        return const.real().astype(dtype.numpy), None
    if q is not None and len(q.scale) == 1 and const.data.dtype == dtype.numpy:
        return const.data, q
    real = const.real()
    form = const_form(real, dtype)
    return codes_of(real, form), form.quantization


def fuse_name(low: float, high: float, form: Form) -> str | None:
    """The activation that a kernel absorbs for these bounds; None where there is none.

    Codes end where they end, so a bound at or beyond their ends needs nothing.
    """
    names = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if (low, high) in names:
        return names[low, high]
    q = form.quantization
    if q is None:
        return None
    first, last = limits(form)
    below = low == -math.inf or round(low / float(q.scale[0])) + int(q.zero_point[0]) <= first
    above = high == math.inf or round(high / float(q.scale[0])) + int(q.zero_point[0]) >= last
    if below and above:
        return "NONE"
    return "RELU" if above and low == 0.0 else None


def clipped(ctx: Builder, val: Val, low: float, high: float, node: ir.Node) -> Val:
    """``val`` cut off by MAXIMUM and MINIMUM, in the same codes."""
    form = Form(val.dtype, val.quantization)
    for op, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if math.isinf(bound):
            continue
        limit = ctx.store(f"{node.name}/{op.lower()}", codes_of(np.array([bound]), form), form.quantization)
        new = ctx.like(val, f"{val.tensor}_clipped")
        ctx.emit(op, [val.tensor, limit], [new.tensor], source=node)
        val = new
    return val


def compute(
    ctx: Builder,
    node: ir.Node,
    op: str,
    inputs: Sequence[str | None],
    order: Order,
    dims: Sequence[int],
    options: Mapping[str, Any] | None = None,
    *,
    fuse: bool = False,
    form: Form | None = None,
) -> None:
    """Emit an operator that writes the codes of its result, with the activation behind it where it can.

    Args:
        ctx: The model under construction.
        node: ONNX node with one output.
        op: TFLite operator.
        inputs: Its inputs.
        order: Memory of the result.
        dims: Stored shape of the result.
        options: Its options, without an activation.
        fuse: Whether its kernel can absorb an activation.
        form: What the kernel writes where it cannot write any codes; a QUANTIZE follows.
    """
    wanted, shape = ctx.form(node), shape_of(node.outputs[0])
    made, value = form or wanted, node.outputs[0]
    chosen, bounds = dict(options or {}), None
    if fuse:
        value, taken, bounds = absorbed(ctx, node, made)
        chosen |= taken
    val = ctx.result(value, shape, order, dims, made)
    ctx.emit(op, inputs, [val.tensor], chosen, source=node)
    if bounds is not None:
        val = clipped(ctx, val, *bounds, node)
    ctx.bind(value, ctx.requantized(val, wanted, node, f"{op} writes a scale of its own"))


def absorbed(
    ctx: Builder, node: ir.Node, made: Form
) -> tuple[ir.Value, dict[str, str], tuple[float, float] | None]:
    """What a kernel that absorbs the activation behind ``node`` writes, which is done with it then.

    Returns:
        The ONNX tensor; the options that say it; the bounds that are left to cut off by other operators.
    """
    value = node.outputs[0]
    activation = fusable(value) if quantizer(value) is None else None
    if activation is None:
        return value, {}, None
    ctx.done.add(str(activation.name))
    bounds = bounds_of(activation)
    name = fuse_name(*bounds, made)
    options = {} if name is None else {"fusedActivationFunction": name}
    return activation.outputs[0], options, bounds if name is None else None


def move(
    ctx: Builder,
    node: ir.Node,
    op: str,
    val: Val,
    inputs: Sequence[str | None],
    order: Order,
    dims: Sequence[int],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Emit an operator that keeps the codes of ``val``; a QUANTIZE follows where the graph has others."""
    shape = shape_of(node.outputs[0])
    new = ctx.result(node.outputs[0], shape, order, dims, Form(val.dtype, val.quantization))
    ctx.emit(op, inputs, [new.tensor], options, source=node)
    settle(ctx, node, new, f"{op} keeps the scale of its input, and its output has another")


def settle(ctx: Builder, node: ir.Node, val: Val, why: str, output: int = 0) -> None:
    """Let ``val`` be an output of ``node``, in the codes that the graph has for it."""
    value = node.outputs[output]
    if ctx.quantized and val.dtype is not DType.INT32 and quantizer(value) is not None:
        val = ctx.requantized(val, ctx.form(node, output), node, why)
    ctx.bind(value, val)


def apart(
    ctx: Builder, val: Val, node: ir.Node, axes: Sequence[int], *, pieces: bool = False
) -> tuple[Val, tuple[int, ...], tuple[Atom, ...]]:
    """``val`` with stored dimensions of their own for ``axes`` of the ONNX tensor.

    Args:
        ctx: The model under construction.
        val: The tensor.
        node: The node that asks.
        axes: Axes of the ONNX tensor, each of which must lie in memory as one run.
        pieces: Allow an axis to lie as several runs.

    Returns:
        The tensor; for each stored dimension its ONNX axis; the runs, one for each dimension (of size 1 for
        units).
    """
    order = axes_of(val.order, val.shape, val.dims)
    if order is None:
        atoms = atoms_of(val.order, val.shape)
        if atoms is not None and all(pieces or sum(a.axis == x for a in atoms) <= 1 for x in axes):
            missing = [a for a in range(len(val.shape)) if val.shape[a] == 1]
            atoms = (*(Atom(a, 1, 1) for a in missing), *atoms)
            dims = tuple(a.size for a in atoms)
            return ctx.reshaped(val, dims), tuple(a.axis for a in atoms), atoms
        order = NHWC if len(val.shape) == 4 else tuple(range(len(val.shape)))
        val = ctx.by_axes(val, order, node, "it needs an axis whose elements lie in another order")
    dims = tuple(val.shape[a] for a in order)
    return ctx.reshaped(val, dims), order, tuple(Atom(a, val.shape[a], 1) for a in order)


def with_sizes(atoms: Sequence[Atom], shape: Shape, axes: Sequence[int]) -> Order:
    """The order of a result of ``shape`` that has the runs of its operand, whole ones along ``axes``."""
    runs = [Atom(a.axis, shape[a.axis], 1) if a.axis in axes else a for a in atoms]
    return from_atoms(shape, runs)


def image(
    ctx: Builder, val: Val, node: ir.Node, *, any_channels: bool = True
) -> tuple[Val, tuple[Atom, ...]]:
    """``val`` as NHWC; a sequence [N, C, L] as an image of height 1.

    Args:
        ctx: The model under construction.
        val: A tensor of rank 3 or 4.
        node: The node that asks.
        any_channels: Whether channels may lie in another order than ONNX's.

    Returns:
        The tensor, of ONNX rank 4, and the runs of its channels.
    """
    val = Val(val.tensor, image_shape(val.shape), val.order, val.dims, val.dtype, val.quantization)
    n, c, h, w = val.shape
    atoms = atoms_of(val.order, val.shape)
    channels = () if atoms is None else tuple(a for a in atoms if a.axis == 1)
    wanted = [Atom(0, n, 1), Atom(2, h, 1), Atom(3, w, 1)]
    if any_channels and channels and from_atoms(val.shape, [*wanted, *channels]) == val.order:
        return ctx.reshaped(val, (n, h, w, c)), channels
    val = ctx.by_axes(val, NHWC, node, f"{node.op_type} needs NHWC")
    return val, (Atom(1, c, 1),)


def image_shape(shape: Shape) -> Shape:
    """The ONNX shape [N, C, H, W] of an image or, with height 1, of a sequence [N, C, L].

    Raises:
        RefusedError: The rank is another.
    """
    if len(shape) == 3:
        return (shape[0], shape[1], 1, shape[2])
    if len(shape) != 4:
        raise RefusedError(
            f"it works on rank {len(shape)}", "TFLite has kernels for one and two spatial axes only"
        )
    return (shape[0], shape[1], shape[2], shape[3])


def image_order(shape: Shape, channels: Sequence[Atom]) -> tuple[Order, Shape]:
    """Order and stored shape of an NHWC result of ONNX shape [N, C, H, W]."""
    n, c, h, w = shape
    runs = [Atom(0, n, 1), Atom(2, h, 1), Atom(3, w, 1), *channels]
    return from_atoms(shape, runs), (n, h, w, c)


def nhwc_order(shape: Shape) -> Order:
    return from_axes(shape, NHWC)


def fixed_form(dtype: DType, scale8: float, zero8: int) -> Form | None:
    """The codes that a kernel with an output scale of its own writes; None in a float model."""
    if dtype is DType.FLOAT32:
        return None
    if dtype is DType.INT16:
        return Form(dtype, Quantization.single(1 / 32768, 0))
    return Form(dtype, Quantization.single(scale8, zero8))


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    found = node.attributes.get(name)
    return list(default) if found is None else [int(i) for i in found.as_ints()]


def text_attribute(node: ir.Node, name: str, default: str) -> str:
    found = node.attributes.get(name)
    return default if found is None else found.as_string()


def stored_ints(ctx: Builder, node: ir.Node, index: int) -> list[int] | None:
    """Integers from a stored input; None where the node leaves it out.

    Raises:
        RefusedError: They are computed.
    """
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    found = ctx.const(node, index)
    if found is None:
        raise RefusedError(f"its input {index} is computed", "fold constants and pin shapes before")
    return [int(i) for i in found.data.reshape(-1)]
