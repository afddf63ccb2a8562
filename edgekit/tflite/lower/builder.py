"""The model under construction: tensors, operators, and what had to be inserted between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.parts import quantizer
from edgekit.tflite.lower.layout import (
    Order,
    Shape,
    axes_of,
    common_runs,
    from_axes,
    linear,
    permutable_dims,
    permutation,
)
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.lower.view import Const, constant, fusable, plain_name, quantization_of
from edgekit.tflite.model import Array, DType, Operator, Quantization, Tensor
from edgekit.tflite.ops import OPS

#: Most dimensions of operators whose kernels have such a limit.
MOST_DIMS = {"PAD": 5, "PADV2": 5, "BATCH_MATMUL": 5}


@dataclass(frozen=True)
class Val:
    """An ONNX tensor that a TFLite tensor holds.

    Attributes:
        tensor: Name of the TFLite tensor.
        shape: ONNX shape.
        order: How the elements lie in memory.
        dims: Shape of the TFLite tensor.
        dtype: Element type.
        quantization: None for float and plain integers.
    """

    tensor: str
    shape: Shape
    order: Order
    dims: Shape
    dtype: DType
    quantization: Quantization | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LayoutNote:
    """An operator that the ONNX graph does not have and that moves or rescales data.

    Attributes:
        op: ``TRANSPOSE``, ``QUANTIZE``, …
        node: ONNX node it was inserted for.
        reason: Why.
    """

    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class Form:
    """What a result is stored as.

    Attributes:
        dtype: Element type.
        quantization: None for float.
    """

    dtype: DType
    quantization: Quantization | None


@dataclass
class Builder:
    """Collects a model.

    Attributes:
        quantized: Whether the graph has QuantizeLinear nodes; without, everything is float32.
        values: What every ONNX tensor became, by name.
        done: Nodes that another one's kernel absorbed.
        notes: What was inserted, with the tensor that it writes.
        blocks: Outputs of convolutions whose channels are wanted with the pixels of a block outside.
        avoid: Operators to be written with others.
    """

    quantized: bool
    values: dict[str, Val] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    notes: list[tuple[str, LayoutNote]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    blocks: Mapping[str, int] = field(default_factory=dict)
    avoid: Collection[str] = ()
    outputs: set[str] = field(default_factory=set)
    _shared: dict[tuple[Any, ...], Val] = field(default_factory=dict)
    _producers: dict[str, Operator] = field(default_factory=dict)

    # -- what a node reads ------------------------------------------------------------------------------

    def val(self, node: ir.Node, index: int = 0) -> Val:
        """The computed tensor that a node reads.

        Raises:
            RefusedError: It is stored, or an input of the graph that should have been quantized.
        """
        found = self.any_val(node, index)
        if self.quantized and found.dtype is DType.FLOAT32:
            raise RefusedError(
                f"its input '{node.inputs[index].name}' is not quantized",  # type: ignore[union-attr]
                "give its operator a rule in the scheme",
            )
        if not self.quantized and found.quantization is not None:
            return self._dequantized(found, node)
        return found

    def any_val(self, node: ir.Node, index: int = 0) -> Val:
        """The computed tensor that a node reads, float or codes.

        Raises:
            RefusedError: It is stored.
        """
        value = node.inputs[index]
        if value is None:
            raise RefusedError(f"it has no input {index}", "give it one")
        found = self.values.get(str(value.name))
        if found is None and (codes := quantizer(value)) is not None:
            found = self.values.get(str(codes.outputs[0].name))
        if found is None:
            raise RefusedError(f"its input {index} is stored, not computed", "fold constants before")
        return found

    @contextmanager
    def in_float(self, active: bool) -> Iterator[None]:
        """Whether what is lowered meanwhile computes in float."""
        before, self.quantized = self.quantized, self.quantized and not active
        try:
            yield
        finally:
            self.quantized = before

    def _dequantized(self, val: Val, node: ir.Node) -> Val:
        key = ("dequantize", val.tensor)
        if key not in self._shared:
            new = self.like(val, f"{val.tensor}_float", dtype=DType.FLOAT32, quantization=None)
            self.emit("DEQUANTIZE", [val.tensor], [new.tensor], source=node)
            note = LayoutNote("DEQUANTIZE", str(node.name), "its reader computes in float")
            self.notes.append((new.tensor, note))
            self._shared[key] = new
        made = self._shared[key]
        return replace(val, tensor=made.tensor, dims=made.dims, dtype=DType.FLOAT32, quantization=None)

    def const(self, node: ir.Node, index: int) -> Const | None:
        """The stored operand that a node reads, or None."""
        return constant(node.inputs[index]) if index < len(node.inputs) else None

    def form(self, node: ir.Node, output: int = 0) -> Form:
        """What the result of a node, or of the activation it absorbs, is stored as.

        Raises:
            RefusedError: The graph is quantized and this tensor is not.
        """
        value = node.outputs[output]
        kind = value.dtype
        if not self.quantized or (kind is not None and kind != ir.DataType.FLOAT):
            name = "float32" if kind is None else np.dtype(kind.numpy()).name
            return Form(DType.INT32 if name == "int64" else DType(name), None)
        found = quantizer(value)
        if found is None and (activation := fusable(value)) is not None:
            found = quantizer(activation.outputs[0])
        if found is None:
            raise RefusedError(
                f"its output '{value.name}' is not quantized", "give its operator a rule in the scheme"
            )
        quantization, dtype = quantization_of(found)
        return Form(dtype, quantization)

    # -- what a node writes -----------------------------------------------------------------------------

    def bind(self, value: ir.Value, val: Val) -> None:
        """Let ``val`` be what an ONNX tensor became."""
        self.values[str(value.name)] = val

    def new(self, base: str, dims: Sequence[int], form: Form, data: Array | None = None) -> str:
        """A tensor under ``base`` or, where that is taken, ``base.1`` …"""
        name, count = base, 0
        while name in self.tensors:
            count += 1
            name = f"{base}.{count}"
        shape = tuple(int(d) for d in dims)
        self.tensors[name] = Tensor(name, shape, form.dtype, form.quantization, data)
        return name

    def emit(
        self,
        op: str,
        inputs: Sequence[str | None],
        outputs: Sequence[str],
        options: Mapping[str, Any] | None = None,
        *,
        source: ir.Node | str = "",
    ) -> None:
        self._check_kernel(op, [t for t in (*inputs, *outputs) if t is not None])
        label = source if isinstance(source, str) else str(source.name)
        operator = Operator(op, tuple(inputs), tuple(outputs), dict(options or {}), label)
        self.operators.append(operator)
        self._producers.update(dict.fromkeys(outputs, operator))

    def _check_kernel(self, op: str, names: Sequence[str]) -> None:
        rank = max(len(self.tensors[n].shape) for n in names)
        if rank > MOST_DIMS.get(op, rank):
            rule = f"it needs a {op} with {rank} dimensions, LiteRT's takes {MOST_DIMS[op]}"
            raise RefusedError(rule, "merge axes by a Reshape before it")
        info = OPS.get(op)
        kinds = {self.tensors[n].dtype for n in names if self.tensors[n].quantization is not None}
        for kind, known in (
            (DType.INT16, info is None or info.int16),
            (DType.INT8, info is None or info.int8),
        ):
            if kind in kinds:
                if not known:
                    raise RefusedError(f"LiteRT's {op} has no {kind} kernel", "give it another format")
                return

    def result(self, value: ir.Value, shape: Shape, order: Order, dims: Sequence[int], form: Form) -> Val:
        """A fresh tensor for an ONNX tensor, not bound yet."""
        name = self.new(plain_name(value), dims, form)
        tensor = self.tensors[name]
        axes = axes_of(order, shape, tensor.shape)
        if axes is not None and tuple(shape[a] for a in axes) == tensor.shape:
            tensor = replace(tensor, axes=axes)
        self.tensors[name] = replace(tensor, source=plain_name(value))
        return Val(name, tuple(shape), order, tensor.shape, form.dtype, form.quantization)

    def like(self, val: Val, base: str, **changed: Any) -> Val:
        """A fresh inner tensor that differs from ``val`` in what is given."""
        new = replace(val, **changed)
        return replace(new, tensor=self.new(base, new.dims, Form(new.dtype, new.quantization)))

    # -- constants --------------------------------------------------------------------------------------

    def store(self, base: str, data: Array, quantization: Quantization | None = None) -> str:
        """A constant tensor; equal ones of one name are shared."""
        data = np.ascontiguousarray(data)
        form = Form(DType(data.dtype.name), quantization)
        scale = () if quantization is None else (quantization.scale.tobytes(), quantization.axis)
        key = ("const", base, data.shape, data.dtype.name, data.tobytes() if data.size < 4096 else id(data))
        if (key, scale) in self._shared:
            return self._shared[key, scale].tensor
        name = self.new(base, data.shape, form, data)
        self._shared[key, scale] = Val(name, data.shape, (), data.shape, form.dtype)
        return name

    def ints(self, base: str, numbers: Sequence[int]) -> str:
        """An int32 vector, such as a shape."""
        label = f"{base}/" + "x".join(str(n) for n in numbers)
        return self.store(label, np.array(numbers, np.int32))

    # -- moving data ------------------------------------------------------------------------------------

    def reshaped(self, val: Val, dims: Shape) -> Val:
        """The same memory under other dimensions."""
        if val.dims == dims:
            return val
        return self._once(("reshape", val.tensor, dims), val, lambda: self._reshape(val, dims))

    def _reshape(self, val: Val, dims: Shape) -> Val:
        maker = self._producers.get(val.tensor)
        if maker is not None and maker.op == "RESHAPE" and maker.inputs[0] is not None:
            # A reshape of a reshape is one of the tensor before it.
            source = str(maker.inputs[0])
            first = self.tensors[source].shape
            if first == dims:
                return replace(val, tensor=source, dims=first)
        else:
            source = val.tensor
        new = self.like(val, f"{val.tensor}_reshaped", dims=dims)
        options = {"newShape": list(dims)}
        self.emit("RESHAPE", [source, self.ints("shape", dims)], [new.tensor], options)
        return new

    def _once(self, key: tuple[Any, ...], val: Val, make: Callable[[], Val]) -> Val:
        if key not in self._shared:
            self._shared[key] = make()
        made = self._shared[key]
        # Orders belong to the ONNX shape that a tensor is seen through, so they are not shared.
        return replace(val, tensor=made.tensor, dims=made.dims)

    def arranged(self, val: Val, order: Order, dims: Shape | None, node: ir.Node, why: str) -> Val:
        """``val`` in another order and, where given, under certain dimensions.

        A TRANSPOSE is inserted, once for all readers, where the order differs.
        """
        if val.order != order:
            key = ("transpose", val.tensor, val.order, order)
            made = self._once(key, val, lambda: self._transpose(val, order, dims, node, why))
            val = replace(made, order=order)
        return val if dims is None else self.reshaped(val, dims)

    def _transpose(self, val: Val, order: Order, dims: Shape | None, node: ir.Node, why: str) -> Val:
        perm = None if dims is None else permutation(val.order, val.dims, order, dims)
        if perm is None and dims is not None:
            near = permutable_dims(val.order, order, dims)
            if near is not None:
                val = self.reshaped(val, near)
                perm = permutation(val.order, near, order, dims)
        if perm is None or dims is None:
            cut = common_runs(val.order, order)
            if cut is None:  # only by way of ONNX's own order
                val = self._transpose(val, linear(val.shape), None, node, why)
                cut = common_runs(val.order, order)
            if cut is None:
                raise RefusedError(
                    "its input lies in an order that no TRANSPOSE restores", "report the model"
                )
            val, perm = self.reshaped(val, tuple(cut[0])), tuple(cut[1])
            dims = tuple(cut[0][p] for p in perm)
        new = self.like(val, f"{val.tensor}_transposed", dims=dims, order=order)
        self.emit("TRANSPOSE", [val.tensor, self.ints("perm", perm)], [new.tensor], source=node)
        self.notes.append((new.tensor, LayoutNote("TRANSPOSE", str(node.name), why)))
        return new

    def by_axes(self, val: Val, axes: Sequence[int], node: ir.Node, why: str) -> Val:
        """``val`` with stored axis i being ONNX axis ``axes[i]``."""
        dims = tuple(val.shape[a] for a in axes)
        return self.arranged(val, from_axes(val.shape, axes), dims, node, why)

    def requantized(self, val: Val, form: Form, node: ir.Node, why: str) -> Val:
        """``val`` in other codes; a QUANTIZE is inserted where they differ."""
        same = (
            form.quantization is None
            if val.quantization is None
            else val.quantization.same_as(form.quantization)
        )
        if same and form.dtype is val.dtype:
            return val
        scale = () if form.quantization is None else tuple(form.quantization.scale.tolist())
        zero = () if form.quantization is None else tuple(form.quantization.zero_point.tolist())
        key = ("quantize", val.tensor, form.dtype, scale, zero)
        return self._once_quantized(key, val, form, node, why)

    def _once_quantized(self, key: tuple[Any, ...], val: Val, form: Form, node: ir.Node, why: str) -> Val:
        if key not in self._shared:
            base = f"{val.tensor}_requantized"
            new = self.like(val, base, dtype=form.dtype, quantization=form.quantization)
            self.emit("QUANTIZE", [val.tensor], [new.tensor], source=node)
            self.notes.append((new.tensor, LayoutNote("QUANTIZE", str(node.name), why)))
            self._shared[key] = new
        made = self._shared[key]
        return replace(
            val, tensor=made.tensor, dims=made.dims, dtype=form.dtype, quantization=form.quantization
        )
