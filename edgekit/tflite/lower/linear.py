"""Matrix products: FULLY_CONNECTED contracts the last stored axis, BATCH_MATMUL absorbs transposes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.parts import is_op
from edgekit.passes.edit import float_attribute, int_attribute
from edgekit.tflite.lower.builder import Builder, Val
from edgekit.tflite.lower.common import compute, operand_codes, shape_of
from edgekit.tflite.lower.conv import bias_of, weight_of, weight_quantization
from edgekit.tflite.lower.layout import (
    Atom,
    atoms_of,
    element_order,
    from_atoms,
    from_axes,
    linear,
)
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.lower.view import Const, added_bias, fusable


@lowering("Gemm")
def gemm(ctx: Builder, node: ir.Node) -> None:
    """FULLY_CONNECTED with the bias; only the plain form ``x W + b`` has an integer kernel."""
    if int_attribute(node, "transA", 0):
        raise RefusedError("it transposes its input", "write a Transpose before it")
    scaled = [k for k in ("alpha", "beta") if float_attribute(node, k, 1.0) != 1.0]
    if scaled:
        raise RefusedError(f"its {scaled[0]} is not 1", "multiply it into weights and bias")
    weight = weight_of(ctx, node)
    transposed = bool(int_attribute(node, "transB", 0))
    _fully_connected(ctx, node, weight, 0 if transposed else 1)


@lowering("MatMul")
def matmul(ctx: Builder, node: ir.Node) -> None:
    """FULLY_CONNECTED with stored weights, else BATCH_MATMUL."""
    if ctx.const(node, 0) is not None:
        raise RefusedError("its stored weights are the first factor", "transpose both factors and the result")
    weight = ctx.const(node, 1)
    if weight is not None and weight.data.ndim == 2:
        behind = fusable(node.outputs[0])
        add = behind if behind is not None and is_op(behind, "Add") else None
        _fully_connected(ctx, node, weight_of(ctx, node), 1, add)
        return
    if len(shape_of(node.inputs[0])) < 2 or len(shape_of(node.inputs[1])) < 2:
        raise RefusedError("one of its factors is a vector", "give both factors rank 2 or more")
    _batch_matmul(ctx, node)


def _fully_connected(
    ctx: Builder, node: ir.Node, weight: Const, out_axis: int, add: ir.Node | None = None
) -> None:
    """``weight`` is [out, in] for ``out_axis`` 0, else [in, out]; ``add`` adds the bias of a MatMul."""
    val = ctx.val(node)
    inner = val.shape[-1]
    stored = weight.data if out_axis == 0 else weight.data.T
    val, head, tail = _contracted_last(ctx, val, node)
    if len(tail) > 1:
        stored = stored[:, element_order(tail)]
    units = stored.shape[0]
    if val.dims[-1] != inner:
        val = ctx.reshaped(val, (val.size // inner, inner))
    out = shape_of(node.outputs[0])
    scales = weight_quantization(weight, out_axis, 0)
    label = weight.name if len(tail) <= 1 else f"{weight.name}/stored"
    added = None if add is None else added_bias(add)
    bias = bias_of(ctx, node, val, scales, units, added=added)
    inputs = [val.tensor, ctx.store(label, stored, scales), bias]
    if add is not None:
        ctx.done.add(str(add.name))
    order = from_atoms(out, [*head, Atom(len(out) - 1, units, 1)])
    options = {"keepNumDims": len(val.dims) != 2}
    last = node if add is None else add
    compute(ctx, last, "FULLY_CONNECTED", inputs, order, (*val.dims[:-1], units), options, fuse=True)


def _contracted_last(ctx: Builder, val: Val, node: ir.Node) -> tuple[Val, tuple[Atom, ...], tuple[Atom, ...]]:
    """``val`` with its last ONNX axis innermost, its elements in any order; the runs before it and of it."""
    last = len(val.shape) - 1
    atoms = atoms_of(val.order, val.shape)
    if atoms is not None:
        count = sum(a.axis == last for a in atoms)
        head, tail = atoms[: len(atoms) - count], atoms[len(atoms) - count :]
        if all(a.axis == last for a in tail):
            return val, head, tail
        order = from_atoms(val.shape, [*(a for a in atoms if a.axis != last), *_of(atoms, last)])
    else:
        order = linear(val.shape)
    why = f"{node.op_type} contracts an axis that does not lie innermost"
    return _contracted_last(ctx, ctx.arranged(val, order, None, node, why), node)


def _of(atoms: tuple[Atom, ...], axis: int) -> list[Atom]:
    return [a for a in atoms if a.axis == axis]


def _batch_matmul(ctx: Builder, node: ir.Node) -> None:
    out = shape_of(node.outputs[0])
    left, swap_left = _factor(ctx, node, 0, len(out))
    right, swap_right = _factor(ctx, node, 1, len(out))
    options = {"adjX": swap_left, "adjY": swap_right}
    compute(ctx, node, "BATCH_MATMUL", [left, right], linear(out), out, options)


def _factor(ctx: Builder, node: ir.Node, index: int, rank: int) -> tuple[str, bool]:
    """A factor as [batch …, rows, columns], or with the last two swapped, and whether they are."""
    stored = ctx.const(node, index)
    if stored is not None:
        other = ctx.val(node, 1 - index)
        codes, quantization = operand_codes(stored, other.dtype)
        codes = np.asarray(codes).reshape((1,) * (rank - codes.ndim) + codes.shape)
        return ctx.store(stored.name, codes, quantization), False
    val = ctx.val(node, index)
    val = replace(val, shape=(1,) * (rank - len(val.shape)) + val.shape)
    plain = tuple(range(rank))
    swapped = (*plain[:-2], plain[-1], plain[-2])
    for axes in (plain, swapped):
        if from_axes(val.shape, axes) == val.order:
            return ctx.by_axes(val, axes, node, "").tensor, axes is swapped
    # Runs that lie innermost stay there, so that the TRANSPOSE moves whole rows.
    atoms = atoms_of(val.order, val.shape)
    axes = swapped if atoms and atoms[-1].axis == rank - 2 else plain
    why = "BATCH_MATMUL wants the axes that it multiplies over behind those of the batch"
    return ctx.by_axes(val, axes, node, why).tensor, axes is swapped
