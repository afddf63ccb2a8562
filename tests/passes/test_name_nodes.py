from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.passes.name_nodes import name_nodes


def test_names_become_unique_and_present(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[2] x) => (float[2] y) { [same] a = Relu(x) [same] b = Relu(a) c = Neg(b) [own] y = Neg(c) }"
    )
    graph.model.graph[3].name = "Neg_c"  # the name that the third would have got
    result = name_nodes(graph)
    names = [n.name for n in result.nodes]
    assert names == ["same", "same.1", "Neg_c.1", "Neg_c"]
    assert result.history[-1].details == {"named": 2}
    assert [n.name for n in graph.nodes][:2] == ["same", "same"]


def test_names_that_are_fine_stay(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { [first] a = Relu(x) [second] y = Neg(a) }")
    assert [n.name for n in name_nodes(graph).nodes] == ["first", "second"]
