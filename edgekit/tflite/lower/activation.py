"""Functions of one tensor. They keep its memory; softmax and the like want their axis innermost."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.parts import is_op, quantizer
from edgekit.passes.edit import float_attribute, int_attribute
from edgekit.tflite.lower.builder import Builder, Form, Val
from edgekit.tflite.lower.common import clipped, compute, fixed_form, fuse_name, settle, text_attribute
from edgekit.tflite.lower.layout import atoms_of, from_atoms, linear
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.lower.view import bounds_of
from edgekit.tflite.model import DType, Quantization

#: Scale and zero point of int8 results that kernels fix.
_FIXED = {
    "LOGISTIC": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "SOFTMAX": (1 / 256, -128),
    "L2_NORMALIZATION": (1 / 128, 0),
}
_PLAIN = {
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "HardSwish": "HARD_SWISH",
    "Elu": "ELU",
    "Exp": "EXP",
    "Log": "LOG",
    "Abs": "ABS",
}


@lowering("Sigmoid", "Tanh", "HardSwish", "Elu", "Exp", "Log", "Abs")
def plain(ctx: Builder, node: ir.Node) -> None:
    """One operator of the same memory."""
    op, val = _PLAIN[node.op_type], ctx.val(node)
    if op == "ELU" and float_attribute(node, "alpha", 1.0) != 1.0:
        raise RefusedError("its alpha is not 1", "TFLite's ELU has none")
    form = fixed_form(val.dtype, *_FIXED[op]) if op in _FIXED else None
    compute(ctx, node, op, [val.tensor], val.order, val.dims, form=form)


@lowering("Gelu")
def gelu(ctx: Builder, node: ir.Node) -> None:
    """GELU, by tanh where the node says so."""
    val = ctx.val(node)
    options = {"approximate": text_attribute(node, "approximate", "none") == "tanh"}
    compute(ctx, node, "GELU", [val.tensor], val.order, val.dims, options)


@lowering("LeakyRelu")
def leaky_relu(ctx: Builder, node: ir.Node) -> None:
    """LEAKY_RELU."""
    val = ctx.val(node)
    options = {"alpha": float_attribute(node, "alpha", 0.01)}
    compute(ctx, node, "LEAKY_RELU", [val.tensor], val.order, val.dims, options)


@lowering("Relu", "Clip")
def relu(ctx: Builder, node: ir.Node) -> None:
    """RELU, RELU6, RELU_N1_TO_1, or MAXIMUM and MINIMUM; nothing where the codes end at the bounds."""
    val, (low, high) = ctx.val(node), bounds_of(node)
    form = ctx.form(node)
    name = fuse_name(low, high, form)
    if name is not None and name != "NONE":
        compute(ctx, node, name, [val.tensor], val.order, val.dims)
    elif name == "NONE":
        settle(ctx, node, val, "the codes of its result end at its bounds")
    else:
        settle(
            ctx, node, clipped(ctx, val, low, high, node), "MINIMUM and MAXIMUM keep the scale of their input"
        )


@lowering("Softmax", "LogSoftmax", "LpNormalization")
def along_axis(ctx: Builder, node: ir.Node) -> None:
    """SOFTMAX, LOG_SOFTMAX or L2_NORMALIZATION; the order of elements within the axis is free."""
    axis = int_attribute(node, "axis", -1) % len(ctx.val(node).shape)
    val = innermost(ctx, ctx.val(node), axis, node)
    if node.op_type == "Softmax":
        op, options, fixed = "SOFTMAX", {"beta": 1.0}, fixed_form(val.dtype, 1 / 256, -128)
    elif node.op_type == "LogSoftmax":
        op, options = "LOG_SOFTMAX", {}
        fixed = None if val.dtype is DType.FLOAT32 else Form(DType.INT8, Quantization.single(16 / 256, 127))
    elif int_attribute(node, "p", 2) == 2:
        op, options, fixed = "L2_NORMALIZATION", {}, fixed_form(val.dtype, 1 / 128, 0)
    else:
        raise RefusedError("its p is not 2", "TFLite has only the L2 norm")
    compute(ctx, node, op, [val.tensor], val.order, val.dims, options, form=fixed)


def innermost(ctx: Builder, val: Val, axis: int, node: ir.Node) -> Val:
    """``val`` with an ONNX axis as its last stored dimension."""
    atoms = atoms_of(val.order, val.shape)
    size = val.shape[axis]
    count = 0 if atoms is None else sum(a.axis == axis for a in atoms)
    if atoms is not None and all(a.axis == axis for a in atoms[len(atoms) - count :]):
        fits = val.dims[-1] == size
        return val if fits else ctx.reshaped(val, (val.size // size, size))
    order = linear(val.shape)
    if atoms is not None:
        runs = [a for a in atoms if a.axis != axis] + [a for a in atoms if a.axis == axis]
        order = from_atoms(val.shape, runs)
    val = ctx.arranged(val, order, None, node, f"{node.op_type} works along the last stored axis")
    return innermost(ctx, val, axis, node)


@lowering("Sqrt")
def square_root(ctx: Builder, node: ir.Node) -> None:
    """RSQRT together with the Reciprocal that alone reads it; else SQRT."""
    val = ctx.val(node)
    value = node.outputs[0]
    quantize = quantizer(value)
    if quantize is not None and len(readers := quantize.outputs[0].consumers()) == 1:
        value = readers[0].outputs[0]
    after = value.consumers()
    if len(after) == 1 and is_op(after[0], "Reciprocal") and not value.is_graph_output():
        ctx.done.add(str(after[0].name))
        compute(ctx, after[0], "RSQRT", [val.tensor], val.order, val.dims)
        ctx.bind(node.outputs[0], val)  # nothing reads it but what has been absorbed
        return
    compute(ctx, node, "SQRT", [val.tensor], val.order, val.dims)
