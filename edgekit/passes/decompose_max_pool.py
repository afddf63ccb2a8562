"""Write a dilated MaxPool as the elementwise maximum of what its window sees.

One axis after the other, with kernel k, stride s, dilation d and p places of padding in front:

    y_i = max over t < k of x[i s - p + d t]

A place in the padding never wins. Where a window reaches over the edge, its first place that does not is
taken again instead, so no value has to stand for minus infinity, which 8 bits have none of. Each ``x[...]``
is a slice or a few joined ones.

Qualcomm's HTP has no dilated pooling and none over three axes, but Slice, Concat and Max.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.passes.pick import pick
from edgekit.passes.rewrite import Verdict, given, rewrite_nodes
from edgekit.passes.subgraph import Builder
from edgekit.passes.windows import Window, windows


def decompose_max_pool(graph: Graph) -> Graph:
    """Replace every MaxPool with a dilation or over three axes; its output keeps its name."""
    words = "wrote {} MaxPools as maxima of slices"
    return rewrite_nodes(graph, "decompose_max_pool", words, ("MaxPool",), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    dilations = node.attributes.get("dilations")
    plain = dilations is None or all(d == 1 for d in dilations.as_ints())
    if plain and len(static_shape(node.inputs[0]) or ()) != 5:
        return None
    if (
        len(node.outputs) > 1
        and node.outputs[1].name
        and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
    ):
        return "the places of its maxima are read"
    found = windows(node)
    if found is None:
        return "its shapes are not known, or it has dilations and auto_pad"
    if any(not places for window in found for places in window.inside):
        return "a window of it lies in the padding"
    return ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x = given(node, 0)
    for axis, window in enumerate(windows(node) or (), start=2):
        x = _maximum(build, x, axis, window)
    # Windows of one place each change nothing.
    build.take(node.outputs[0], build.node("Identity", "same", x) if x is node.inputs[0] else x)


def _maximum(build: Builder, x: ir.Value, axis: int, window: Window) -> ir.Value:
    taps = []
    for tap in range(window.kernel):
        wanted = [start + window.dilation * tap for start in window.starts]
        taps.append(
            tuple(w if w in inside else inside[0] for w, inside in zip(wanted, window.inside, strict=True))
        )
    result: ir.Value | None = None
    for indices in dict.fromkeys(taps):
        place = pick(build, x, axis, indices)
        result = place if result is None else build.node("Max", "max", result, place)
    return x if result is None else result
