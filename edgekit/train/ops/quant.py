"""QuantizeLinear, DequantizeLinear, and the two together as fake quantization that gradients pass through."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.tensors import TORCH_TYPES, round_to_float4

#: Element type to smallest and largest code.
RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT2: (-2, 1),
}


def spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scale or zero point in a shape that broadcasts against ``x``: per tensor, per axis or per block."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis %= x.ndim
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.ndim == 1:
        return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return parameter


def code_limits(call: Call) -> tuple[int, int]:
    """Smallest and largest code that a QuantizeLinear writes.

    ``narrow_range``, an attribute of edgekit's own in graphs that are trained, leaves out the lowest code of
    a signed type, as symmetric weights do.
    """
    low, high = RANGES[code_type(call)]
    return (max(low, -high) if call.get("narrow_range", 0) else low), high


def code_type(call: Call) -> int:
    """Element type of the codes that a QuantizeLinear writes."""
    if len(call.input_types) > 2 and call.input_types[2] is not None:
        return call.input_types[2]
    stated = call.output_types[0] if call.output_types else None
    return int(call.get("output_dtype", 0) or stated or TensorProto.UINT8)


@op("QuantizeLinear")
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Codes, rounded half to even; as a pair with DequantizeLinear, with a straight-through gradient."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    steps = spread(scale, x, axis, block)
    if call.get("precision", 0):
        precise = TORCH_TYPES[call.get("precision")]
        x, steps = x.to(precise), steps.to(precise)
    ratio = x / steps
    kind = code_type(call)
    if kind in RANGES:
        codes = ratio.round()
        if zero is not None:
            codes = codes + spread(zero, x, axis, block).to(codes.dtype)
        return codes.clamp(*code_limits(call)).to(TORCH_TYPES[kind])
    if kind == TensorProto.FLOAT4E2M1:
        return round_to_float4(ratio)
    if call.get("saturate", 1):
        largest = torch.finfo(TORCH_TYPES[kind]).max
        ratio = ratio.clamp(-largest, largest)
    return ratio.to(TORCH_TYPES[kind])


@op("DequantizeLinear")
def dequantize_linear(call: Call, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Values of codes: (code - zero point) x scale; the scale may be learned."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    kind = call.get("output_dtype", 0)
    values = codes.to(torch.float64 if scale.dtype == torch.float64 else torch.float32)
    if zero is not None:
        values = values - spread(zero, codes, axis, block).to(values.dtype)
    found = values * spread(scale, codes, axis, block)
    return found.to(TORCH_TYPES[kind] if kind else scale.dtype)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 8 bits with the scale and zero point of the tensor's own range."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255)
    codes = ((x / scale).round() + zero).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def fake_quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """What QuantizeLinear and then DequantizeLinear with the same parameters give, differentiably.

    The gradient reaches ``x`` where its code is in range and is zero elsewhere. A scale that requires a
    gradient gets that of LSQ (arXiv:1902.08153, eq. 3), times the attribute ``gradient_scale`` of graphs that
    are trained (its section 2.2), 1 by default.
    """
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    steps = spread(scale, x, axis, block)
    low, high = code_limits(call)
    first: Tensor | int = low
    last: Tensor | int = high
    if zero is not None:
        known = call.constants.get(2)
        if known is not None and (known.size == 1 or not known.any()):
            first, last = low - int(known.flat[0]), high - int(known.flat[0])
        else:
            offset = spread(zero, x, axis, block).to(x.dtype)
            first, last = low - offset, high - offset
    share = call.get("gradient_scale", 1.0)
    found: Tensor = _FakeQuantize.apply(x, steps, first, last, share)  # type: ignore[no-untyped-call]
    return found


class _FakeQuantize(torch.autograd.Function):
    """Codes are counted from the zero point; few passes over memory, which is what they cost."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: Tensor, first: Tensor | int, last: Tensor | int, share: float
    ) -> Tensor:
        learned = scale.requires_grad
        ratio = x / scale
        codes = ratio.round() if learned else ratio.round_()
        kept = codes.clamp(first, last)  # type: ignore[arg-type]
        inside = codes == kept
        if learned:
            # How the value changes with the scale: by its rounding error inside, by its code outside.
            context.save_for_backward(inside, torch.where(inside, ratio.neg_().add_(codes), kept))
        else:
            context.save_for_backward(inside)
        context.scale_shape, context.share = scale.shape, share
        return kept * scale if learned else kept.mul_(scale)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        inside, *slope = context.saved_tensors
        to_scale = None
        if slope:
            to_scale = (gradient * slope[0]).sum_to_size(context.scale_shape) * context.share
        return gradient * inside, to_scale, None, None, None
