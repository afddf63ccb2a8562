from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.passes.edit import static_shape
from edgekit.passes.infer_shapes import infer_shapes

CONV = "g (float[1,3,8,8] x) => (float[1,K] y) { c = Conv<strides=[2,2]>(x, w) y = Flatten(c) }"


def test_every_tensor_gets_a_shape(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = infer_shapes(make_graph(CONV, {"w": weights(4, 3, 3, 3)}))
    shapes = {name: static_shape(value) for name, value in graph.values().items()}
    assert shapes["c"] == (1, 4, 3, 3)
    assert shapes["y"] == (1, 36)
    assert graph.history[-1].summary == "2 of 2 tensors have a known shape"


def test_a_wrong_declaration_is_corrected(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = make_graph("g (float[1,2] x) => (float[9,9] y) { y = Relu(x) }")
    assert static_shape(infer_shapes(graph).values()["y"]) == (1, 2)
    assert static_shape(graph.values()["y"]) == (9, 9)


def test_a_declared_shape_stays_where_nothing_is_inferred(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1,6] x, int64[2] s) => (float[2,3] y) { y = Reshape(x, s) }")
    assert static_shape(infer_shapes(graph).values()["y"]) == (2, 3)


def test_shapes_follow_from_small_constants(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[1,6] x) => (float[A,B] y) { y = Reshape(x, s) }", {"s": np.array([3, -1], np.int64)}
    )
    assert static_shape(infer_shapes(graph).values()["y"]) == (3, 2)


def test_shapes_that_do_not_fit_name_the_node(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = make_graph("g (float[1,3] x) => (float[1,5] y) { [bad] y = MatMul(x, w) }", {"w": weights(4, 5)})
    with pytest.raises(ModelError, match=r"MatMul node 'bad'.*do not fit"):
        infer_shapes(graph)
