"""A Focus layer and its convolution become one convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.focus_to_conv import focus_to_conv
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.verify import max_difference

MakeGraph = Callable[..., Graph]


def _focus(
    make: MakeGraph, *, step: int, size: int, kernel: int, pad: int, stride: int, order: list[int]
) -> Graph:
    offsets = [(a, b) for a in range(step) for b in range(step)]
    random = np.random.default_rng(step * 100 + kernel)
    lines, weights = [], {"two": np.array([2]), "three": np.array([3]), "step": np.array([step])}
    weights["end"] = np.array([2**31])
    for index in order:
        a, b = offsets[index]
        weights[f"start{a}"], weights[f"start{b}"] = np.array([a]), np.array([b])
        lines.append(f"r{index} = Slice(x, start{a}, end, two, step)")
        lines.append(f"p{index} = Slice(r{index}, start{b}, end, three, step)")
    lines.append(f"f = Concat<axis=1>({', '.join(f'p{i}' for i in order)})")
    lines.append(f"y = Conv<pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]>(f, w, bias)")
    shape = (5, 3 * len(order), kernel, kernel)
    arrays: dict[str, Any] = {k: v.astype(np.int64) for k, v in weights.items()}
    arrays["w"] = random.standard_normal(shape).astype(np.float32)
    arrays["bias"] = random.standard_normal(5).astype(np.float32)
    text = f"g (float[1,3,{size},{size}] x) => (float[1,5,H,W] y) {{ {' '.join(lines)} }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [3, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize(("kernel", "pad", "stride"), [(3, 1, 1), (1, 0, 1), (3, 0, 2), (2, 2, 1)])
def test_one_convolution_does_the_same(
    make_graph: MakeGraph, order: list[int], kernel: int, pad: int, stride: int
) -> None:
    graph = _focus(make_graph, step=2, size=12, kernel=kernel, pad=pad, stride=stride, order=order)
    after = focus_to_conv(graph)
    assert [n.op_type for n in after.nodes] == ["Conv"]
    assert set(after.model.graph.initializers) == {"w", "bias"}
    assert max_difference(graph, infer_shapes(after)) < 1e-4
    assert "Slice" in [n.op_type for n in graph.nodes], "the input is not changed"


def test_blocks_of_three(make_graph: MakeGraph) -> None:
    graph = _focus(make_graph, step=3, size=12, kernel=3, pad=1, stride=1, order=list(range(9)))
    after = focus_to_conv(graph)
    assert [n.op_type for n in after.nodes] == ["Conv"]
    assert max_difference(graph, infer_shapes(after)) < 1e-4


def test_an_odd_image_is_left_alone(make_graph: MakeGraph) -> None:
    graph = _focus(make_graph, step=2, size=12, kernel=3, pad=1, stride=1, order=[0])
    assert focus_to_conv(graph) is graph, "one slice is no Focus layer"


def test_another_reader_refuses(make_graph: MakeGraph) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,6,4,4] y) {
        a = Slice(x, zero, end, axes, step)
        b = Slice(x, one, end, axes, step)
        f = Concat<axis=1>(a, b)
        y = Relu(f)
    }"""
    arrays = {
        "zero": np.array([0, 0]), "one": np.array([1, 1]), "end": np.array([99, 99]),
        "axes": np.array([2, 3]), "step": np.array([2, 2]),
    }  # fmt: skip
    graph = infer_shapes(name_nodes(make_graph(text, {k: v.astype(np.int64) for k, v in arrays.items()})))
    after = focus_to_conv(graph)
    assert "Slice" in [n.op_type for n in after.nodes]
    assert "Relu" in after.history[-1].refused[0].reason
