from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.remove_identities import remove_identities
from edgekit.passes.verify import max_difference


def _ops(graph: Any) -> Any:
    return [node.op_type for node in graph.nodes]


@pytest.mark.parametrize(
    "node",
    [
        "Identity(a)",
        "Dropout(a)",
        "Cast<to=1>(a)",
        "Reshape(a, same)",
        "Expand(a, same)",
        "Flatten(a)",
        "Concat<axis=0>(a)",
        "Max(a)",
        "Sum(a)",
        "Transpose<perm=[0,1]>(a)",
        "Pad(a, zeros)",
    ],
)
def test_a_node_that_changes_nothing_goes(make_graph: Callable[..., Any], node: Any) -> None:
    constants = {"same": np.array([2, 3], np.int64), "zeros": np.zeros(4, np.int64)}
    graph = fold_constants(
        make_graph(f"g (float[2,3] x) => (float[2,3] y) {{ a = Relu(x) b = {node} y = Neg(b) }}", constants)
    )
    result = remove_identities(graph)
    assert _ops(result) == ["Relu", "Neg"]
    assert len(_ops(graph)) == 3
    assert max_difference(graph, result) == 0


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("Cast<to=11>(a)", "double[2,3]"),
        ("Reshape(a, other)", "float[3,2]"),
        ("Concat<axis=0>(a, a)", "float[4,3]"),
        ("Transpose<perm=[1,0]>(a)", "float[3,2]"),
        ("Pad(a, ones)", "float[4,5]"),
        ("Dropout(a, ratio, yes)", "float[2,3]"),
        ("Max(a, a)", "float[2,3]"),
    ],
)
def test_a_node_that_changes_something_stays(make_graph: Callable[..., Any], node: Any, shape: Any) -> None:
    constants = {
        "other": np.array([3, 2], np.int64),
        "ones": np.ones(4, np.int64),
        "ratio": np.array(0.5, np.float32),
        "yes": np.array(True),
    }
    graph = fold_constants(
        make_graph(f"g (float[2,3] x) => ({shape} y) {{ a = Relu(x) y = {node} }}", constants)
    )
    assert _ops(remove_identities(graph)) == _ops(graph)


def test_an_output_keeps_its_name(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) y = Identity(b) }")
    result = remove_identities(graph)
    assert _ops(result) == ["Relu"]
    assert [o.name for o in result.outputs] == ["y"]


def test_two_outputs_of_one_tensor_stay_two(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }")
    result = remove_identities(graph)
    assert _ops(result) == ["Relu", "Identity"]
    assert max_difference(graph, result) == 0


def test_an_input_that_is_an_output_is_refused_with_the_reason(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { [id] y = Identity(x) }")
    change = remove_identities(graph).history[-1]
    assert change.refused[0].where == "id"
    assert "between an input and an output" in change.refused[0].reason


def test_a_dropout_between_input_and_output_becomes_an_identity(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { y, m = Dropout(x) }")
    result = remove_identities(graph)
    assert _ops(result) == ["Identity"]
    assert _ops(graph) == ["Dropout"]
    assert max_difference(graph, result) == 0


def test_a_used_mask_keeps_its_dropout(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y, bool[2] m) { a = Relu(x) y, m = Dropout(a) }")
    result = remove_identities(graph)
    assert _ops(result) == ["Relu", "Dropout"]
    assert "second output" in result.history[-1].refused[0].reason
