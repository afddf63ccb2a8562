"""Operators of many inputs become chains of two."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.split_variadic import split_variadic

MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, op: str, count: int) -> Graph:
    names = "abcde"[:count]
    inputs = ", ".join(f"float[{'1' if i % 2 else '2'},{'3' if i else '1'}] {n}" for i, n in enumerate(names))
    text = f"g ({inputs}) => (float[m,n] y) {{ y = {op}({', '.join(names)}) }}"
    return infer_shapes(name_nodes(make(text)))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_pairs(make_graph: MakeGraph, check_rewrite: Callable[..., None], op: str, count: int) -> None:
    graph = _graph(make_graph, op, count)
    after = split_variadic(graph)
    pair = {"Sum": "Add", "Mean": "Add"}.get(op, op)
    assert [n.op_type for n in after.nodes] == [pair] * (count - 1) + ["Mul"] * (op == "Mean")
    check_rewrite(graph, after)
    assert split_variadic(after).to_bytes() == after.to_bytes()


@pytest.mark.parametrize("op", ["Sum", "Max"])
def test_one_input_stays(make_graph: MakeGraph, op: str) -> None:
    graph = _graph(make_graph, op, 1)
    assert split_variadic(graph).to_bytes() == graph.to_bytes()
