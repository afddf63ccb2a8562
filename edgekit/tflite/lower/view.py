"""What a QDQ graph says about a tensor: codes, quantization, constant, the activation behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.parts import is_op
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.model import Array, DType, Quantization

#: Activations that kernels of TFLite can absorb.
FUSABLE = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Const:
    """A stored operand.

    Attributes:
        name: Of the initializer.
        data: Real values, or codes where ``quantization`` is set; in ONNX's shape.
        quantization: Meaning of the codes; its axis is one of ``data``.
    """

    name: str
    data: Array
    quantization: Quantization | None = None

    def real(self) -> Array:
        """The values that the codes stand for."""
        q = self.quantization
        if q is None:
            return self.data
        shape = [-1 if i == q.axis else 1 for i in range(self.data.ndim)] if len(q.scale) > 1 else [1]
        zero = q.zero_point.reshape(shape)
        real = (self.data.astype(np.float64) - zero) * q.scale.reshape(shape).astype(np.float64)
        return real.astype(np.float32)


def quantization_of(node: ir.Node) -> tuple[Quantization, DType]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, and the type of the codes.

    uint8 codes are told as int8 ones, 128 lower: the same values.

    Raises:
        RefusedError: The codes have a type that TFLite has not, or parameters that are computed.
    """
    scale = array(node.inputs[1])
    if scale is None:
        raise RefusedError("its scale is computed", "use a stored scale")
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    zero = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if zero is None and codes is not None and codes.dtype is not None:
        kind = np.dtype(codes.dtype.numpy())
    points = np.zeros(scale.size, np.int64) if zero is None else zero.astype(np.int64).ravel()
    if kind == np.uint8:
        points, kind = points - 128, np.dtype(np.int8)
    if kind.name not in ("int8", "int16", "int32"):
        raise RefusedError(f"its codes are {kind.name}", "quantize with a scheme of int8 or int16")
    if kind == np.int16 and points.any():
        raise RefusedError("its int16 codes have a zero point", "16-bit activations are symmetric in TFLite")
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return Quantization(scale.astype(np.float32).ravel(), points, axis if scale.size > 1 else 0), DType(
        kind.name
    )


def constant(value: ir.Value | None) -> Const | None:
    """A stored operand, behind its DequantizeLinear where it has one; None for what is computed."""
    if value is None:
        return None
    data = array(value)
    if data is not None:
        return Const(str(value.name), data)
    node = value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    codes = array(node.inputs[0])
    if codes is None:
        return None
    quantization, _ = quantization_of(node)
    if codes.dtype == np.uint8:
        codes = (codes.astype(np.int16) - 128).astype(np.int8)
    if len(quantization.scale) > 1:
        axis = quantization.axis % codes.ndim
        quantization = Quantization(quantization.scale, quantization.zero_point, axis)
    return Const(str(value.name).removesuffix("_dequantized"), codes, quantization)


def fusable(value: ir.Value) -> ir.Node | None:
    """The node that alone reads ``value``, which nothing quantizes before it, and that its kernel absorbs.

    Activations, the bias that is added behind a MatMul with stored weights, and the Reciprocal of a Sqrt.
    """
    readers, maker = value.consumers(), value.producer()
    if len(readers) != 1 or value.is_graph_output():
        return None
    reader = readers[0]
    if is_op(maker, "Sqrt") and is_op(reader, "Reciprocal"):
        return reader
    if is_op(maker, "MatMul") and is_op(reader, "Add"):
        return reader if added_bias(reader) is not None else None
    if not is_op(reader, *FUSABLE):
        return None
    bounds = [array(v) for v in reader.inputs[1:] if v is not None]
    return reader if all(b is not None for b in bounds) else None


def added_bias(node: ir.Node) -> Array | None:
    """The stored vector that an Add puts on the outputs of a MatMul with stored weights, as its bias."""
    for index in (0, 1):
        value, product = node.inputs[index], node.inputs[1 - index]
        maker = None if product is None else product.producer()
        bias = array(value)
        if bias is None or not is_op(maker, "MatMul"):
            continue
        weight = constant(maker.inputs[1])  # type: ignore[union-attr]
        if weight is not None and weight.data.ndim == 2 and bias.shape == (weight.data.shape[1],):
            return bias
    return None


def bounds_of(node: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip cuts off.

    Raises:
        RefusedError: A bound is computed.
    """
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [-float("inf"), float("inf")]
    for i, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        found = constant(value)
        if found is None:
            raise RefusedError("its bounds are computed", "clip by stored bounds")
        ends[i] = float(found.real().reshape(-1)[0])
    return ends[0], ends[1]


def plain_name(value: ir.Value) -> str:
    """The name of a tensor without what quantization appended."""
    return str(value.name).removesuffix("_raw").removesuffix("_dequantized").removesuffix("_quantized")
