"""Powers with small exponents become products and roots."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.unroll_powers import unroll_powers

MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, exponent: object) -> Graph:
    text = "g (float[2,6] x) => (float[a,b] y) { s = Sigmoid(x) y = Pow(s, p) }"
    return infer_shapes(name_nodes(make(text, {"p": np.array(exponent, np.float32)})))


@pytest.mark.parametrize(
    ("exponent", "ops"),
    [(-1, ["Reciprocal"]), (0.5, ["Sqrt"])]
    + [(n, ["Mul"] * count) for n, count in ((2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 3))],
)
def test_powers(
    make_graph: MakeGraph, check_rewrite: Callable[..., None], exponent: float, ops: list[str]
) -> None:
    graph = _graph(make_graph, exponent)
    after = unroll_powers(graph)
    assert [n.op_type for n in after.nodes][1:] == ops
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("exponent", "reason"), [(1.7, "exponent"), (9, "exponent"), (0, "exponent"), ([[[2]]], "shape")]
)
def test_what_stays_and_why(make_graph: MakeGraph, exponent: object, reason: str) -> None:
    graph = _graph(make_graph, 2 if isinstance(exponent, list) else exponent)
    if isinstance(exponent, list):
        text = "g (float[2,6] x) => (float[1,2,6] y) { s = Sigmoid(x) y = Pow(s, p) }"
        graph = infer_shapes(name_nodes(make_graph(text, {"p": np.array(exponent, np.float32)})))
    after = unroll_powers(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason
