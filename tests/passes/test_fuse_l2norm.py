"""Divisions by a norm become one operator, in every form that exporters write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.fuse_l2norm import fuse_l2norm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

MakeGraph = Callable[..., Graph]
Check = Callable[..., None]
NUMBERS = {"two": 2.0, "one": 1.0, "tiny": 1e-12, "large": 0.1, "epsilon": 1e-5}


def _graph(make: MakeGraph, body: str, axis: int = -1, outputs: str = "float[2,3,8] y") -> Graph:
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in body
    }
    arrays |= {"a": np.array([axis])} if " a)" in body or " a " in body else {}
    arrays |= {"full": np.array([2, 3, 8])} if "full" in body else {}
    arrays |= {"gamma": np.linspace(0.5, 2, 8, dtype=np.float32)} if "gamma" in body else {}
    return infer_shapes(name_nodes(make(f"g (float[2,3,8] x) => ({outputs}) {{ {body} }}", arrays)))


def _ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes]


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(
    "body",
    [
        "n = ReduceL2(x, a) y = Div(x, n)",
        "n = ReduceL2(x, a) c = Clip(n, tiny) e = Expand(c, full) y = Div(x, e)",
        "n = ReduceL2(x, a) c = Max(n, tiny) y = Div(x, c)",
        "q = Mul(x, x) s = ReduceSum(q, a) n = Sqrt(s) y = Div(x, n)",
        "q = Pow(x, two) s = ReduceSum(q, a) n = Sqrt(s) r = Reciprocal(n) y = Mul(r, x)",
        "s = ReduceSumSquare(x, a) n = Sqrt(s) r = Div(one, n) y = Mul(x, r)",
    ],
)
def test_the_norm(make_graph: MakeGraph, check_rewrite: Check, body: str, axis: int) -> None:
    graph = _graph(make_graph, body, axis)
    after = fuse_l2norm(graph)
    assert _ops(after) == ["LpNormalization"]
    check_rewrite(graph, after)
    assert fuse_l2norm(after).to_bytes() == after.to_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(
    axis=st.sampled_from([-1, 1]),
    epsilon=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    squares=st.sampled_from(["Mul(x, x)", "Pow(x, two)"]),
    last=st.sampled_from(["y = Div(x, n)", "r = Reciprocal(n) y = Mul(x, r)"]),
)
def test_the_root_of_the_mean(
    make_graph: MakeGraph, check_rewrite: Check, axis: int, epsilon: float, squares: str, last: str
) -> None:
    body = f"q = {squares} v = ReduceMean(q, a) e = Add(v, eps) n = Sqrt(e) {last}"
    arrays = {"a": np.array([axis]), "eps": np.float32(epsilon)}
    arrays |= {"two": np.float32(2)} if "two" in body else {}
    graph = infer_shapes(
        name_nodes(make_graph(f"g (float[2,3,8] x) => (float[2,3,8] y) {{ {body} }}", arrays))
    )
    after = fuse_l2norm(graph)
    ops = ["LpNormalization", "Mul"] if not epsilon else ["Concat", "LpNormalization", "Slice", "Mul"]
    assert _ops(after) == ops
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    "body",
    [
        "n = ReduceL2(x, a) c = Clip(n, large) y = Div(x, c)",
        "n = ReduceL2(x, a) h = Exp(x) y = Div(h, n)",
        "n = ReduceL1(x, a) y = Div(x, n)",
        "h = Exp(x) q = Mul(h, x) v = ReduceMean(q, a) e = Add(v, epsilon) n = Sqrt(e) y = Div(x, n)",
    ],
)
def test_what_is_no_norm_stays(make_graph: MakeGraph, body: str) -> None:
    graph = _graph(make_graph, body)
    assert fuse_l2norm(graph).to_bytes() == graph.to_bytes()


def test_a_norm_that_others_read_is_computed_for_them(make_graph: MakeGraph, check_rewrite: Check) -> None:
    body = "n = ReduceL2(x, a) y = Div(x, n) z = Exp(n)"
    graph = _graph(make_graph, body, outputs="float[2,3,8] y, float[2,3,1] z")
    after = fuse_l2norm(graph)
    assert sorted(_ops(after)) == ["Exp", "LpNormalization", "ReduceL2"]
    check_rewrite(graph, after, 1e-4)
