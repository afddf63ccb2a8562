"""Normalization with statistics of the batch, of one sample's planes, of groups and of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Call, op


@op("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Statistics of the batch in training mode, which the running ones follow; the running ones otherwise.

    A node with ``training_mode=1`` also returns the new running statistics; its variance is that of the
    population, as the specification has it.
    """
    epsilon, momentum = call.get("epsilon", 1e-5), call.get("momentum", 0.9)
    if not call.get("training_mode", 0):
        if not call.training:
            return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        return functional.batch_norm(x, mean, variance, scale, bias, True, 1 - momentum, epsilon)
    axes = [i for i in range(x.ndim) if i != 1]
    with torch.no_grad():
        new_mean = mean * momentum + x.mean(axes).to(mean.dtype) * (1 - momentum)
        population = x.var(axes, unbiased=False).to(variance.dtype)
        new_variance = variance * momentum + population * (1 - momentum)
    y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    if call.training:
        with torch.no_grad():
            mean.copy_(new_mean)
            variance.copy_(new_variance)
    return y, new_mean, new_variance


@op("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each plane with its own mean and variance."""
    axes = tuple(range(2, x.ndim))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - mean) * torch.rsqrt(variance + call.get("epsilon", 1e-5))
    return y * scale.reshape(shape) + bias.reshape(shape)


@op("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each group of channels with its own mean and variance; before opset 21 one scale for each group."""
    groups = call.get("num_groups")
    if scale.numel() != x.shape[1]:
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@op("LRN")
def lrn(call: Call, x: Tensor) -> Tensor:
    """Divided by the energy of the neighbouring channels."""
    size = call.get("size")
    before = (size - 1) // 2
    squares = functional.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    energy: Tensor = squares.unfold(1, size, 1).sum(-1)
    alpha, beta = float(call.get("alpha", 1e-4)), float(call.get("beta", 0.75))
    bias = float(call.get("bias", 1.0))
    divisor: Tensor = (bias + alpha / size * energy).pow(beta)
    return x / divisor
