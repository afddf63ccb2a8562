"""From an ONNX graph to a TFLite model.

The nodes are lowered in order. Every tensor keeps the memory that its operator wrote; Reshape and Transpose
only change how it is looked at (:mod:`edgekit.tflite.lower.layout`), and a TRANSPOSE is inserted where an
operator needs another order. Convolutions want NHWC, so images enter as NHWC.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.parts import is_op, quantizer
from edgekit.passes.edit import static_shape
from edgekit.tflite.lower import activation, conv, elementwise, linear, pool, shape, spatial
from edgekit.tflite.lower.builder import Builder, Form, LayoutNote, Val
from edgekit.tflite.lower.common import shape_of
from edgekit.tflite.lower.layout import axes_of, from_axes, runs_of
from edgekit.tflite.lower.layout import linear as row_major
from edgekit.tflite.lower.memory import separate
from edgekit.tflite.lower.refuse import RefusedError, RefusedNode, RefusedNodesError
from edgekit.tflite.lower.registry import LOWERINGS
from edgekit.tflite.lower.view import plain_name, quantization_of
from edgekit.tflite.model import DType, Tensor, TfliteModel
from edgekit.tflite.split import float_nodes

#: Modules whose functions register themselves.
_MODULES = (activation, conv, elementwise, linear, pool, shape, spatial)
#: Operators that want channels innermost, so that what they read is best stored so from the start.
_IMAGE_OPS = frozenset(
    (
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("Resize", "DepthToSpace", "SpaceToDepth"),
    )
)
#: Operators behind which the layout is another question.
_LAYOUT_ENDS = frozenset(("Reshape", "Flatten", "Transpose", "MatMul", "Gemm", "Squeeze", "Unsqueeze"))
#: What :func:`lower` can write with other operators: with TRANSPOSE, with TILE, and where a TRANSPOSE_CONV of
#: padding SAME would not make its input times the stride, with padding VALID and a SLICE.
AVOIDABLE = frozenset({"DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "BROADCAST_TO", "TRANSPOSE_CONV"})


@dataclass(frozen=True)
class Binding:
    """An input or output of the model and what it is in the ONNX graph.

    The ONNX tensor is ``stored.transpose(np.argsort(axes)).reshape(logical)``.

    Attributes:
        name: ONNX tensor, which is float where ``scale`` is given.
        tensor: Name of the input or output.
        shape: As stored.
        axes: Stored axis i is axis ``axes[i]`` of the ONNX tensor, or of the shape that it is reshaped from.
        dtype: Stored element type.
        scale: ``real = scale * (code - zero_point)``; None for values that are no codes.
        zero_point: See ``scale``.
        flat: The elements lie in ONNX's order, whatever the two shapes are.
        logical: ONNX shape.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: DType
    scale: float | None
    zero_point: int | None
    flat: bool
    logical: tuple[int, ...]


@dataclass(frozen=True)
class Lowered:
    """A TFLite model and how it hangs together with its ONNX graph.

    Attributes:
        model: The model.
        inputs: Its inputs.
        outputs: Its outputs.
        notes: Operators that the ONNX graph does not have, each with its reason.
    """

    model: TfliteModel
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    notes: tuple[LayoutNote, ...]


def lower(
    body: Graph,
    *,
    io: Literal["quantized", "float"] = "quantized",
    avoid: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
    description: str = "",
) -> Lowered:
    """Write a graph in TFLite's operators.

    Args:
        body: A QDQ graph (:func:`edgekit.tflite.split.split`), or a plain float graph.
        io: ``float`` puts a QUANTIZE behind every input and a DEQUANTIZE before every output.
        avoid: Those of :data:`AVOIDABLE` that the model's target runs badly.
        metadata: Entries of the file.
        description: One line for people.

    Raises:
        RefusedNodesError: Nodes have no counterpart; all of them are named, with rule and remedy.
    """
    nodes = list(body.nodes)
    quantized = any(is_op(n, "QuantizeLinear") for n in nodes)
    ctx = Builder(quantized, blocks=spatial.block_hints(nodes), avoid=avoid)
    inputs = _inputs(ctx, body, io)
    refused = _lower_nodes(ctx, nodes, float_nodes(nodes) if ctx.quantized else set())
    if refused:
        raise RefusedNodesError("TFLite cannot run the network", refused)
    outputs = tuple(_output(ctx, value, io) for value in body.model.graph.outputs)
    _drop_unread(ctx, outputs)
    separate(ctx, [b.tensor for b in inputs], [b.tensor for b in outputs])
    model = TfliteModel(
        tensors=_used(ctx, inputs, outputs),
        operators=tuple(ctx.operators),
        inputs={b.name: b.tensor for b in inputs},
        outputs={b.name: b.tensor for b in outputs},
        metadata=dict(metadata or {}),
        description=description,
    )
    return Lowered(model, inputs, outputs, tuple(note for _, note in ctx.notes))


