"""Padding of windows: what of ONNX's is TFLite's SAME or VALID, and what needs an operator of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.passes.edit import int_attribute
from edgekit.tflite.lower.builder import Builder, Form, Val
from edgekit.tflite.lower.common import ints_attribute, limits, text_attribute
from edgekit.tflite.lower.layout import from_axes
from edgekit.tflite.lower.refuse import RefusedError
from edgekit.tflite.model import DType


@dataclass(frozen=True)
class Window:
    """Windows that slide over an image; every pair is (height, width).

    Attributes:
        kernel: Size.
        strides: Steps.
        dilations: Distances between taps.
        before: Padding above and left.
        after: Padding below and right that windows really reach.
        inside: Size of the image.
        out: Size of the result.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    inside: tuple[int, int]
    out: tuple[int, int]

    @property
    def scheme(self) -> str | None:
        """``VALID``, ``SAME``, or None where the image has to be padded before."""
        if not any((*self.before, *self.after)) and self._fits(0):
            return "VALID"
        same = all(
            self.out[i] == -(-self.inside[i] // self.strides[i])
            and (self.before[i], self.after[i]) == (self._total(i) // 2, self._total(i) - self._total(i) // 2)
            for i in (0, 1)
        )
        return "SAME" if same else None

    def _total(self, i: int) -> int:
        return max(0, (self.out[i] - 1) * self.strides[i] + self._reach(i) - self.inside[i])

    def _reach(self, i: int) -> int:
        return (self.kernel[i] - 1) * self.dilations[i] + 1

    def _fits(self, padding: int) -> bool:
        return all(
            (self.inside[i] + padding - self._reach(i)) // self.strides[i] + 1 == self.out[i] for i in (0, 1)
        )


def window_of(
    node: ir.Node, kernel: tuple[int, ...], inside: tuple[int, int], out: tuple[int, int]
) -> Window:
    """The windows of a Conv or pooling node over NHWC.

    Args:
        node: The node.
        kernel: Its one or two sizes.
        inside: Height and width of the image.
        out: Height and width of the result.
    """
    flat = len(kernel) == 1
    rank = len(kernel)
    strides = ints_attribute(node, "strides", [1] * rank)
    dilations = ints_attribute(node, "dilations", [1] * rank)
    pads = ints_attribute(node, "pads", [0] * (2 * rank))
    sizes, begins = list(kernel), pads[:rank]
    if flat:
        sizes, strides, dilations, begins = [1, *sizes], [1, *strides], [1, *dilations], [0, *begins]
    auto = text_attribute(node, "auto_pad", "NOTSET")
    before, after = [], []
    for i in (0, 1):
        need = (out[i] - 1) * strides[i] + (sizes[i] - 1) * dilations[i] + 1 - inside[i]
        first = begins[i]
        if auto == "VALID":
            first = 0
        elif auto.startswith("SAME"):
            total = max(0, need)
            first = total // 2 if auto == "SAME_UPPER" else total - total // 2
        before.append(first)
        # What no window reaches needs no padding.
        after.append(max(0, need - first))
    return Window(_pair(sizes), _pair(strides), _pair(dilations), _pair(before), _pair(after), inside, out)


def window_options(window: Window, scheme: str) -> dict[str, object]:
    """Options that convolutions and pools share."""
    return {"padding": scheme, "strideH": window.strides[0], "strideW": window.strides[1]}


def padded_image(
    ctx: Builder, val: Val, window: Window, node: ir.Node, *, lowest: bool = False, force: bool = False
) -> tuple[Val, str]:
    """``val`` (NHWC) padded where TFLite's own schemes do not do it, and the scheme that is left.

    Args:
        ctx: The model under construction.
        val: The image.
        window: The windows.
        node: The node.
        lowest: Pad with the lowest value instead of zero.
        force: Pad where SAME would do.
    """
    scheme = window.scheme
    if scheme is not None and not (force and scheme == "SAME"):
        return val, scheme
    amounts = [[0, 0], *([b, a] for b, a in zip(window.before, window.after, strict=True)), [0, 0]]
    n, c, h, w = val.shape
    shape = (n, c, h + sum(amounts[1]), w + sum(amounts[2]))
    dims = tuple(shape[a] for a in (0, 2, 3, 1))
    new = ctx.like(val, f"{val.tensor}_padded", shape=shape, order=from_axes(shape, (0, 2, 3, 1)), dims=dims)
    table = ctx.store(f"pads/{amounts}", np.array(amounts, np.int32))
    if not lowest:
        ctx.emit("PAD", [val.tensor, table], [new.tensor], source=node)
        return new, "VALID"
    form = Form(val.dtype, val.quantization)
    low = np.finfo(np.float32).min if val.dtype is DType.FLOAT32 else limits(form)[0]
    fill = ctx.store("lowest", np.array([low], val.dtype.numpy), val.quantization)
    ctx.emit("PADV2", [val.tensor, table, fill], [new.tensor], source=node)
    return new, "VALID"


def no_dilation(node: ir.Node) -> None:
    """Raise RefusedError for a dilated pool."""
    if any(d != 1 for d in ints_attribute(node, "dilations", [1])):
        raise RefusedError("its windows are dilated", "TFLite has no dilated pool; use a plain one")


def includes_pads(node: ir.Node) -> bool:
    return bool(int_attribute(node, "count_include_pad", 0))


def _pair(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]
