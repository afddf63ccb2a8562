"""Normalization over the axes of one sample.

Half-precision inputs are normalized in float32 (``stash_type`` 1, the default); wider ones in their own type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name that torch's own documentation uses
from torch import Tensor

from edgekit.train.ops.base import Call, op


def _stashed(call: Call, x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) and call.get("stash_type", 1) == 1 else x


def _standardized(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over ``axis`` and those after it: the normalized input, its mean, its inverse standard deviation."""
    wide = _stashed(call, x)
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    centered = wide - (mean := wide.mean(axes, keepdim=True))
    inverse = torch.rsqrt((centered * centered).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return (centered * inverse).to(x.dtype), mean, inverse


def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    shape = x.shape[call.get("axis", -1) % x.ndim :]
    epsilon = call.get("epsilon", 1e-5)
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


@op("LayerNormalization")
def layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Further outputs: mean and inverse standard deviation."""
    if call.outputs <= 1:
        return _layer_norm(call, x, scale, bias)
    y, mean, inverse = _standardized(call, x)
    y = y * scale
    return (y if bias is None else y + bias, mean, inverse)[: call.outputs]


def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    shape = x.shape[call.get("axis", -1) % x.ndim :]
    wide = _stashed(call, x)
    if scale.shape == shape and wide is x:
        return F.rms_norm(x, shape, scale, call.get("epsilon", 1e-5))
    return F.rms_norm(wide, shape, None, call.get("epsilon", 1e-5)).to(x.dtype) * scale


@op("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    return _rms_norm(call, x, scale)


@op("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    axes = call.get("axes", [0, 2, 3])
    centered = x - x.mean(axes, keepdim=True)
    return centered / ((centered * centered).mean(axes, keepdim=True).sqrt() + 1e-9)


@op("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """A vector whose norm is 0 stays 0."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@op("SkipLayerNormalization", domain="com.microsoft")
def skip_layer_normalization(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """LayerNormalization of ``x + skip + bias``; outputs 1 and 2 are empty, output 3 is the sum."""
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], scale, shift, call.get("epsilon", 1e-12))
    return y if call.outputs <= 1 else (y, y.new_empty(0), y.new_empty(0), total)[: call.outputs]


@op("SimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """What ONNX Runtime calls RMSNormalization when it fuses one; it puts it in the standard domain."""
    return _rms_norm(call, x, scale)


@op("SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_simplified_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """RMS normalization of ``x + skip + bias``; outputs 1 and 2 are empty, output 3 is the sum."""
    total = x + skip if bias is None else x + skip + bias
    y = F.rms_norm(total, total.shape[-1:], scale, call.get("epsilon", 1e-5))
    return y if call.outputs <= 1 else (y, y.new_empty(0), y.new_empty(0), total)[: call.outputs]
