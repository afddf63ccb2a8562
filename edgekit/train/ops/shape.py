"""Operators that move and view elements without computing on them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.conv import interleave
from edgekit.train.tensors import from_array


@op("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Reshape; a batch larger than the graph's goes to the axis that the batch is in."""
    target = [int(d) for d in call.values(1, shape) or []]
    if not call.get("allowzero", 0):
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return x.reshape(_batched(call, x, target))


def _batched(call: Call, x: Tensor, target: list[int]) -> list[int]:
    """``target`` with the batch multiplied in, where ``x`` has that many times the elements that are stated.

    The axis is the one before which there are as many elements as there are before the batch's axis in ``x``.
    """
    declared = call.output_shapes[0] if call.output_shapes else None
    before = call.input_shapes[0] if call.input_shapes else None
    if call.batch == 1 or declared is None or math.prod(declared) * call.batch != x.numel():
        return target
    axis = 0
    if before is not None and len(before) == x.ndim:
        grown = [i for i, (a, b) in enumerate(zip(x.shape, before, strict=True)) if a != b]
        ahead = math.prod(before[: grown[0]]) if grown else 1
        axis = next((i for i in range(len(declared)) if math.prod(declared[:i]) == ahead), 0)
    return [d * call.batch if i == axis else d for i, d in enumerate(declared)]


