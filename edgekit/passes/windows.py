"""Where the windows of a pooling lie, by the attributes of the ONNX operators and the static shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.passes.edit import int_attribute, static_shape


@dataclass(frozen=True)
class Window:
    """The windows along one axis.

    Attributes:
        size: Length of the axis.
        kernel: Places that each window has.
        stride: From one window to the next.
        dilation: From one place to the next in a window.
        before: Places of padding in front.
        after: Places of padding behind, as the attributes say; with ``ceil_mode`` windows may reach further.
        count: Number of windows.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    count: int

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of each window's first place; negative in the padding."""
        return tuple(i * self.stride - self.before for i in range(self.count))

    @property
    def inside(self) -> tuple[tuple[int, ...], ...]:
        """For each window, the indices of its places that are not padding."""
        reach = self.kernel * self.dilation
        return tuple(
            tuple(p for p in range(s, s + reach, self.dilation) if 0 <= p < self.size) for s in self.starts
        )

    @property
    def overhang(self) -> int:
        """How far the last window reaches behind the axis."""
        return max(self.starts[-1] + (self.kernel - 1) * self.dilation + 1 - self.size, 0)


def windows(node: ir.Node) -> tuple[Window, ...] | None:
    """One entry for each pooled axis.

    None where shapes are not known, and for SAME padding with dilations, which runtimes read differently.
    """
    shape, made = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if shape is None or made is None or len(shape) < 3:
        return None
    rank = len(shape) - 2

    def ints(name: str, default: int, count: int = rank) -> list[int]:
        attribute = node.attributes.get(name)
        return [int(i) for i in attribute.as_ints()] if attribute is not None else [default] * count

    kernels, strides, dilations = ints("kernel_shape", 1), ints("strides", 1), ints("dilations", 1)
    pads = ints("pads", 0, 2 * rank)
    mode = node.attributes.get("auto_pad")
    padding = mode.as_string() if mode is not None else "NOTSET"
    if padding.startswith("SAME") and any(d != 1 for d in dilations):
        return None
    found = []
    for axis in range(rank):
        size, kernel, stride, dilation = shape[2 + axis], kernels[axis], strides[axis], dilations[axis]
        before, after, count = pads[axis], pads[axis + rank], made[2 + axis]
        if padding.startswith("SAME"):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            before = total // 2 if padding == "SAME_UPPER" else total - total // 2
            after = total - before
        found.append(Window(size, kernel, stride, dilation, before, after, count))
    return tuple(found)


def is_ceil(node: ir.Node) -> bool:
    """Whether the last window may reach behind the padding."""
    return int_attribute(node, "ceil_mode", 0) == 1
