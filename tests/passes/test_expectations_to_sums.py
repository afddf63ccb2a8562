"""Expected values of a softmax: learned places become a stored operand, whole ones stay weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.expectations_to_sums import expectations_to_sums
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

MakeGraph = Callable[..., Graph]
LEARNED = np.array([-1.8, -0.9, 0.0, 0.9, 2.2, 3.1, 9.4, 57.0], np.float32)


def _graph(
    make: MakeGraph, places: Any = LEARNED, bias: float = 0.0, softmax: str = "axis=1", conv: str = ""
) -> Graph:
    body = (
        "g (float[2,8,4,5] x) => (float[2,1,n,m] y) "
        f"{{ p = Softmax <{softmax}> (x) y = Conv {conv} (p, w, b) }}"
    )
    arrays = {"w": np.asarray(places, np.float32).reshape(1, 8, 1, 1), "b": np.array([bias], np.float32)}
    return infer_shapes(name_nodes(make(body, arrays)))


@pytest.mark.parametrize(
    ("bias", "ops"), [(0.0, ["Softmax", "Mul", "ReduceSum"]), (0.7, ["Softmax", "Mul", "ReduceSum", "Add"])]
)
def test_learned_places(
    make_graph: MakeGraph, check_rewrite: Callable[..., None], bias: float, ops: list[str]
) -> None:
    graph = _graph(make_graph, bias=bias)
    after = expectations_to_sums(graph)
    assert [n.op_type for n in after.nodes] == ops
    check_rewrite(graph, after)
    assert expectations_to_sums(after).to_bytes() == after.to_bytes()


def test_what_int8_holds_exactly_stays(make_graph: MakeGraph) -> None:
    for places in (np.arange(8), np.arange(8) * 0.3, np.zeros(8)):
        graph = _graph(make_graph, places)
        assert expectations_to_sums(graph).to_bytes() == graph.to_bytes()


@pytest.mark.parametrize(
    ("softmax", "conv"), [("axis=3", ""), ("axis=1", "<strides=[2,2]>"), ("axis=1", "<pads=[1,1,1,1]>")]
)
def test_other_convolutions_stay(make_graph: MakeGraph, softmax: str, conv: str) -> None:
    graph = _graph(make_graph, softmax=softmax, conv=conv)
    assert expectations_to_sums(graph).to_bytes() == graph.to_bytes()
