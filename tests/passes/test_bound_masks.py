"""Masks of minus infinity become masks that integers can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.passes.bound_masks import bound_masks
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import open_runner

MakeGraph = Callable[..., Graph]
MIN = float(np.finfo(np.float32).min)

ARITHMETIC = "f = Cast<to=1>(keep) h = Sub(one, f) m = Mul(h, never)"
CHOICE = "b = Cast<to=9>(keep) m = Where(b, zero, never)"
FILL = "f = Cast<to=1>(keep) h = Sub(one, f) b = Cast<to=9>(h) m = Where(b, never, h)"
GUARD = " p = Softmax(a) t = IsNaN(p) y = Where(t, zero, p)"


def _graph(make: MakeGraph, body: str, never: float = MIN, outputs: str = "", **arrays: Any) -> Graph:
    held = {"one": 1.0, "zero": 0.0, "never": never, **arrays}
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    weights = {n: np.array(v, np.float32) for n, v in held.items() if n in words}
    text = f"g (float[1,2,4,5] x, int64[1,1,1,5] keep) => (float[1,2,4,5] y{outputs}) {{ {body} }}"
    return infer_shapes(name_nodes(make(text, weights)))


def _differ(a: Graph, b: Graph) -> float:
    random = np.random.default_rng(0)
    worst = 0.0
    for keep in ([1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0]):
        feeds: dict[str, Any] = {
            "x": random.standard_normal((1, 2, 4, 5)).astype(np.float32),
            "keep": np.array(keep, np.int64).reshape(1, 1, 1, 5),
        }
        runs = [open_runner(g, threads=1).run(feeds)["y"] for g in (a, b)]
        worst = max(worst, float(np.abs(runs[0] - runs[1]).max()))
    return worst


@pytest.mark.parametrize(
    ("mask", "never"),
    # Nobody multiplies with infinity: 0 times that is no number.
    [(ARITHMETIC, MIN), (ARITHMETIC, -1e4), *((m, n) for m in (CHOICE, FILL) for n in (MIN, -1e4, -np.inf))],
)
def test_masks_of_exporters(make_graph: MakeGraph, mask: str, never: float) -> None:
    graph = _graph(make_graph, mask + " a = Add(x, m) y = Softmax(a)", never)
    before = graph.to_bytes()
    after = bound_masks(graph)
    assert graph.to_bytes() == before
    held = [a.min() for v in after.model.graph.initializers.values() if (a := array(v)) is not None]
    assert min(held) == -20
    assert after.history[-1].details == {"bounded": ["m"], "floor": -20.0, "guards": 0}
    assert _differ(graph, after) < 1e-6


def test_a_constant_mask_keeps_its_other_values(make_graph: MakeGraph) -> None:
    mask = np.triu(np.full((4, 5), -np.inf), 1) + 0.0
    mask[np.isnan(mask)] = 0
    mask[0, 0] = -3
    graph = _graph(make_graph, "a = Add(x, m) y = Softmax(a)", m=mask)
    after = bound_masks(graph, floor=-30)
    held = np.asarray(array(after.values()["a.mask"]))
    assert held[0, 0] == -3
    assert set(np.unique(held)) == {-30, -3, 0}
    assert _differ(graph, after) < 1e-6


def test_guards_against_nan_go_with_the_infinity(make_graph: MakeGraph) -> None:
    graph = _graph(make_graph, CHOICE + " v = Neg(x) a = Add(v, m)" + GUARD, -np.inf)
    after = bound_masks(graph)
    assert [n.op_type for n in after.nodes] == ["Cast", "Where", "Neg", "Add", "Softmax"]
    assert [o.name for o in after.outputs] == ["y"]
    assert _differ(graph, after) < 1e-6


def test_a_guard_stays_where_the_input_may_hold_an_infinity(make_graph: MakeGraph) -> None:
    text = "g (float[2,5] x, float[2,5] m) => (float[2,5] y) { a = Add(x, m)" + GUARD + "}"
    graph = infer_shapes(name_nodes(make_graph(text, {"zero": np.array(0, np.float32)})))
    after = bound_masks(graph)
    assert "IsNaN" in [n.op_type for n in after.nodes]
    assert "minus infinity" in after.history[-1].refused[0].reason


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (ARITHMETIC + " a = Add(x, m) y = Sigmoid(a)", "", "Sigmoid"),
        (ARITHMETIC + " a = Add(x, m) y = Softmax(a)", ", float[1,1,1,5] m", "'m' is an output"),
        ("m = Mul(x, never) y = Softmax(m)", "", "0 or 1"),
        (CHOICE + " a = Add(x, m) y = Softmax(a) z = Exp(m)", ", float[1,1,1,5] z", "Exp"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, body: str, outputs: str, reason: str) -> None:
    graph = _graph(make_graph, body, outputs=outputs)
    after = bound_masks(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason


@pytest.mark.parametrize("floor", [0.0, 5.0, -5000.0, float("nan")])
def test_no_bound(make_graph: MakeGraph, floor: float) -> None:
    with pytest.raises(UsageError, match="no bound"):
        bound_masks(_graph(make_graph, CHOICE + " a = Add(x, m) y = Softmax(a)"), floor=floor)
