"""Arithmetic nodes are read as polynomials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.polynomial import Terms, polynomial


def _terms(make: Callable[..., Graph], body: str) -> Terms | None:
    numbers = {"two": 2, "three": 3, "half": 0.5, "zero": 0, "pair": [1, 2]}
    arrays = {name: np.array(v, np.float32) for name, v in numbers.items()}
    graph = make(f"g (float[2] x, float[2] t) => (float[2] y) {{ {body} }}", arrays)
    values = graph.values()
    found = polynomial(values["y"], [values["x"], values["t"]])
    return None if found is None else found.terms


@pytest.mark.parametrize(
    ("body", "terms"),
    [
        ("a = Mul(x, half) y = Add(a, two)", {(1, 0): 0.5, (0, 0): 2}),
        ("a = Add(x, t) y = Mul(a, a)", {(2, 0): 1, (1, 1): 2, (0, 2): 1}),
        ("a = Sub(x, two) b = Pow(a, two) y = Div(b, half)", {(2, 0): 2, (1, 0): -8, (0, 0): 8}),
        ("a = Neg(x) y = Pow(a, three)", {(3, 0): -1}),
        ("a = Sub(x, x) y = Add(a, t)", {(0, 1): 1}),
        ("y = Mul(x, zero)", {}),
    ],
)
def test_arithmetic(make_graph: Callable[..., Graph], body: str, terms: Terms) -> None:
    assert _terms(make_graph, body) == terms


@pytest.mark.parametrize(
    "body",
    [
        "y = Div(two, x)",
        "y = Pow(x, half)",
        "y = Mul(x, pair)",
        "y = Exp(x)",
        "a = Mul(x, x) b = Mul(a, a) y = Mul(b, x)",
        "y = Div(x, zero)",
    ],
)
def test_what_is_none(make_graph: Callable[..., Graph], body: str) -> None:
    assert _terms(make_graph, body) is None


def test_the_nodes_in_between(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { a = Exp(x) b = Mul(a, a) y = Neg(b) }")
    values = graph.values()
    found = polynomial(values["y"], [values["a"]])
    assert found is not None
    assert sorted(node.op_type for node in found.nodes) == ["Mul", "Neg"]
    assert found.equals({(2,): -1.0004}), "rounded constants count as equal"
    assert not found.equals({(2,): -1.01})
    assert not found.equals({(2,): -1.0, (1,): 1.0})
