"""Write AveragePool without the attributes that kernels read differently or not at all.

    1.  ceil_mode = 1   windows that reach behind the padding: as more padding, which does not count
    2.  dilations       a depthwise convolution with equal weights, where padding counts or there is none

With both counted padding and windows behind it, the counted zeros are put into the input first.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder
from edgekit.passes.windows import Window, is_ceil, windows


def settle_pools(graph: Graph) -> Graph:
    """Rewrite every such AveragePool; results keep their names."""
    words = "wrote {} AveragePools without rounding up and dilations"
    return rewrite_nodes(graph, "settle_pools", words, ("AveragePool",), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    dilated = _is_dilated(node)
    if not dilated and not is_ceil(node):
        return None
    found = windows(node)
    if found is None or not is_float(node.inputs[0]):
        return "it is not float32 of known shapes, or it has dilations and auto_pad"
    counted = int_attribute(node, "count_include_pad", 0) == 1
    padded = any(w.before or w.after for w in found)
    reaches = any(w.overhang > w.after for w in found)
    if dilated and (reaches or (padded and not counted)):
        return "it is dilated and its padding does not count"
    if not dilated and any(w.starts[-1] >= w.size for w in found):
        return "its last window lies behind the input"
    return ""


def _is_dilated(node: ir.Node) -> bool:
    dilations = node.attributes.get("dilations")
    return dilations is not None and any(d != 1 for d in dilations.as_ints())


def _rewrite(build: Builder, node: ir.Node) -> None:
    found = windows(node) or ()
    if _is_dilated(node):
        build.take(node.outputs[0], _convolution(build, given(node, 0), found))
        return
    x, counted = given(node, 0), int_attribute(node, "count_include_pad", 0) == 1
    before, after = [w.before for w in found], [w.after for w in found]
    behind = [w.overhang for w in found]
    if counted and any(b > a for a, b in zip(after, behind, strict=True)) and any([*before, *after]):
        pads = build.constant("pads", [0, 0, *before, 0, 0, *after], np.int64)
        x = build.node("Pad", "padded", x, pads, build.constant("zero", 0))
        before, behind = [0] * len(found), [max(b - a, 0) for a, b in zip(after, behind, strict=True)]
        counted = False
    elif any(b > a for a, b in zip(after, behind, strict=True)):
        counted = False
    else:
        behind = after
    y = build.node(
        "AveragePool",
        "mean",
        x,
        kernel_shape=[w.kernel for w in found],
        strides=[w.stride for w in found],
        pads=[*before, *behind],
        count_include_pad=int(counted),
    )
    build.take(node.outputs[0], y)


def _convolution(build: Builder, x: ir.Value, found: tuple[Window, ...]) -> ir.Value:
    channels = (static_shape(x) or ())[1]
    kernel = [w.kernel for w in found]
    weights = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
    return build.node(
        "Conv",
        "mean",
        x,
        build.constant("weights", weights),
        group=channels,
        kernel_shape=kernel,
        strides=[w.stride for w in found],
        dilations=[w.dilation for w in found],
        pads=[*(w.before for w in found), *(w.after for w in found)],
    )
