"""Powers and divisions become products and roots, where that is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.simplify_powers import simplify_powers

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, body: str, outputs: str = "float[2,6] y", **arrays: Any) -> Graph:
    text = f"g (float[2,6] x) => ({outputs}) {{ e = Exp(x) {body} }}"
    weights = {name: np.array(values, np.float32) for name, values in arrays.items()}
    return infer_shapes(name_nodes(make(text, weights)))


def _ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes][1:]


@pytest.mark.parametrize(
    ("exponent", "ops"),
    [
        (2, ["Mul"]),
        (3, ["Mul", "Mul"]),
        (0.5, ["Sqrt"]),
        (-1, ["Reciprocal"]),
        (-0.5, ["Sqrt", "Reciprocal"]),
    ],
)
def test_powers(make_graph: MakeGraph, check_rewrite: Check, exponent: float, ops: list[str]) -> None:
    graph = _graph(make_graph, "y = Pow(e, p)", p=exponent)
    before = graph.to_bytes()
    after = simplify_powers(graph)
    assert _ops(after) == ops
    assert graph.to_bytes() == before
    check_rewrite(graph, after, 1e-3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(shape=st.sampled_from([(), (1,), (6,), (2, 6), (2, 1)]), seed=st.integers(0, 99))
def test_division_by_constants(
    make_graph: MakeGraph, check_rewrite: Check, shape: tuple[int, ...], seed: int
) -> None:
    divisor = np.random.default_rng(seed).uniform(0.5, 3, shape)
    graph = _graph(make_graph, "y = Div(e, c)", c=divisor)
    after = simplify_powers(graph)
    assert _ops(after) == ["Mul"]
    check_rewrite(graph, after)


def test_divisions_by_one_root_share_its_reciprocal(make_graph: MakeGraph, check_rewrite: Check) -> None:
    body = "s = Sqrt(e) y = Div(x, s) z = Div(e, s) w = Div(one, s)"
    graph = _graph(make_graph, body, "float[2,6] y, float[2,6] z, float[2,6] w", one=1.0)
    after = simplify_powers(graph)
    assert sorted(_ops(after)) == ["Mul", "Mul", "Reciprocal", "Reciprocal", "Sqrt"]
    assert after.history[-1].details == {"rewritten": {"Div": 3}}
    check_rewrite(graph, after, 1e-4)


def test_a_power_that_becomes_a_divisor(make_graph: MakeGraph, check_rewrite: Check) -> None:
    graph = _graph(make_graph, "s = Pow(e, p) y = Div(x, s)", p=0.5)
    after = simplify_powers(graph)
    assert _ops(after) == ["Sqrt", "Reciprocal", "Mul"]
    check_rewrite(graph, after, 1e-4)


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        ("y = Pow(e, p)", {"p": 1.7}, "exponent is not one of 2, 3, 0.5, -0.5, -1"),
        ("y = Pow(e, x)", {}, "exponent"),
        ("y = Div(x, e)", {}, "no square root"),
        ("y = Div(x, c)", {"c": [1, 1, 0, 1, 1, 1]}, "zero"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, body: str, arrays: dict[str, Any], reason: str) -> None:
    graph = _graph(make_graph, body, **arrays)
    after = simplify_powers(graph)
    assert _ops(after) == _ops(graph)
    assert reason in after.history[-1].refused[0].reason


def test_integers_stay(make_graph: MakeGraph) -> None:
    text = "g (int64[4] x) => (int64[4] y) { y = Div(x, c) }"
    after = simplify_powers(infer_shapes(name_nodes(make_graph(text, {"c": np.array(3)}))))
    assert [n.op_type for n in after.nodes] == ["Div"]
    assert "integers" in after.history[-1].refused[0].reason
