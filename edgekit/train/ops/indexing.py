"""Reading and writing at indices, and masks by position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.elementwise import tensor_at
from edgekit.train.ops.logic import torch_type

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _required(call: Call, position: int, value: Tensor | None, device: torch.device) -> Tensor:
    tensor = tensor_at(call, position, value, device)
    if tensor is None:
        raise ValueError(f"{call.name}: {call.op} has no input {position}")
    return tensor


def _indices(call: Call, position: int, value: Tensor | None, size: int, device: torch.device) -> Tensor:
    """int64 indices into an axis of ``size``, the negative ones counted from its end."""
    index = _required(call, position, value, device).long()
    constant = call.constants.get(position)
    if constant is not None and (constant >= 0).all():
        return index
    return torch.where(index < 0, index + size, index)


@op("Gather")
def gather(call: Call, x: Tensor, indices: Tensor | None) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    index = _indices(call, 1, indices, x.shape[axis], x.device)
    if index.ndim == 0:
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    taken = x.index_select(axis, index.reshape(-1))
    return taken if index.ndim == 1 else taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@op("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor | None) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    return x.gather(axis, _indices(call, 1, indices, x.shape[axis], x.device))


def _rows(index: Tensor, shape: torch.Size) -> Tensor:
    """Index tuples in the last axis as positions in the flattened axes ``shape``."""
    rows = index.new_zeros(index.shape[:-1])
    for i, size in enumerate(shape):
        part = index[..., i]
        rows = rows * size + torch.where(part < 0, part + size, part)
    return rows


@op("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor | None) -> Tensor:
    batch_dims: int = call.get("batch_dims", 0)
    index = _required(call, 1, indices, x.device).long()
    depth = index.shape[-1]
    batch = x.shape[:batch_dims]
    rows = _rows(index, x.shape[batch_dims : batch_dims + depth]).reshape(batch.numel(), -1)
    inner = x.shape[batch_dims : batch_dims + depth].numel()
    rest = x.shape[batch_dims + depth :]
    start = torch.arange(batch.numel(), device=x.device).unsqueeze(-1) * inner
    taken = x.reshape(batch.numel() * inner, -1).index_select(0, (rows + start).reshape(-1))
    return taken.reshape(*index.shape[:-1], *rest)


@op("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor | None, updates: Tensor | None) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    index = _indices(call, 1, indices, x.shape[axis], x.device)
    source = _required(call, 2, updates, x.device)
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, source)
    return x.scatter_reduce(axis, index, source, _REDUCTIONS[reduction])


@op("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor | None, updates: Tensor | None) -> Tensor:
    index = _required(call, 1, indices, x.device).long()
    source = _required(call, 2, updates, x.device)
    depth = index.shape[-1]
    rows = _rows(index, x.shape[:depth]).reshape(-1)
    flat = x.reshape(x.shape[:depth].numel(), -1)
    source = source.reshape(rows.numel(), flat.shape[1])
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return flat.index_copy(0, rows, source).reshape(x.shape)
    where = rows.unsqueeze(-1).expand_as(source)
    return flat.scatter_reduce(0, where, source, _REDUCTIONS[reduction]).reshape(x.shape)


@op("OneHot")
def one_hot(call: Call, indices: Tensor, depth: Tensor | None, values: Tensor | None) -> Tensor:
    """Indices outside of [-depth, depth) mark nothing."""
    count = int((call.values(1, depth) or [0])[0])
    off, on = _required(call, 2, values, indices.device).unbind()
    axis = call.get("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    index = indices.long()
    index = torch.where(index < 0, index + count, index).unsqueeze(axis)
    classes = torch.arange(count, device=indices.device).reshape(-1, *[1] * (indices.ndim - axis))
    return torch.where(index == classes, on, off)


@op("NonZero")
def nonzero(call: Call, x: Tensor) -> Tensor:
    return x.nonzero().t()


@op("Compress")
def compress(call: Call, x: Tensor, condition: Tensor | None) -> Tensor:
    chosen = _required(call, 1, condition, x.device).nonzero().reshape(-1)
    axis = call.get("axis")
    return x.reshape(-1).index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@op("Trilu")
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = int((call.values(1, k) or [0])[0])
    return x.triu(diagonal) if call.get("upper", 1) else x.tril(diagonal)


@op("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = torch_type(call.get("dtype")) if call.get("dtype") else x.dtype
    offset: int = call.get("k", 0)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(-1) + offset
    return (rows == torch.arange(x.shape[1], device=x.device)).to(dtype)


@op("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Along the time axis the first ``lengths[b]`` entries of each sequence in reverse; the rest stay."""
    batch_axis: int = call.get("batch_axis", 1)
    time_axis: int = call.get("time_axis", 0)
    length = _required(call, 1, lengths, x.device).long().unsqueeze(-1)
    time = torch.arange(x.shape[time_axis], device=x.device)
    source = torch.where(time < length, length - 1 - time, time)  # (batch, time)
    if batch_axis > time_axis:
        source = source.t()
    index = source.reshape(*source.shape, *[1] * (x.ndim - 2)).expand(x.shape)
    return x.gather(time_axis, index)


@op("Unique")
def unique(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Found by NumPy, on the CPU; the gradient goes to where a value stands first."""
    axis = call.get("axis")
    flat = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis % x.ndim
    keys = (flat.float() if flat.dtype == torch.bfloat16 else flat).detach().cpu().numpy()
    _, first, inverse, counts = np.unique(keys, True, True, True, axis=along)
    inverse = inverse.reshape(-1)
    if not call.get("sorted", 1):
        order = np.argsort(first)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    found = tuple(torch.tensor(part.astype(np.int64), device=x.device) for part in (first, inverse, counts))
    return (flat.index_select(along, found[0]), *found)[: max(call.outputs, 1)]