@op("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Concat; a constant with the graph's batch is repeated where the others have a larger one."""
    axis = call.get("axis", 0)
    if call.batch > 1 and axis not in (0, -inputs[0].ndim):
        batch = max(t.shape[0] for t in inputs)
        inputs = tuple(
            t if t.shape[0] == batch else t.repeat(batch // t.shape[0], *[1] * (t.ndim - 1)) for t in inputs
        )
    return torch.cat(inputs, axis)


@op("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


@op("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: everything before ``axis`` and the rest."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = math.prod(x.shape[:axis])
    if axis == 0:
        return x.reshape(_batched(call, x, [1, x.numel()]))
    return x.reshape(rows, math.prod(x.shape[axis:]))


@op("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes of length 1 taken out; those that the graph states when none are named."""
    found = call.values(1, axes) if axes is not None or 1 in call.constants else call.get("axes")
    if found is None:
        declared = call.input_shapes[0] if call.input_shapes else None
        found = [i for i, n in enumerate(declared or x.shape) if n == 1]
    return x.squeeze(tuple(int(a) for a in found)) if found else x


@op("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes of length 1 put in."""
    found = call.values(1, axes) if axes is not None or 1 in call.constants else call.get("axes")
    rank = x.ndim + len(found or [])
    for axis in sorted(int(a) % rank for a in found or []):
        x = x.unsqueeze(axis)
    return x


@op("Expand")
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape, and the shape to the tensor."""
    target = [int(d) for d in call.values(1, shape) or []]
    if call.batch > 1 and len(target) == x.ndim and target[0] * call.batch == x.shape[0]:
        target[0] = x.shape[0]
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(target)))


@op("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Pieces along an axis: of the sizes given, or equal with a smaller last one."""
    axis = call.get("axis", 0)
    wanted = call.values(1, sizes) if sizes is not None or 1 in call.constants else call.get("split")
    if wanted is None:
        count = call.get("num_outputs") or len(call.output_shapes) or call.outputs
        length = math.ceil(x.shape[axis] / count)
        wanted = [max(min(length, x.shape[axis] - i * length), 0) for i in range(count)]
    return torch.split_with_sizes(x, [int(n) for n in wanted], axis)


@op("Slice")
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """A range of each axis, also backwards."""
    first, last = call.values(1, starts) or [], call.values(2, ends) or []
    numbers = call.values(3, axes) or range(len(first))
    strides = call.values(4, steps) or [1] * len(first)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, numbers, strides, strict=True):
        axis, step = int(axis) % x.ndim, int(step)
        picked = range(x.shape[axis])[slice(int(start), int(end), step)] if step > 0 else None
        if picked is not None:
            index[axis] = slice(picked.start, max(picked.stop, picked.start), step)
            continue
        # Unlike Python, ONNX clips an end below -length to "past the first element".
        length = x.shape[axis]
        begin = min(int(start) + length if start < 0 else int(start), length - 1)
        stop = int(end) + length if end < 0 else int(end)
        positions = list(range(begin, max(stop, -1), step))
        x = x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))
    return x[tuple(index)]


_PAD_INDEX = {
    "edge": lambda i, n: i.clamp(0, n - 1),
    "wrap": lambda i, n: i % n,
    "reflect": lambda i, n: (n - 1) - ((n - 1) - i % (2 * (n - 1))).abs() if n > 1 else i * 0,
}


@op("Pad")
def pad(
    call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Padding with a constant, the edge, a reflection or the other end; negative padding cuts."""
    amounts = [int(p) for p in call.values(1, pads) or []]
    numbers = [int(a) % x.ndim for a in call.values(3, axes) or range(x.ndim)]
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(numbers):
        begins[axis], ends[axis] = amounts[i], amounts[len(numbers) + i]
    mode = call.get("mode", "constant")
    if mode == "constant":
        filling = (call.values(2, value) or [0])[0]
        first = next((i for i in range(x.ndim) if begins[i] or ends[i]), x.ndim)
        return (
            functional.pad(x, interleave(begins[first:], ends[first:]), value=filling)
            if first < x.ndim
            else x
        )
    for axis in range(x.ndim):
        if begins[axis] or ends[axis]:
            positions = torch.arange(-begins[axis], x.shape[axis] + ends[axis], device=x.device)
            x = x.index_select(axis, _PAD_INDEX[mode](positions, x.shape[axis]))
    return x


@op("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """The tensor repeated along each axis."""
    return x.repeat([int(r) for r in call.values(1, repeats) or []])


@op("Identity")
def identity(call: Call, x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


@op("Dropout")
def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The tensor itself, unless the node or, where it does not say, the executor is in training mode."""
    rate = (call.values(1, ratio) or [call.get("ratio", 0.5)])[0]
    stated = call.values(2, training)
    if not (stated[0] if stated else call.training) or rate == 0:
        return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    seed = call.get("seed")
    if seed is None:
        mask = torch.rand_like(x) >= rate
    else:
        # A stated seed means the numbers of the reference implementation, which are NumPy's.
        drawn = np.random.RandomState(seed).uniform(0, 1, tuple(x.shape))
        mask = torch.from_numpy(drawn >= rate).to(x.device)
    y = x * mask / (1 - rate)
    return y if call.outputs == 1 else (y, mask)


@op("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Lengths of the axes, or of a range of them."""
    lengths = list(x.shape)[slice(call.get("start", 0), call.get("end"))]
    return torch.tensor(lengths, dtype=torch.int64, device=x.device)


@op("Size")
def size(call: Call, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@op("Constant")
def constant(call: Call) -> Tensor:
    """The value in the node's attribute."""
    for name, dtype in (("float", np.float32), ("int", np.int64), ("floats", np.float32), ("ints", np.int64)):
        if call.get(f"value_{name}") is not None:
            return torch.from_numpy(np.array(call.get(f"value_{name}"), dtype))
    return from_array(call.get("value"))


@op("ConstantOfShape")
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """One value in the shape given."""
    value = from_array(call.get("value", np.zeros(1, np.float32))).to(shape.device)
    return value.reshape(()).expand([int(d) for d in call.values(0, shape) or []]).clone()


@op("Range")
def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from ``start`` by ``delta`` as long as they are before ``limit``."""
    first, last, step = (call.values(i, t) or [0] for i, t in enumerate((start, limit, delta)))
    count = max(math.ceil((last[0] - first[0]) / step[0]), 0)
    steps = torch.arange(count, dtype=start.dtype, device=start.device)
    return start.reshape(()) + steps * delta.reshape(())


@op("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Blocks of channels to blocks of pixels."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, b)
    y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of pixels to blocks of channels."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(x, b)
    y = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)
