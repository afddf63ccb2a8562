"""A ``.tflite`` model of one operator, as the lowering would make it of a node with other shapes.

Its weights are normally distributed: the NPU reads them compressed, so that their distribution has a small
share in the time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import int_attribute, is_constant
from edgekit.target import NodeRequest
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel

Shape = tuple[int, ...]
_STEP = 0.05


@dataclass(frozen=True)
class Single:
    """One operator, described by everything that its time depends on.

    Attributes:
        op: Of TFLite.
        x: Shape of its input, as stored.
        w: Shape of its weights as stored, or of its second input.
        y: Shape of its output, as stored.
        options: Of the TFLite operator.
    """

    op: str
    x: Shape
    w: Shape
    y: Shape
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Under which its cycles are remembered."""
        return json.dumps([self.op, self.x, self.w, self.y, dict(self.options)], separators=(",", ":"))


def single(request: NodeRequest) -> Single:
    """What a Conv, ConvTranspose, Gemm or MatMul becomes on the NPU."""
    op = request.node.op_type
    if op == "Conv":
        return _conv(request)
    if op == "ConvTranspose":
        return _transposed(request)
    return _matmul(request)


def model_of(one: Single) -> TfliteModel:
    """The model of one operator, int8, with one scale for each output channel of its weights."""
    x, y = _tensor("x", one.x), _tensor("y", one.y)
    inputs = {"x": "x"}
    tensors = [x, y]
    if one.op == "BATCH_MATMUL":
        tensors.append(_tensor("w", one.w))
        inputs["w"] = "w"
        names: tuple[str, ...] = ("x", "w")
    else:
        axis = 3 if one.op == "DEPTHWISE_CONV_2D" else 0
        channels = one.w[axis]
        tensors += [_weights(one.w, axis), _bias(channels)]
        names = ("x", "w", "b")
        if one.op == "TRANSPOSE_CONV":
            tensors.append(Tensor("shape", (4,), DType.INT32, None, np.array(one.y, np.int32)))
            names = ("shape", "w", "x", "b")
    operator = Operator(one.op, names, ("y",), dict(one.options))
    return TfliteModel({t.name: t for t in tensors}, (operator,), inputs, {"y": "y"})


def _conv(request: NodeRequest) -> Single:
    x, w, y = _image(request.inputs[0]), _image(request.inputs[1]), _image(request.outputs[0])
    stride, dilation = _pair(request.node, "strides"), _pair(request.node, "dilations")
    kernel = (w[2], w[3])
    groups = max(1, x[1] // max(1, w[1]))
    padding, size = _padding((x[2], x[3]), (y[2], y[3]), kernel, stride, dilation)
    options: dict[str, Any] = {"padding": padding, "strideH": stride[0], "strideW": stride[1]}
    options |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    if groups > 1 and w[1] == 1:
        options["depthMultiplier"] = max(1, y[1] // x[1])
        stored = (1, *kernel, x[1] * options["depthMultiplier"])
        return _made("DEPTHWISE_CONV_2D", (x[0], *size, x[1]), stored, (y[0], y[2], y[3], stored[3]), options)
    stored = (y[1], *kernel, w[1])
    return _made("CONV_2D", (x[0], *size, x[1]), stored, (y[0], y[2], y[3], y[1]), options)


def _transposed(request: NodeRequest) -> Single:
    x, w, y = _image(request.inputs[0]), _image(request.inputs[1]), _image(request.outputs[0])
    stride, kernel = _pair(request.node, "strides"), (w[2], w[3])
    same = all(o == i * s for o, i, s in zip(y[2:], x[2:], stride, strict=True))
    # Any other padding is what is cut off the full result; groups become zeros in dense weights.
    full = [(i - 1) * s + k for i, s, k in zip(x[2:], stride, kernel, strict=True)]
    size = (y[2], y[3]) if same else (full[0], full[1])
    options = {"padding": "SAME" if same else "VALID", "strideH": stride[0], "strideW": stride[1]}
    stored = (y[1], *kernel, x[1])
    return _made("TRANSPOSE_CONV", (x[0], x[2], x[3], x[1]), stored, (y[0], *size, y[1]), options)


def _matmul(request: NodeRequest) -> Single:
    left, right, out = request.inputs[0] or (1,), request.inputs[1] or (1,), request.outputs[0]
    node = request.node
    gemm = node.op_type == "Gemm"
    if gemm and int_attribute(node, "transA", 0):
        left = left[::-1]
    turned = gemm and bool(int_attribute(node, "transB", 0))
    if is_constant(node.inputs[1]) and len(right) == 2:
        wide = right[0] if turned else right[1]
        weights = (wide, left[-1])
        return _made("FULLY_CONNECTED", left, weights, (*left[:-1], wide), {"keepNumDims": True})
    if len(left) < 2 or len(right) < 2:
        left, right = (1,) * (2 - len(left)) + left, right + (1,) * (2 - len(right))
    options = {"adjX": False, "adjY": turned}
    return _made("BATCH_MATMUL", left, right, out if len(out) >= 2 else (left[-2], right[-1]), options)


def _made(op: str, x: Shape, w: Shape, y: Shape, options: dict[str, Any]) -> Single:
    return Single(op, x, w, y, tuple(options.items()))


def _image(shape: Shape | None) -> Shape:
    """A shape with two spatial axes; a sequence is an image of height 1."""
    known = shape or (1, 1, 1, 1)
    return (*known[:2], 1, known[2]) if len(known) == 3 else known


def _pair(node: ir.Node, name: str) -> tuple[int, int]:
    attribute = node.attributes.get(name)
    values = [1, 1] if attribute is None else [int(v) for v in attribute.as_ints()]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _padding(
    size: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[str, tuple[int, int]]:  # fmt: skip
    """``SAME`` where TFLite's has that output; else ``VALID`` on an input that is padded beforehand."""
    if all(o == -(-i // s) for o, i, s in zip(out, size, stride, strict=True)):
        return "SAME", size
    full = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    return "VALID", (full[0], full[1])


def _tensor(name: str, shape: Shape) -> Tensor:
    return Tensor(name, shape, DType.INT8, Quantization.single(_STEP, 0))


def _weights(shape: Shape, axis: int) -> Tensor:
    random = np.random.default_rng(0)
    codes = np.clip(np.rint(random.standard_normal(shape, np.float32) * 32), -127, 127).astype(np.int8)
    count = shape[axis]
    scales = Quantization(np.full(count, _STEP, np.float32), np.zeros(count, np.int64), axis)
    return Tensor("w", shape, DType.INT8, scales, codes)


def _bias(count: int) -> Tensor:
    scales = Quantization(np.full(count, _STEP * _STEP, np.float32), np.zeros(count, np.int64), 0)
    return Tensor("b", (count,), DType.INT32, scales, np.zeros(count, np.int32))
