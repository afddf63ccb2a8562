"""Operators that only say how a tensor is looked at, or that join and cut tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.parts import is_op
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.tflite.lower.builder import Builder, Form, Val
from edgekit.tflite.lower.common import (
    apart,
    codes_of,
    compute,
    ints_attribute,
    move,
    settle,
    shape_of,
    stored_ints,
    text_attribute,
    with_sizes,
)
from edgekit.tflite.lower.elementwise import Place, stored_operand
from edgekit.tflite.lower.layout import NHWC, Atom, Shape, axes_of, from_axes, linear, transposed
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.registry import lowering
from edgekit.tflite.model import DType

_SAME = "its result has another scale than its input"


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
def relabel(ctx: Builder, node: ir.Node) -> None:
    """Nothing: a reshape changes no row-major index; operators that need dimensions ask for them."""
    val = replace(ctx.val(node), shape=shape_of(node.outputs[0]))
    settle(ctx, node, val, _SAME)


@lowering("Transpose")
def transpose(ctx: Builder, node: ir.Node) -> None:
    """Nothing but other names for the axes of the same memory."""
    val = ctx.val(node)
    perm = ints_attribute(node, "perm", list(reversed(range(len(val.shape)))))
    order = transposed(val.order, val.shape, perm)
    if order is None:
        val = ctx.arranged(val, linear(val.shape), None, node, "its input lies across the axes it exchanges")
        order = transposed(val.order, val.shape, perm)
    if order is None:
        raise RefusedError("its axes cannot be followed", "report the model")
    shape = tuple(val.shape[p] for p in perm)
    settle(ctx, node, replace(val, shape=shape, order=order), _SAME)


@lowering("Concat")
def concat(ctx: Builder, node: ir.Node) -> None:
    """CONCATENATION, in the layout that most of what it joins has; all pieces on the scale of the result."""
    out = shape_of(node.outputs[0])
    axis = int_attribute(node, "axis", 0) % len(out)
    form = ctx.form(node)
    consts = [ctx.const(node, i) for i in range(len(node.inputs))]
    vals = [None if c is not None else ctx.val(node, i) for i, c in enumerate(consts)]
    axes = _joint_axes([v for v in vals if v is not None], len(out))
    place = Place(from_axes(out, axes), tuple(Atom(a, out[a], 1) for a in axes))
    inputs: list[str | None] = []
    for value, val, const in zip(node.inputs, vals, consts, strict=True):
        if const is not None:
            piece = shape_of(value)
            whole = Place(from_axes(piece, axes), tuple(Atom(a, piece[a], 1) for a in axes))
            inputs.append(stored_operand(ctx, const, whole, piece, form.dtype, form))
        elif val is not None:
            val = ctx.requantized(val, form, node, "it joins tensors of different scales")
            inputs.append(ctx.by_axes(val, axes, node, "it joins tensors of different layouts").tensor)
    if len(inputs) == 1:
        only = next(v for v in vals if v is not None)
        settle(ctx, node, only, _SAME)
        return
    compute(ctx, node, "CONCATENATION", inputs, place.order, place.dims, {"axis": list(axes).index(axis)})


def _joint_axes(vals: Sequence[Val], rank: int) -> tuple[int, ...]:
    """The layout in which the fewest elements have to be moved."""
    tried: list[tuple[int, ...]] = []
    for val in vals:
        axes = axes_of(val.order, val.shape, val.dims)
        if axes is not None:
            tried.append(axes)
    if rank == 4:
        tried.append(NHWC)
    tried.append(tuple(range(rank)))
    return min(tried, key=lambda t: sum(v.size for v in vals if from_axes(v.shape, t) != v.order))


@lowering("Slice")
def slice_(ctx: Builder, node: ir.Node) -> None:
    """SLICE, or STRIDED_SLICE where it steps."""
    val = ctx.val(node)
    rank = len(val.shape)
    starts, ends = stored_ints(ctx, node, 1) or [], stored_ints(ctx, node, 2) or []
    axes = [a % rank for a in stored_ints(ctx, node, 3) or range(len(starts))]
    steps = stored_ints(ctx, node, 4) or [1] * len(axes)
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, last, step = slice(start, end, step).indices(val.shape[axis])
        if (first, last, step) != (0, val.shape[axis], 1):
            cuts[axis] = (first, last, step)
    cut(ctx, node, val, cuts, 0)


def cut(ctx: Builder, node: ir.Node, val: Val, cuts: dict[int, tuple[int, int, int]], output: int) -> None:
    """Bind an output of ``node`` to a part of ``val``; ``cuts`` are start, end and step by ONNX axis."""
    out = shape_of(node.outputs[output])
    if not cuts:
        settle(ctx, node, replace(val, shape=out), _SAME, output)
        return
    val, where, atoms = apart(ctx, val, node, sorted(cuts))
    begin = [cuts[a][0] if a in cuts else 0 for a in where]
    full = tuple(len(range(*cuts[a])) if a in cuts else n for a, n in enumerate(val.shape))
    dims = tuple(full[a] if a in cuts else n for a, n in zip(where, val.dims, strict=True))
    order = with_sizes(atoms, full, list(cuts))
    new = ctx.result(node.outputs[output], out, order, dims, Form(val.dtype, val.quantization))
    if all(step == 1 for _, _, step in cuts.values()):
        inputs = [val.tensor, ctx.ints("begin", begin), ctx.ints("size", dims)]
        ctx.emit("SLICE", inputs, [new.tensor], source=node)
    else:
        stride = [cuts[a][2] if a in cuts else 1 for a in where]
        end = [cuts[a][1] if a in cuts else n for a, n in zip(where, val.dims, strict=True)]
        # An end before the first element, where a step goes backwards, is a bit of the mask.
        mask = sum(1 << i for i, e in enumerate(end) if e < 0)
        inputs = [
            val.tensor,
            *(ctx.ints(k, v) for k, v in (("begin", begin), ("end", end), ("stride", stride))),
        ]
        ctx.emit("STRIDED_SLICE", inputs, [new.tensor], {"endMask": mask}, source=node)
    settle(ctx, node, new, _SAME, output)


@lowering("Split")
def split(ctx: Builder, node: ir.Node) -> None:
    """SPLIT into equal parts, else a SLICE for each."""
    val = ctx.val(node)
    axis = int_attribute(node, "axis", 0) % len(val.shape)
    sizes = [shape_of(v)[axis] for v in node.outputs]
    if len(set(sizes)) > 1 or len(sizes) == 1:
        start = 0
        for i, size in enumerate(sizes):
            if node.outputs[i].uses() or node.outputs[i].is_graph_output():
                cuts = {} if size == val.shape[axis] else {axis: (start, start + size, 1)}
                cut(ctx, node, val, cuts, i)
            start += size
        return
    val, where, atoms = apart(ctx, val, node, [axis])
    position = where.index(axis)
    made = []
    for value in node.outputs:
        out = shape_of(value)
        dims = tuple(sizes[0] if i == position else n for i, n in enumerate(val.dims))
        order = with_sizes(atoms, out, [axis])
        made.append(ctx.result(value, out, order, dims, Form(val.dtype, val.quantization)))
    dimension = ctx.store("axis", np.array(position, np.int32))
    options = {"numSplits": len(made)}
    ctx.emit("SPLIT", [dimension, val.tensor], [v.tensor for v in made], options, source=node)
    for i, new in enumerate(made):
        settle(ctx, node, new, _SAME, i)


@lowering("Pad")
def pad(ctx: Builder, node: ir.Node) -> None:
    """PAD with zeros, PADV2 with another value, MIRROR_PAD by reflection."""
    val = ctx.val(node)
    mode, rank = text_attribute(node, "mode", "constant"), len(val.shape)
    given = stored_ints(ctx, node, 1) or []
    axes = stored_ints(ctx, node, 3) or list(range(rank))
    amounts = {a % rank: (given[i], given[i + len(axes)]) for i, a in enumerate(axes)}
    amounts = {a: p for a, p in amounts.items() if any(p)}
    if any(n < 0 for p in amounts.values() for n in p):
        raise RefusedError("it pads by a negative amount", "write a Slice")
    if mode not in ("constant", "reflect"):
        raise RefusedError(f"its mode is {mode}", "use constant or reflect")
    out = shape_of(node.outputs[0])
    val, where, atoms = apart(ctx, val, node, sorted(amounts))
    table = [list(amounts.get(a, (0, 0))) for a in where]
    dims = tuple(n + sum(t) for n, t in zip(val.dims, table, strict=True))
    inputs: list[str | None] = [val.tensor, ctx.store(f"pads/{table}", np.array(table, np.int32))]
    options: dict[str, object] = {}
    fill = ctx.const(node, 2)
    value = 0.0 if fill is None else float(fill.real().reshape(-1)[0])
    op = "PAD"
    if mode == "reflect":
        op, options = "MIRROR_PAD", {"mode": "REFLECT"}
    elif value != 0.0:
        op = "PADV2"
        code = codes_of(np.array([value]), Form(val.dtype, val.quantization))
        inputs.append(ctx.store(f"{node.name}/value", code, val.quantization))
    move(ctx, node, op, val, inputs, with_sizes(atoms, out, list(amounts)), dims, options)


@lowering("Gather")
def gather(ctx: Builder, node: ir.Node) -> None:
    """A SLICE for neighbours, GATHER for other stored indices and for the rows of a stored table."""
    axis = int_attribute(node, "axis", 0)
    out = shape_of(node.outputs[0])
    table = ctx.const(node, 0)
    if table is not None:
        _lookup(ctx, node, axis)
        return
    val = ctx.val(node)
    axis %= len(val.shape)
    found = ctx.const(node, 1)
    if found is None:
        raise RefusedError("its indices are computed", "only rows of a stored table can be looked up")
    index = found.data.astype(np.int64)
    if index.ndim > 1:
        raise RefusedError(f"its indices have rank {index.ndim}", "gather along one axis by a list")
    index = np.where(index < 0, index + val.shape[axis], index).reshape(-1)
    kept = (*out[:axis], len(index), *out[axis + found.data.ndim :])
    first = int(index[0])
    if np.array_equal(index, np.arange(first, first + len(index))):
        cuts = {} if len(index) == val.shape[axis] else {axis: (first, first + len(index), 1)}
        cut(ctx, node, val, cuts, 0)
        return
    val, where, atoms = apart(ctx, val, node, [axis])
    position = where.index(axis)
    dims = tuple(len(index) if i == position else n for i, n in enumerate(val.dims))
    rows = ctx.store(f"{node.name}/indices", index.astype(np.int32))
    order = with_sizes(atoms, kept, [axis])
    move(ctx, node, "GATHER", val, [val.tensor, rows], order, dims, {"axis": position})


def _lookup(ctx: Builder, node: ir.Node, axis: int) -> None:
    table, indices, form = ctx.const(node, 0), ctx.values.get(str(node.inputs[1].name)), ctx.form(node)  # type: ignore[union-attr]
    if table is None or indices is None or axis != 0:
        raise RefusedError("it looks up along another axis than the first", "transpose the table")
    codes = codes_of(table.real(), form)
    rows = ctx.by_axes(indices, tuple(range(len(indices.shape))), node, "it looks rows up in ONNX's order")
    out = shape_of(node.outputs[0])
    inputs = [ctx.store(table.name, codes, form.quantization), rows.tensor]
    compute(ctx, node, "GATHER", inputs, linear(out), out, {"axis": 0})


@lowering("Expand")
def expand(ctx: Builder, node: ir.Node) -> None:
    """Nothing where arithmetic with a whole operand follows, which broadcasts; else BROADCAST_TO or TILE."""
    val, out = ctx.val(node), shape_of(node.outputs[0])
    if _broadcasts_anyway(node.outputs[0]):
        settle(ctx, node, val, _SAME)
        return
    shape: Shape = (1,) * (len(out) - len(val.shape)) + val.shape
    val = replace(val, shape=shape)
    if math.prod(shape) == math.prod(out):
        settle(ctx, node, replace(val, shape=out), _SAME)
        return
    axes = axes_of(val.order, shape, val.dims) or tuple(range(len(out)))
    val = ctx.by_axes(val, axes, node, "it repeats axes that lie across each other")
    dims = tuple(out[a] for a in axes)
    op, argument = "BROADCAST_TO", ctx.ints("shape", dims)
    if op in ctx.avoid:
        times = [wide // n for wide, n in zip(dims, val.dims, strict=True)]
        op, argument = "TILE", ctx.ints("multiples", times)
    move(ctx, node, op, val, [val.tensor, argument], from_axes(out, axes), dims)


@lowering("Tile")
def tile(ctx: Builder, node: ir.Node) -> None:
    """TILE; nothing where it repeats nothing."""
    val, out = ctx.val(node), shape_of(node.outputs[0])
    times = stored_ints(ctx, node, 1) or []
    if set(times) <= {1}:
        settle(ctx, node, val, _SAME)
        return
    axes = axes_of(val.order, val.shape, val.dims) or tuple(range(len(out)))
    val = ctx.by_axes(val, axes, node, "it repeats axes that lie across each other")
    inputs = [val.tensor, ctx.ints("multiples", [times[a] for a in axes])]
    move(ctx, node, "TILE", val, inputs, from_axes(out, axes), tuple(out[a] for a in axes))


def _broadcasts_anyway(value: ir.Value) -> bool:
    readers = list(_readers(value))
    return bool(readers) and not value.is_graph_output() and all(_has_whole_operand(r) for r in readers)


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Who reads a tensor or its codes."""
    for node in value.consumers():
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            yield from _readers(node.outputs[0])
        else:
            yield node


