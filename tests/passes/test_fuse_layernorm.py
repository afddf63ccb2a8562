"""Every way of writing a layer normalization becomes one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.fuse_layernorm import fuse_layernorm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]

SQUARES = {"power": "q = Pow(d, two)", "product": "q = Mul(d, d)"}
DIVIDES = {
    "div": "n = Div(d, s)",
    "again": "e = Sub(x, m) n = Div(e, s)",
    "reciprocal": "r = Reciprocal(s) n = Mul(d, r)",
    "reversed": "r = Reciprocal(s) n = Mul(r, d)",
}
AFFINE = {
    "both": "k = Mul(n, g) y = Add(k, b)",
    "reversed": "k = Mul(g, n) y = Add(b, k)",
    "gamma": "y = Mul(n, g)",
    "beta": "y = Add(n, b)",
}


def _graph(
    make: MakeGraph,
    *,
    square: str = "power",
    divide: str = "div",
    affine: str = "both",
    axes: Sequence[int] = (-1,),
    shape: Sequence[int] = (2, 3, 8),
    parameters: Sequence[int] = (8,),
    more: str = "",
    outputs: str = "",
) -> Graph:
    random = np.random.default_rng(0)
    dims = ",".join(map(str, shape))
    arrays = {
        "axes": np.array(axes, np.int64),
        "two": np.array(2, np.float32),
        "eps": np.array(1e-5, np.float32),
        "g": random.uniform(0.5, 2, parameters).astype(np.float32),
        "b": random.standard_normal(parameters).astype(np.float32),
    }
    text = f"""g (float[{dims}] x) => (float[{dims}] y{outputs}) {{
        m = ReduceMean(x, axes) d = Sub(x, m) {SQUARES[square]} v = ReduceMean(q, axes)
        w = Add(v, eps) s = Sqrt(w) {DIVIDES[divide]} {AFFINE[affine]} {more} }}"""
    used = {name: values for name, values in arrays.items() if f"{name})" in text or f"({name}" in text}
    return infer_shapes(name_nodes(make(text, used)))


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("divide", DIVIDES)
@pytest.mark.parametrize("affine", AFFINE)
def test_forms_of_exporters(
    make_graph: MakeGraph, check_rewrite: Check, square: str, divide: str, affine: str
) -> None:
    graph = _graph(make_graph, square=square, divide=divide, affine=affine)
    before = graph.to_bytes()
    after = fuse_layernorm(graph)
    assert [n.op_type for n in after.nodes] == ["LayerNormalization"]
    assert graph.to_bytes() == before
    check_rewrite(graph, after)
    assert after.history[-1].details == {"fused": ["y"]}


@pytest.mark.parametrize(
    ("axes", "parameters"),
    [([1, 2], (3, 8)), ([-1, -2], (3, 8)), ([1, 2], (3, 1)), ([1, 2], (8,)), ([-1], (1, 1, 8)), ([2], ())],
)
def test_axes_and_shapes_of_parameters(
    make_graph: MakeGraph, check_rewrite: Check, axes: list[int], parameters: tuple[int, ...]
) -> None:
    graph = _graph(make_graph, axes=axes, parameters=parameters)
    after = fuse_layernorm(graph)
    assert [n.op_type for n in after.nodes] == ["LayerNormalization"]
    check_rewrite(graph, after)


def test_parameters_keep_their_names(make_graph: MakeGraph) -> None:
    after = fuse_layernorm(_graph(make_graph))
    (node,) = after.nodes
    assert [v.name for v in node.inputs if v is not None] == ["x", "g", "b"]


def test_a_scale_along_other_axes_stays_outside(make_graph: MakeGraph, check_rewrite: Check) -> None:
    graph = _graph(make_graph, parameters=(2, 1, 1))
    after = fuse_layernorm(graph)
    assert [n.op_type for n in after.nodes] == ["LayerNormalization", "Mul", "Add"]
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"axes": [1], "parameters": ()}, "axes [1] of 3"),
        ({"more": "z = Neg(d)", "outputs": ", float[2,3,8] z"}, "'d'"),
        ({"outputs": ", float[2,3,1] v"}, "'v'"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, changes: dict[str, Any], reason: str) -> None:
    graph = _graph(make_graph, **changes)
    after = fuse_layernorm(graph)
    assert [n.op_type for n in after.nodes] == [n.op_type for n in graph.nodes]
    assert reason in after.history[-1].refused[0].reason


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, x) v = ReduceMean(q, axes)",
        "m = ReduceMean(x, other) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes)",
        "m = ReduceMax(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes)",
        "m = ReduceMean(x, axes) d = Sub(m, x) q = Mul(d, d) v = ReduceMean(q, axes)",
    ],
)
def test_other_arithmetic_is_no_norm(make_graph: MakeGraph, body: str) -> None:
    text = f"""g (float[2,3,8] x) => (float[2,3,8] y) {{ {body}
        w = Add(v, eps) a = Abs(w) s = Sqrt(a) y = Div(d, s) }}"""
    arrays = {"axes": np.array([2]), "other": np.array([1]), "eps": np.array(1e-5, np.float32)}
    for source in (text, text.replace("a = Abs(w) s = Sqrt(a)", "s = Sqrt(w)")):
        graph = infer_shapes(name_nodes(make_graph(source, arrays)))
        assert "LayerNormalization" not in [n.op_type for n in fuse_layernorm(graph).nodes]
