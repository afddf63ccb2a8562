"""Conv and ConvTranspose over one, two and three spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Call, op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def begins_and_ends(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, from ``pads`` or ``auto_pad``."""
    mode = call.get("auto_pad", "NOTSET")
    rank = len(sizes)
    if mode == "NOTSET":
        pads = list(call.get("pads") or [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(large if mode == "SAME_LOWER" else small)
        ends.append(small if mode == "SAME_LOWER" else large)
    return begins, ends


def interleave(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding in the order of :func:`torch.nn.functional.pad`: last axis first."""
    return [p for pair in zip(reversed(begins), reversed(ends), strict=True) for p in pair]


def ones(call: Call, attribute: str, rank: int) -> list[int]:
    """A list attribute with one value per spatial axis, 1 where it is left out."""
    return list(call.get(attribute) or [1] * rank)


@op("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution; padding that differs between the two sides is written out first."""
    rank = x.ndim - 2
    strides, dilations = ones(call, "strides", rank), ones(call, "dilations", rank)
    begins, ends = begins_and_ends(call, x.shape[2:], weight.shape[2:], strides, dilations)
    if begins != ends or min(begins, default=0) < 0:
        x, begins = functional.pad(x, interleave(begins, ends)), [0] * rank
    return _CONV[rank](x, weight, bias, strides, begins, dilations, call.get("group", 1))


@op("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution, cut or extended to the padding that the node asks for."""
    rank = x.ndim - 2
    strides, dilations = ones(call, "strides", rank), ones(call, "dilations", rank)
    extra = list(call.get("output_padding") or [0] * rank)
    full = [
        s * (i - 1) + (k - 1) * d + 1
        for i, k, s, d in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    ]
    begins, ends = _transposed_pads(call, full, x.shape[2:], strides, extra)
    group = call.get("group", 1)
    plain = begins == ends and min(begins, default=0) >= 0
    if plain and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return _TRANSPOSED[rank](x, weight, bias, strides, begins, extra, group, dilations)
    y = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, group, dilations)
    y = functional.pad(y, interleave([-b for b in begins], [o - e for e, o in zip(ends, extra, strict=True)]))
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    call: Call, full: list[int], sizes: torch.Size, strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    rank = len(full)
    mode, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return begins_and_ends(call, sizes, full, strides, strides)
    target = list(wanted)[-rank:] if wanted else [i * s for i, s in zip(sizes, strides, strict=True)]
    totals = [f + o - t for f, o, t in zip(full, extra, target, strict=True)]
    begins = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
    return begins, [t - b for t, b in zip(totals, begins, strict=True)]
