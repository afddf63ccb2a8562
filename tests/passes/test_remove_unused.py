from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.passes.remove_unused import remove_unused


def test_dead_nodes_and_weights_go(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = make_graph(
        "g (float[2] x) => (float[2] y) { y = Relu(x) a = Neg(x) b = Add(a, w) }",
        {"w": weights(2), "q": weights(2)},
    )
    graph.model.opset_imports["some.domain"] = 1
    result = remove_unused(graph)
    assert [n.op_type for n in result.nodes] == ["Relu"]
    assert not result.model.graph.initializers
    assert result.model.opset_imports == {"": 21}
    assert result.history[-1].details == {"nodes": 2, "weights": 2}
    assert len(list(graph.nodes)) == 3


def test_one_used_output_keeps_a_node(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[4] x) => (float[2] y) { y, z = Split<axis=0, num_outputs=2>(x) }")
    assert [n.op_type for n in remove_unused(graph).nodes] == ["Split"]


def test_an_idle_input_stays_and_is_told(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x, float[2] z) => (float[2] y) { y = Relu(x) }")
    result = remove_unused(graph)
    assert [i.name for i in result.inputs] == ["x", "z"]
    assert result.history[-1].refused[0].where == "z"
