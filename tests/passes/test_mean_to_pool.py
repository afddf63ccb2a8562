"""ReduceMean over pixels becomes pooling, everything else stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.mean_to_pool import mean_to_pool
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.verify import max_difference


def _mean(make_graph: Callable[..., Graph], axes: list[int], keep: int) -> Graph:
    text = f"""g (float[2, 3, 4, 5] x) => (float y) {{
        r = Relu(x)
        m = ReduceMean<keepdims={keep}>(r, axes)
        y = Neg(m)
    }}"""
    return infer_shapes(name_nodes(make_graph(text, {"axes": np.array(axes, np.int64)})))


@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]])
@pytest.mark.parametrize("keep", [0, 1])
def test_means_over_pixels_are_pooled(make_graph: Callable[..., Graph], axes: list[int], keep: int) -> None:
    graph = _mean(make_graph, axes, keep)
    after = mean_to_pool(graph)
    ops = [n.op_type for n in after.nodes]
    assert "ReduceMean" not in ops
    assert "GlobalAveragePool" in ops
    assert "m" in after.values(), "the result keeps its name"
    assert [n.op_type for n in graph.nodes] == ["Relu", "ReduceMean", "Neg"], "the input is not changed"
    assert max_difference(graph, after) < 1e-6


@pytest.mark.parametrize("axes", [[1], [1, 2], [0, 2, 3], [3]])
def test_other_means_stay_and_are_named(make_graph: Callable[..., Graph], axes: list[int]) -> None:
    after = mean_to_pool(_mean(make_graph, axes, 1))
    assert "ReduceMean" in [n.op_type for n in after.nodes]
    assert len(after.history[-1].refused) == 1


def test_a_mean_that_is_an_output_keeps_its_name(make_graph: Callable[..., Graph]) -> None:
    text = "g (float[1, 3, 4, 5] x) => (float[1, 3] y) { r = Relu(x) y = ReduceMean<keepdims=0>(r, axes) }"
    graph = infer_shapes(name_nodes(make_graph(text, {"axes": np.array([2, 3], np.int64)})))
    after = mean_to_pool(graph)
    assert [o.name for o in after.outputs] == ["y"]
    assert max_difference(graph, after) < 1e-6
