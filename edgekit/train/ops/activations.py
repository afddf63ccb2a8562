"""Activation functions, and the softmax family."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # the name that torch's own documentation uses
from torch import Tensor

from edgekit.train.ops.base import Call, op


@op("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    return F.relu(x)


@op("Sigmoid")
def sigmoid(call: Call, x: Tensor) -> Tensor:
    return x.sigmoid()


@op("Tanh")
def tanh(call: Call, x: Tensor) -> Tensor:
    return x.tanh()


@op("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@op("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    channels = x.shape[1] if x.ndim > 1 else 1
    per_channel = slope.ndim >= x.ndim - 1 and slope.shape[1 - x.ndim] == channels
    if slope.numel() == 1 or (x.ndim > 1 and slope.numel() == channels and per_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


@op("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha: float = call.get("alpha", 0.2)
    beta: float = call.get("beta", 0.5)
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-6:
        return F.hardsigmoid(x)
    return (x * alpha + beta).clamp(0, 1)


@op("HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    return F.hardswish(x)


def _along(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a function along ``axis``; before opset 13 along all axes from ``axis`` on, as one."""
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis: int = call.get("axis", 1)
    rows = x.shape[:axis].numel() if axis else 1
    return function(x.reshape(rows, -1), 1).reshape(x.shape)


@op("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    return _along(call, x, torch.softmax)


@op("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return _along(call, x, torch.log_softmax)


@op("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """1 at the first maximum along the axis, 0 elsewhere; no gradient."""
    return _along(call, x, lambda t, axis: torch.zeros_like(t).scatter(axis, t.argmax(axis, keepdim=True), 1))


@op("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@op("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha: float = call.get("alpha", 1.67326319217681884765625)
    gamma: float = call.get("gamma", 1.05070102214813232421875)
    return gamma * F.elu(x, alpha)


@op("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


@op("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@op("Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    return F.mish(x)


@op("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    return F.softplus(x)


@op("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    return F.softsign(x)


def _swish(x: Tensor, alpha: float) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@op("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    return _swish(x, call.get("alpha", 1.0))


@op("SwiGLU")
def swiglu(call: Call, gate: Tensor, x: Tensor) -> Tensor:
    return _swish(gate, call.get("alpha", 1.0)) * x


@op("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return F.threshold(x, call.get("alpha", 1.0), 0.0)


@op("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    outer = torch.where(x < 0, x + bias, x - bias)
    return torch.where(x.abs() > limit, outer, torch.zeros_like(x))


@op("Gelu", domain="com.microsoft")
def microsoft_gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x)


@op("BiasGelu", domain="com.microsoft")
def bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@op("FastGelu", domain="com.microsoft")
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", domain="com.microsoft")
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    return _swish(x, call.get("alpha", 1.702))
