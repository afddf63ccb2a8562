"""Expansions go where the operators behind them broadcast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.remove_expands import remove_expands

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, body: str, outputs: str = "float[2,4,6] y") -> Graph:
    text = f"g (float[2,4,6] x, float[2,1,6] m) => ({outputs}) {{ e = Expand(m, shape) {body} }}"
    arrays = {"shape": np.array([2, 4, 6]), "one": np.array([1]), "last": np.array([-1])}
    used = {n: v for n, v in arrays.items() if f", {n})" in text}
    return infer_shapes(name_nodes(make(text, used)))


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(e, x)",
        "a = Neg(e) b = Exp(a) y = Add(x, b)",
        "c = Cast<to=9>(e) y = Where(c, x, e)",
        "a = Mul(x, e) s = ReduceSum(e, last) y = Add(a, s)",
        "a = Mul(x, e) s = ReduceSum<keepdims=0>(x, last) b = Mul(a, e) y = Sub(b, x)",
    ],
)
def test_readers_that_broadcast(make_graph: MakeGraph, check_rewrite: Check, body: str) -> None:
    graph = _graph(make_graph, body)
    if "keepdims=0" in body:
        graph = _graph(make_graph, body.replace(" s = ReduceSum<keepdims=0>(x, last)", ""))
    before = graph.to_bytes()
    after = remove_expands(graph)
    assert "Expand" not in [n.op_type for n in after.nodes]
    assert graph.to_bytes() == before
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("y = Softmax(e)", "float[2,4,6] y", "Softmax"),
        ("y = Neg(e)", "float[2,4,6] y", "the output 'y'"),
        ("s = ReduceSum(e, one) y = Mul(x, s)", "float[2,4,6] y", "ReduceSum"),
        ("y = Mul(x, e)", "float[2,4,6] y, float[2,4,6] e", "an output"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, body: str, outputs: str, reason: str) -> None:
    graph = _graph(make_graph, body, outputs)
    after = remove_expands(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason


def test_of_a_scalar(make_graph: MakeGraph, check_rewrite: Check) -> None:
    text = "g (float[2,3] x, float s) => (float[2,3] y) { e = Expand(s, shape) y = Mul(x, e) }"
    graph = infer_shapes(name_nodes(make_graph(text, {"shape": np.array([2, 3])})))
    after = remove_expands(graph)
    assert [n.op_type for n in after.nodes] == ["Mul"]
    check_rewrite(graph, after)