def _has_whole_operand(node: ir.Node) -> bool:
    if not is_op(node, "Add", "Sub", "Mul") or len(node.inputs) != 2:
        return False
    out = static_shape(node.outputs[0])
    return any(static_shape(v) == out and not is_op(_maker(v), "Expand") for v in node.inputs)


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Who computes a tensor, before it is quantized and dequantized."""
    maker = None if value is None else value.producer()
    while maker is not None and is_op(maker, "QuantizeLinear", "DequantizeLinear"):
        maker = None if maker.inputs[0] is None else maker.inputs[0].producer()
    return maker


@lowering("Cast")
def cast(ctx: Builder, node: ir.Node) -> None:
    """CAST of plain numbers; nothing between integers, which are int32 throughout."""
    val = ctx.val(node) if node.inputs[0] is not None else None
    if val is None or val.quantization is not None:
        raise RefusedError("it casts quantized values", "leave it to the float part of the network")
    form = ctx.form(node)
    if form.dtype is val.dtype:
        ctx.bind(node.outputs[0], val)
        return
    options = {"inDataType": val.dtype.name, "outDataType": form.dtype.name}
    compute(ctx, node, "CAST", [val.tensor], val.order, val.dims, options)


@lowering("ArgMax")
def arg_max(ctx: Builder, node: ir.Node) -> None:
    """ARG_MAX of the first largest element; int32 where ONNX has int64."""
    if int_attribute(node, "select_last_index", 0):
        raise RefusedError("it selects the last of equal elements", "TFLite selects the first")
    axis = int_attribute(node, "axis", 0) % len(ctx.val(node).shape)
    val, where, atoms = apart(ctx, ctx.val(node), node, [axis])
    position = where.index(axis)
    shape = tuple(1 if a == axis else n for a, n in enumerate(val.shape))
    order = with_sizes(atoms, shape, [axis])
    dims = tuple(n for i, n in enumerate(val.dims) if i != position)
    new = ctx.result(node.outputs[0], shape_of(node.outputs[0]), order, dims, Form(DType.INT32, None))
    index = ctx.store("axis", np.array(position, np.int32))
    ctx.emit("ARG_MAX", [val.tensor, index], [new.tensor], {"outputType": "INT32"}, source=node)
    ctx.bind(node.outputs[0], new)
