"""Arithmetic element by element, in whatever order the operands lie in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.tflite.lower.builder import Builder, Form, Val
from edgekit.tflite.lower.common import codes_of, compute, operand_codes, shape_of
from edgekit.tflite.lower.layout import (
    NHWC,
    Atom,
    Order,
    Shape,
    atoms_of,
    axes_of,
    from_atoms,
    from_axes,
    stored,
)
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.lower.view import Const
from edgekit.tflite.model import DType, Quantization

_PLAIN = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM"}
#: Operators whose kernel can absorb an activation.
_FUSES = frozenset({"ADD", "SUB", "MUL", "DIV"})
#: Operators whose operands and result share one scale.
_SAME_SCALE = frozenset({"MAXIMUM", "MINIMUM"})


@dataclass(frozen=True)
class Place:
    """Where the result of an elementwise operator lies.

    Attributes:
        order: Its memory.
        atoms: One run for each stored dimension, of size 1 for units.
    """

    order: Order
    atoms: tuple[Atom, ...]

    @property
    def dims(self) -> Shape:
        return tuple(a.size for a in self.atoms)

    def dims_of(self, shape: Shape) -> Shape:
        """Stored shape of an operand that broadcasts."""
        return tuple(a.size if shape[a.axis] > 1 else 1 for a in self.atoms)

    def order_of(self, shape: Shape) -> Order:
        """Memory of an operand that broadcasts."""
        return from_atoms(shape, [a for a in self.atoms if shape[a.axis] > 1])


def place_of(vals: list[Val], out: Shape) -> Place:
    """The memory that needs the fewest elements of ``vals`` to be moved.

    Args:
        vals: The computed operands.
        out: ONNX shape of the result.
    """
    full = [v for v in vals if v.size == math.prod(out)]
    places = [p for v in full if (p := _as_place(v.order, out, v.dims)) is not None]
    for axes in (NHWC, tuple(range(len(out)))) if len(out) == 4 else (tuple(range(len(out))),):
        places.append(Place(from_axes(out, axes), tuple(Atom(a, out[a], 1) for a in axes)))
    return min(places, key=lambda p: _cost(vals, p, len(out)))


def _as_place(order: Order, out: Shape, dims: Shape) -> Place | None:
    axes = axes_of(order, out, dims)
    if axes is not None:
        return Place(order, tuple(Atom(a, out[a], 1) for a in axes))
    atoms = atoms_of(order, out)
    return None if atoms is None else Place(order, atoms)


def _cost(vals: list[Val], place: Place, rank: int) -> int:
    return sum(v.size for v in vals if place.order_of(padded(v.shape, rank)) != v.order)


def padded(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


def operand(ctx: Builder, val: Val, place: Place, out: Shape, node: ir.Node) -> str:
    """A computed operand in the memory of the result."""
    shape = padded(val.shape, len(out))
    why = "its operands lie in different orders"
    val = replace(val, shape=shape)
    return ctx.arranged(val, place.order_of(shape), place.dims_of(shape), node, why).tensor


def stored_operand(
    ctx: Builder, const: Const, place: Place, out: Shape, dtype: DType, form: Form | None = None
) -> str:
    """A stored operand in the memory of the result.

    Args:
        ctx: The model under construction.
        const: The operand.
        place: Where the result lies.
        out: ONNX shape of the result.
        dtype: Element type of the computed operand.
        form: Codes it must have; None for its own.
    """
    if form is not None and form.quantization is not None:
        codes = codes_of(const.real(), form)
        quantization: Quantization | None = form.quantization
    else:
        codes, quantization = operand_codes(const, dtype)
    if codes.size == 1:
        return ctx.store(const.name, codes.reshape(1), quantization)
    if any(n not in (1, m) for n, m in zip(padded(codes.shape, len(out)), out, strict=True)):
        raise RefusedError("its stored operand does not broadcast to its result", "expand it")
    return ctx.store(const.name, stored(codes, out, place.atoms), quantization)


@lowering("Add", "Sub", "Mul", "Div", "Max", "Min")
def arithmetic(ctx: Builder, node: ir.Node) -> None:
    """ADD, SUB, MUL, MAXIMUM, MINIMUM; DIV by a stored value is MUL."""
    if len(node.inputs) != 2:
        raise RefusedError(f"it has {len(node.inputs)} inputs", "write it with two at a time")
    consts = [ctx.const(node, i) for i in (0, 1)]
    op = _PLAIN[node.op_type]
    if op == "DIV" and consts[1] is not None:
        op, consts[1] = "MUL", _inverse(consts[1])
    vals = [ctx.val(node, i) for i in (0, 1) if consts[i] is None]
    if op in _SAME_SCALE:
        why = f"{op} wants its operands on the scale of its result"
        vals = [ctx.requantized(v, ctx.form(node), node, why) for v in vals]
    emit_binary(ctx, node, op, vals, consts)


def emit_binary(ctx: Builder, node: ir.Node, op: str, vals: list[Val], consts: list[Const | None]) -> None:
    """Emit an operator of two operands.

    Args:
        ctx: The model under construction.
        node: The ONNX node.
        op: TFLite operator.
        vals: The computed operands, in order.
        consts: For each operand the stored value, None where it is computed.
    """
    out = shape_of(node.outputs[0])
    place = place_of(vals, out)
    form = ctx.form(node) if op in _SAME_SCALE else None
    rest = iter(vals)
    inputs: list[str | None] = [
        operand(ctx, next(rest), place, out, node)
        if const is None
        else stored_operand(ctx, const, place, out, vals[0].dtype, form)
        for const in consts
    ]
    # 16-bit kernels take any scale only when told so.
    options = {"potScaleInt16": False} if op in ("ADD", "SUB") else {}
    compute(ctx, node, op, inputs, place.order, place.dims, options, fuse=op in _FUSES)


def _inverse(const: Const) -> Const:
    """1 / const, in codes as fine as they get."""
    real = const.real()
    if not real.all():
        raise RefusedError("it divides by zero", "remove it")
    inverse = (1.0 / real.astype(np.float64)).astype(np.float32)
    return Const(f"{const.name}/inverse", inverse)


@lowering("Neg")
def negate(ctx: Builder, node: ir.Node) -> None:
    """MUL by -1, which any scale of the result goes with."""
    minus = Const("minus_one", np.array([-1.0], np.float32))
    emit_binary(ctx, node, "MUL", [ctx.val(node)], [None, minus])


@lowering("Pow")
def power(ctx: Builder, node: ir.Node) -> None:
    """Squares as MUL and square roots as SQRT; TFLite has no other integer power."""
    exponent = ctx.const(node, 1)
    value = None if exponent is None or exponent.data.size != 1 else float(exponent.real().reshape(-1)[0])
    val = ctx.val(node)
    if value is not None and abs(value - 2.0) < 1e-3:
        emit_binary(ctx, node, "MUL", [val, val], [None, None])
    elif value == 0.5:
        compute(ctx, node, "SQRT", [val.tensor], val.order, val.dims)
    else:
        raise RefusedError(f"its exponent is {value}", "only squares and square roots have a kernel")


@lowering("PRelu")
def prelu(ctx: Builder, node: ir.Node) -> None:
    """PRELU; the slope loses the axis of the batch."""
    val, slope = ctx.val(node), ctx.const(node, 1)
    if slope is None:
        raise RefusedError("its slope is computed", "use a stored one")
    out = shape_of(node.outputs[0])
    place = place_of([val], out)
    # LiteRT's 16-bit kernel reads slopes as bytes.
    codes, quantization = operand_codes(slope, DType.INT8 if val.dtype is DType.INT16 else val.dtype)
    # ONNX aligns the slope with the last axes; exporters write [C, 1, 1].
    laid = stored(codes, out, place.atoms)
    if laid.ndim > 1 and laid.shape[0] == 1:
        laid = laid.reshape(laid.shape[1:])
    source = operand(ctx, val, place, out, node)
    inputs = [source, ctx.store(slope.name, laid, quantization)]
    compute(ctx, node, "PRELU", inputs, place.order, place.dims)
