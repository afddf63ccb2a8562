"""Operators on tensors of many axes become operators on tensors of few."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.lower_rank import lower_rank
from edgekit.passes.name_nodes import name_nodes

MakeGraph = Callable[..., Graph]
Check = Callable[..., None]


def _sandwich(make: MakeGraph, shape: list[int], perm: list[int]) -> Graph:
    """``x`` in a shape of many axes, transposed, and flat again."""
    count = int(np.prod(shape))
    text = f"""g (float[1,{count}] x) => (float[{count}] y) {{
        a = Reshape(x, s) b = Transpose <perm={perm}> (a) y = Reshape(b, f) }}"""
    return infer_shapes(name_nodes(make(text, {"s": np.array(shape), "f": np.array([count])})))


def _highest(graph: Graph) -> int:
    return max(len(static_shape(v) or ()) for n in graph.nodes for v in n.outputs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data())
def test_any_transpose(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    rank = data.draw(st.integers(6, 8))
    shape = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    perm = data.draw(st.permutations(range(rank)))
    graph = _sandwich(make_graph, shape, list(perm))
    before = graph.to_bytes()
    after = lower_rank(graph)
    assert _highest(after) <= 5
    assert after.history[-1].details["left"] == []
    assert not any(
        a.op_type == b.op_type == "Reshape" and b.inputs[0] is a.outputs[0] for a, b in pairwise(after.nodes)
    )
    check_rewrite(graph, after, 0.0)
    assert lower_rank(after).to_bytes() == after.to_bytes()
    assert graph.to_bytes() == before


@pytest.mark.parametrize(
    ("shape", "perm", "axes"),
    [
        ([1, 2, 3, 3, 4, 5], [0, 1, 4, 2, 5, 3], 5),  # pixel shuffle
        ([1, 4, 3, 2, 3, 8], [0, 1, 3, 2, 4, 5], 4),  # windows of an image
    ],
)
def test_what_networks_do(
    make_graph: MakeGraph, check_rewrite: Check, shape: list[int], perm: list[int], axes: int
) -> None:
    graph = _sandwich(make_graph, shape, perm)
    after = lower_rank(graph)
    assert [n.op_type for n in after.nodes] == ["Reshape", "Transpose", "Reshape"]
    assert _highest(after) == axes
    check_rewrite(graph, after, 0.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_elementwise(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    shape = [data.draw(st.integers(1, 3)) for _ in range(6)]
    cut = data.draw(st.integers(0, 6))
    other = [1 if data.draw(st.booleans()) else d for d in shape][cut:]
    count = int(np.prod(shape))
    text = f"""g (float[{count}] x) => (float[{count}] y) {{
        a = Reshape(x, s) b = Add(a, c) d = Relu(b) e = Clip(d, , h) y = Reshape(e, f) }}"""
    arrays = {"s": np.array(shape), "f": np.array([count]), "h": np.float32(0.5)}
    arrays["c"] = np.random.default_rng(0).standard_normal(other).astype(np.float32)
    graph = infer_shapes(name_nodes(make_graph(text, arrays)))
    after = lower_rank(graph)
    change = after.history[-1]
    assert (_highest(after) <= 5) is not bool(change.refused)
    assert bool(change.details["left"]) is bool(change.refused)
    check_rewrite(graph, after)


def test_what_stays_is_named(make_graph: MakeGraph) -> None:
    """Axes between which a broadcast alternates cannot be joined."""
    text = "g (float[2,3,2,3,2,3] x) => (float[2,3,2,3,2,3] y) { y = Add(x, c) }"
    arrays = {"c": np.ones((2, 1, 2, 1, 2, 1), np.float32)}
    graph = infer_shapes(name_nodes(make_graph(text, arrays)))
    after = lower_rank(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert "6 of its axes" in after.history[-1].refused[0].reason
    assert after.history[-1].details["left"] == ["y"]


def test_five_axes_stay(make_graph: MakeGraph) -> None:
    graph = _sandwich(make_graph, [2, 3, 2, 3, 2], [4, 2, 0, 1, 3])
    assert lower_rank(graph).to_bytes() == graph.to_bytes()
    assert _highest(lower_rank(graph, highest=4)) <= 4