def has_counterpart(node: ir.Node) -> bool:
    """Whether TFLite has an operator for this kind of node at all."""
    return node.op_type in LOWERINGS and node.domain in ("", "ai.onnx")


def _lower_nodes(ctx: Builder, nodes: list[ir.Node], floats: set[ir.Node]) -> tuple[RefusedNode, ...]:
    refused = []
    for node in nodes:
        if str(node.name) in ctx.done:
            continue
        try:
            with ctx.in_float(node in floats):
                _lower_node(ctx, node)
        except RefusedError as error:
            refused.append(RefusedNode(str(node.name), node.op_type, error.rule, error.remedy))
            _stand_in(ctx, node)
    return tuple(refused)


def _lower_node(ctx: Builder, node: ir.Node) -> None:
    if is_op(node, "DequantizeLinear"):
        source = ctx.values.get(str(node.inputs[0].name))  # type: ignore[union-attr]
        if source is not None:  # else it is a constant, which its readers look up
            ctx.bind(node.outputs[0], source)
        return
    if is_op(node, "QuantizeLinear"):
        quantization, dtype = quantization_of(node)
        source = ctx.any_val(node)
        coded = source.quantization is not None
        why = (
            "its reader takes other codes than its writer makes" if coded else "its writer computes in float"
        )
        ctx.bind(node.outputs[0], ctx.requantized(source, Form(dtype, quantization), node, why))
        return
    if not has_counterpart(node):
        raise RefusedError("it has no counterpart in TFLite", "leave it to the float part or replace it")
    LOWERINGS[node.op_type](ctx, node)


def _stand_in(ctx: Builder, node: ir.Node) -> None:
    """Bind the outputs of a refused node, so that what is wrong behind it is found too."""
    for index, value in enumerate(node.outputs):
        shape = static_shape(value) or ()
        try:
            form = ctx.form(node, index)
        except RefusedError:
            form = Form(DType.INT8 if ctx.quantized else DType.FLOAT32, None)
        ctx.bind(value, ctx.result(value, shape, row_major(shape), shape, form))


def _inputs(ctx: Builder, body: Graph, io: str) -> tuple[Binding, ...]:
    found = []
    for value in body.model.graph.inputs:
        try:
            shape = shape_of(value)
            form = _input_form(value)
        except RefusedError as error:
            place = RefusedNode(str(value.name), "input", error.rule, error.remedy)
            raise RefusedNodesError("TFLite cannot run the network", (place,)) from error
        axes = _input_axes(value, len(shape))
        dims = tuple(shape[a] for a in axes)
        val = ctx.result(value, shape, from_axes(shape, axes), dims, form)
        stored = val
        if io == "float" and form.quantization is not None:
            name = val.tensor
            ctx.tensors[f"{name}_codes"] = replace(ctx.tensors[name], name=f"{name}_codes")
            ctx.tensors[name] = replace(ctx.tensors[name], dtype=DType.FLOAT32, quantization=None)
            stored, val = (
                replace(val, dtype=DType.FLOAT32, quantization=None),
                replace(val, tensor=f"{name}_codes"),
            )
            ctx.emit("QUANTIZE", [name], [val.tensor])
        ctx.bind(value, val)
        found.append(_binding(str(value.name), stored, axes))
    return tuple(found)


