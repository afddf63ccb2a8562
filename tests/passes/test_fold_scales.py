"""Factors move into the weights before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.fold_scales import fold_scales
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, body: str, shape: str = "1,4,6", outputs: str = "float[1,4,6] y") -> Graph:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "w": (6, 6), "u": (6, 6), "b": (6,), "k": (4, 4, 1), "kb": (4,), "g": (6,),
    }  # fmt: skip
    arrays: dict[str, Any] = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays |= {"c": np.array(0.25, np.float32), "heads": np.array([1, 4, 2, 3]), "back": np.array([1, 4, 6])}
    arrays["flat"] = np.array([4, 6])
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    text = f"g (float[{shape}] x) => ({outputs}) {{ {body} }}"
    return infer_shapes(name_nodes(make(text, {n: v for n, v in arrays.items() if n in words})))


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w) y = Mul(m, c)",
        "m = MatMul(x, w) a = Add(m, b) y = Mul(c, a)",
        "m = MatMul(x, w) a = Add(b, m) r = Reshape(a, heads) p = Mul(r, c) y = Reshape(p, back)",
        "f = Reshape(x, flat) m = Gemm(f, w, b) r = Reshape(m, back) y = Mul(r, c)",
        "m = Conv(x, k, kb) y = Mul(m, c)",
        "m = Mul(x, g) a = Add(m, b) y = Mul(a, c)",
    ],
)
def test_layers_take_factors_in(make_graph: MakeGraph, check_rewrite: Check, body: str) -> None:
    graph = _graph(make_graph, body)
    before = graph.to_bytes()
    after = fold_scales(graph)
    assert len(list(after.nodes)) == len(list(graph.nodes)) - 1
    assert "c" not in after.model.graph.initializers
    assert graph.to_bytes() == before
    check_rewrite(graph, after)


def test_the_scores_of_an_attention(make_graph: MakeGraph, check_rewrite: Check) -> None:
    body = """q = MatMul(x, w) qb = Add(q, b) k1 = MatMul(x, u) kt = Transpose<perm=[0,2,1]>(k1)
        s = MatMul(qb, kt) p = Mul(s, c) y = Softmax(p)"""
    graph = _graph(make_graph, body, outputs="float[1,4,4] y")
    after = fold_scales(graph)
    assert "Mul" not in [n.op_type for n in after.nodes]
    assert after.history[-1].details == {"folded": ["p"]}
    check_rewrite(graph, after)


def test_shared_weights_are_left_to_the_others(make_graph: MakeGraph, check_rewrite: Check) -> None:
    body = "m = MatMul(x, w) a = Mul(m, c) n = MatMul(a, w) y = Neg(n)"
    graph = _graph(make_graph, body)
    after = fold_scales(graph)
    assert {"w", "w.scaled"} <= set(after.model.graph.initializers)
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(x, c)",
        "m = MatMul(x, w) r = Relu(m) y = Mul(r, c)",
        "m = MatMul(x, w) a = Mul(m, c) y = Add(a, m)",
        "m = MatMul(x, w) a = Add(m, x) y = Mul(a, c)",
        "m = Add(x, b) y = Mul(m, c)",
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, body: str) -> None:
    graph = _graph(make_graph, body)
    after = fold_scales(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert "no layer" in after.history[-1].refused[0].reason
