from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import TensorSpec
from edgekit.passes.verify import compare, max_difference, random_feeds, worst


def test_equal_graphs_do_not_differ(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    assert max_difference(graph, graph.copy()) == 0


def test_different_graphs_do(make_graph: Callable[..., Any]) -> None:
    a = make_graph("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    b = make_graph("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    assert max_difference(a, b) > 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] z) => (float[2] y) { y = Exp(z) }", "other inputs"),
        ("g (float[2] x) => (float[2] z) { z = Exp(x) }", "other outputs"),
        ("g (float[2] x) => (float[1,2] y) { y = Unsqueeze(x, k) }", "has shape"),
    ],
)
def test_graphs_that_cannot_be_compared(make_graph: Callable[..., Any], text: Any, message: Any) -> None:
    a = make_graph("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    with pytest.raises(ModelError, match=message):
        max_difference(a, make_graph(text, {"k": np.zeros(1, np.int64)}))


def test_feeds_are_seeded_and_in_range() -> None:
    specs = [
        TensorSpec("f", (4, 5), np.dtype(np.float32)),
        TensorSpec("i", (9,), np.dtype(np.int64)),
        TensorSpec("b", (9,), np.dtype(bool)),
    ]
    first, again, odd = random_feeds(specs, 0), random_feeds(specs, 0), random_feeds(specs, 1)
    for name in first:
        assert np.array_equal(first[name], again[name])
    assert [v.dtype for v in first.values()] == [s.dtype for s in specs]
    assert set(first["i"].tolist()) == {0, 1}
    assert odd["i"].tolist() == [1] * 9
    assert odd["f"].min() >= 0


def test_nan_differs_from_a_number_but_not_from_nan() -> None:
    nan, one = np.array([np.nan, 1.0]), np.array([1.0, 1.0])
    assert compare("y", nan, nan).max_absolute == 0
    assert np.isnan(compare("y", nan, one).relative)
    found = worst([{"y": compare("y", nan, one)}, {"y": compare("y", one, one + 1)}])
    assert np.isnan(found[0].relative)


def test_infinities_agree_by_sign() -> None:
    inf = np.array([np.inf, -np.inf])
    assert compare("y", inf, inf).max_absolute == 0
    assert compare("y", inf, -inf).max_absolute == np.inf


def test_integers_count_mismatches() -> None:
    difference = compare("y", np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]))
    assert difference.relative == 0.25
    assert difference.max_absolute == 5


def test_relative_is_to_the_largest_value() -> None:
    assert compare("y", np.array([10.0, 0.0]), np.array([10.0, 0.1])).relative == pytest.approx(0.01)
    assert compare("y", np.zeros(2), np.full(2, 0.5)).relative == 0.5
    assert compare("y", np.zeros(0), np.zeros(0)).relative == 0
