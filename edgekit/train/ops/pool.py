"""Pooling over windows and over everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.conv import begins_and_ends, interleave, ones

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class _Windows:
    """Windows over the spatial axes.

    Attributes:
        kernel: Cells of a window along each axis.
        strides: Steps between windows.
        dilations: Steps between cells.
        begins: Padding before.
        ends: Padding after, as the node states it.
        overhang: Cells beyond that padding which the last window reaches with ceil_mode.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]
    overhang: list[int]

    @property
    def all_ends(self) -> list[int]:
        return [e + o for e, o in zip(self.ends, self.overhang, strict=True)]

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding, at most half a window, does it."""
        return self.begins == self.all_ends and all(
            0 <= 2 * b <= k for b, k in zip(self.begins, self.kernel, strict=True)
        )


def _windows(call: Call, x: Tensor) -> _Windows:
    rank = x.ndim - 2
    kernel = list(call.get("kernel_shape") or x.shape[2:])
    strides, dilations = ones(call, "strides", rank), ones(call, "dilations", rank)
    begins, ends = begins_and_ends(call, x.shape[2:], kernel, strides, dilations)
    overhang = [0] * rank
    if call.get("ceil_mode", 0):
        for i, size in enumerate(x.shape[2:]):
            reach = (kernel[i] - 1) * dilations[i] + 1
            count = math.ceil((size + begins[i] + ends[i] - reach) / strides[i]) + 1
            # A window that would start in the padding after the input is left out.
            if (count - 1) * strides[i] >= size + begins[i]:
                count -= 1
            overhang[i] = max((count - 1) * strides[i] + reach - size - begins[i] - ends[i], 0)
    return _Windows(kernel, strides, dilations, begins, ends, overhang)


@op("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Largest value of each window, and where it is in the whole tensor."""
    rank = x.ndim - 2
    w = _windows(call, x)
    dtype = x.dtype
    if not dtype.is_floating_point:
        x = x.float()
    size, begins = x.shape, w.begins
    if not w.symmetric:
        x = functional.pad(x, interleave(w.begins, w.all_ends), value=-math.inf)
        begins = [0] * rank
    if call.outputs == 1:
        return _MAX[rank](x, w.kernel, w.strides, begins, w.dilations).to(dtype)
    y, where = _MAX[rank](x, w.kernel, w.strides, begins, w.dilations, return_indices=True)
    shift = [0] * rank if w.symmetric else w.begins
    column_major = bool(call.get("storage_order", 0))
    return y.to(dtype), _flat_positions(where, x.shape[2:], shift, size, column_major)


def _flat_positions(
    where: Tensor, padded: torch.Size, shift: list[int], size: torch.Size, column_major: bool
) -> Tensor:
    """Positions in the flattened ``[N, C, ...]`` tensor from those in one padded plane."""
    coordinates = []
    for axis in reversed(range(len(padded))):
        coordinates.append(where % padded[axis] - shift[axis])
        where = where // padded[axis]
    spatial = list(size[2:])
    # From the slowest axis to the fastest one.
    order = range(len(spatial)) if column_major else reversed(range(len(spatial)))
    flat = torch.zeros_like(where)
    for i in order:
        axis = len(spatial) - 1 - i
        flat = flat * spatial[axis] + coordinates[i]
    planes = torch.arange(size[0] * size[1], device=where.device) * math.prod(spatial)
    return flat + planes.reshape(size[0], size[1], *[1] * len(spatial))


@op("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of each window; cells beyond the padding never count, cells in it with count_include_pad."""
    w = _windows(call, x)
    rank = x.ndim - 2
    include = bool(call.get("count_include_pad", 0))
    if w.symmetric and w.dilations == [1] * rank and not any(w.overhang):
        pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[rank]
        return pool(x, w.kernel, w.strides, w.begins, False, include)
    real = torch.ones_like(x[:1, :1])
    if include:
        real = functional.pad(real, interleave(w.begins, w.ends), value=1.0)
        real = functional.pad(real, interleave([0] * rank, w.overhang))
    else:
        real = functional.pad(real, interleave(w.begins, w.all_ends))
    return _sums(functional.pad(x, interleave(w.begins, w.all_ends)), w) / _sums(real, w)


def _sums(x: Tensor, w: _Windows) -> Tensor:
    """Sum of each window of an input that is padded already."""
    flat = x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:])
    kernel = torch.ones(1, 1, *w.kernel, dtype=x.dtype, device=x.device)
    sums = _CONV[len(w.kernel)](flat, kernel, None, w.strides, 0, w.dilations)
    return sums.reshape(x.shape[0], x.shape[1], *sums.shape[2:])


@op("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """Norm of each window."""
    p, w = call.get("p", 2), _windows(call, x)
    powers = functional.pad(x.abs().pow(p), interleave(w.begins, w.all_ends))
    return _sums(powers, w).pow(1 / p)


@op("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean over all spatial axes."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """Maximum over all spatial axes."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """Norm over all spatial axes."""
    p = call.get("p", 2)
    return x.abs().pow(p).sum(tuple(range(2, x.ndim)), keepdim=True).pow(1 / p)