def _input_axes(value: ir.Value, rank: int) -> tuple[int, ...]:
    """Channels innermost where the input reaches an operator on images before its layout is changed."""
    seen: set[ir.Value] = set()
    waiting = [value] if rank in (3, 4) else []
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in _IMAGE_OPS:
                return (0, *range(2, rank), 1)
            if node.op_type not in _LAYOUT_ENDS:
                waiting += [v for v in node.outputs if v not in seen]
                seen.update(node.outputs)
    return tuple(range(rank))


def _input_form(value: ir.Value) -> Form:
    """Codes of the first QuantizeLinear that reads an input; plain numbers where none does."""
    node = quantizer(value)
    if node is not None:
        quantization, dtype = quantization_of(node)
        return Form(dtype, quantization)
    kind = "float32" if value.dtype is None else np.dtype(value.dtype.numpy()).name
    if kind not in ("float32", "int32", "int64", "bool"):
        raise RefusedError(f"it holds {kind}", "use float32 or int32")
    return Form(DType.INT32 if kind == "int64" else DType(kind), None)


def _output(ctx: Builder, value: ir.Value, io: str) -> Binding:
    val = ctx.values.get(str(value.name))
    if val is None:
        place = RefusedNode(str(value.name), "output", "it is a constant", "remove it from the outputs")
        raise RefusedNodesError("TFLite cannot run the network", (place,))
    axes = axes_of(val.order, val.shape, val.dims)
    if axes is not None:
        val = ctx.reshaped(val, tuple(val.shape[a] for a in axes))
    else:
        if runs_of(val.order, val.dims) is None:
            val = ctx.reshaped(val, tuple(size for size, _ in val.order))
        axes = _axes_before_reshape(val)
    made = {t for o in ctx.operators for t in o.outputs}
    if val.tensor not in made or val.tensor in ctx.outputs:
        # An output needs a tensor of its own.
        new = ctx.like(val, plain_name(value))
        ctx.emit(
            "RESHAPE", [val.tensor, ctx.ints("shape", val.dims)], [new.tensor], {"newShape": list(val.dims)}
        )
        val = new
    ctx.outputs.add(val.tensor)
    if io == "float" and val.quantization is not None:
        new = ctx.like(val, f"{val.tensor}_float", dtype=DType.FLOAT32, quantization=None)
        ctx.emit("DEQUANTIZE", [val.tensor], [new.tensor])
        val = new
    return _binding(str(value.name), val, axes)


def _axes_before_reshape(val: Val) -> tuple[int, ...]:
    """Axes of a flattened tensor's stored form, as :class:`Binding` has them."""
    runs = runs_of(val.order, val.dims) or ()
    strides = [stride if size > 1 else math.inf for size, stride in runs]
    by_stride = sorted(range(len(runs)), key=lambda i: -strides[i])
    return tuple(by_stride.index(i) for i in range(len(runs)))


def _binding(name: str, val: Val, axes: tuple[int, ...]) -> Binding:
    q = val.quantization
    scale, zero = (None, None) if q is None else (float(q.scale[0]), int(q.zero_point[0]))
    flat = val.order == row_major(val.shape)
    return Binding(name, val.tensor, val.dims, axes, val.dtype, scale, zero, flat, val.shape)


def _drop_unread(ctx: Builder, outputs: tuple[Binding, ...]) -> None:
    """Remove operators that nothing reads, with what was noted about them."""
    wanted = {b.tensor for b in outputs}
    kept = []
    for operator in reversed(ctx.operators):
        if wanted & set(operator.outputs):
            wanted.update(t for t in operator.inputs if t is not None)
            kept.append(operator)
    ctx.operators = kept[::-1]
    ctx.notes = [(tensor, note) for tensor, note in ctx.notes if tensor in wanted]


def _used(ctx: Builder, inputs: tuple[Binding, ...], outputs: tuple[Binding, ...]) -> dict[str, Tensor]:
    named = {t for o in ctx.operators for t in (*o.inputs, *o.outputs) if t is not None}
    named |= {b.tensor for b in (*inputs, *outputs)}
    return {name: tensor for name, tensor in ctx.tensors.items() if name in named}
