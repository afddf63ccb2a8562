"""Reductions along axes, running sums, and searches for the largest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.elementwise import through_int64


def _axes(call: Call, x: Tensor, axes: Tensor | None) -> list[int] | None:
    """The axes to reduce, none negative; None where the node says to reduce none.

    They are an attribute in older opsets, an input in newer ones; none given means all.
    """
    given = call.values(1, axes)
    if given is None:
        given = call.get("axes")
    rank = max(x.ndim, 1)  # torch lets axis 0 of a scalar be named
    if given:
        return [int(axis) % rank for axis in given]
    return None if call.get("noop_with_empty_axes", 0) else list(range(rank))


def _keep(call: Call) -> bool:
    return bool(call.get("keepdims", 1))


def _sum(call: Call, x: Tensor, axes: Tensor | None) -> Tensor:
    over = _axes(call, x, axes)
    return x if over is None else x.sum(over, keepdim=_keep(call), dtype=x.dtype)


@op("ReduceSum")
@through_int64
def reduce_sum(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _sum(call, x, axes)


@op("ReduceMean")
def reduce_mean(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(call, x, axes)
    if over is None:
        return x
    if not x.is_floating_point():
        return x.double().mean(over, keepdim=_keep(call)).to(x.dtype)
    return x.mean(over, keepdim=_keep(call))


@op("ReduceSumSquare")
@through_int64
def reduce_sum_square(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _sum(call, x * x, axes)


@op("ReduceL1")
@through_int64
def reduce_l1(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _sum(call, x.abs(), axes)


@op("ReduceL2")
@through_int64
def reduce_l2(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The gradient of a vector of zeros is 0."""
    over = _axes(call, x, axes)
    if over is None:
        return x.abs()
    values = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(values, 2, over, keepdim=_keep(call))
    return norm.to(x.dtype)


@op("ReduceLogSum")
def reduce_log_sum(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _sum(call, x, axes).log()


@op("ReduceLogSumExp")
def reduce_log_sum_exp(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(call, x, axes)
    return x if over is None else torch.logsumexp(x, over, keepdim=_keep(call))


@op("ReduceProd")
@through_int64
def reduce_prod(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dtype = x.dtype
    for axis in sorted(_axes(call, x, axes) or (), reverse=True):
        x = x.prod(axis, keepdim=_keep(call), dtype=dtype)
    return x


def _extreme(call: Call, x: Tensor, axes: Tensor | None, largest: bool) -> Tensor:
    over = _axes(call, x, axes)
    if over is None:
        return x
    if any(x.shape[axis] == 0 for axis in over if x.ndim):
        # Of nothing: what leaves every other value as it is.
        shape = [1 if i in over else n for i, n in enumerate(x.shape) if i not in over or _keep(call)]
        return torch.full(
            shape, _least(x.dtype) if largest else _greatest(x.dtype), dtype=x.dtype, device=x.device
        )
    return x.amax(over, keepdim=_keep(call)) if largest else x.amin(over, keepdim=_keep(call))


def _least(dtype: torch.dtype) -> float:
    if dtype == torch.bool:
        return 0
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _greatest(dtype: torch.dtype) -> float:
    if dtype == torch.bool:
        return 1
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max


@op("ReduceMax")
@through_int64
def reduce_max(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Equal maxima share the gradient."""
    return _extreme(call, x, axes, largest=True)


@op("ReduceMin")
@through_int64
def reduce_min(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Equal minima share the gradient."""
    return _extreme(call, x, axes, largest=False)


def _position(call: Call, x: Tensor, search: Callable[..., Tensor]) -> Tensor:
    """Where along the axis the extreme value stands; of equals the first, or the last if the node says so."""
    axis: int = call.get("axis", 0)
    keep = _keep(call)
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - search(x.flip(axis), axis, keepdim=keep)
    return search(x, axis, keepdim=keep)


@op("ArgMax")
def argmax(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, torch.argmax)


@op("ArgMin")
def argmin(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, torch.argmin)


def _running(
    call: Call, x: Tensor, axis: Tensor | None, function: Callable[..., Tensor], start: int
) -> Tensor:
    along = int((call.values(1, axis) or [0])[0])
    reverse = bool(call.get("reverse", 0))
    if reverse:
        x = x.flip(along)
    result = function(x, along, dtype=x.dtype)
    if call.get("exclusive", 0):
        first = torch.full_like(x.narrow(along, 0, min(1, x.shape[along])), start)
        result = torch.cat([first, result.narrow(along, 0, max(x.shape[along] - 1, 0))], along)
    return result.flip(along) if reverse else result


@op("CumSum")
def cumsum(call: Call, x: Tensor, axis: Tensor | None) -> Tensor:
    return _running(call, x, axis, torch.cumsum, 0)


@op("CumProd")
def cumprod(call: Call, x: Tensor, axis: Tensor | None) -> Tensor:
    return _running(call, x, axis, torch.cumprod, 1)


@op("TopK")
def topk(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of equal values the one that stands first comes first, which torch's own topk does not promise."""
    axis = call.get("axis", -1)
    count = int((call.values(1, k) or [call.get("k")])[0])
    keys = x.long() if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x
    order = torch.sort(keys, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    values, indices = order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)
    return values.to(x.dtype), indices
