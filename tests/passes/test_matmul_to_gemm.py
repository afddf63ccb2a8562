"""Products with stored weights become layers with a row of weights for each output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.matmul_to_gemm import matmul_to_gemm
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, inputs: str, body: str, output: str = "float[m,n] y", **shapes: Any) -> Graph:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return infer_shapes(name_nodes(make(f"g ({inputs}) => ({output}) {{ {body} }}", arrays)))


def _ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes]


def _check_plain(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type == "Gemm":
            assert {name: a.value for name, a in node.attributes.items()} == {"transB": 1}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(data=st.data())
def test_any_gemm(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    flags = {name: data.draw(st.integers(0, 1)) for name in ("transA", "transB")}
    scales = {name: data.draw(st.sampled_from([1.0, 0.5, -2.0])) for name in ("alpha", "beta")}
    first = "6,3" if flags["transA"] else "3,6"
    second = (4, 6) if flags["transB"] else (6, 4)
    added = data.draw(st.sampled_from([None, (), (1,), (4,), (1, 4), (3, 1), (3, 4)]))
    stored = data.draw(st.booleans())
    attributes = ", ".join(f"{k}={v}" for k, v in (flags | scales).items())
    shapes: dict[str, Any] = {"w": second}
    inputs = f"float[{first}] x"
    if not stored:
        inputs, shapes = f"{inputs}, float[{second[0]},{second[1]}] w", {}
    if added is not None:
        shapes["c"] = added
    names = "x, w" if added is None else "x, w, c"
    graph = _graph(make_graph, inputs, f"y = Gemm <{attributes}> ({names})", **shapes)
    after = matmul_to_gemm(graph)
    check_rewrite(graph, after, 1e-4)
    assert matmul_to_gemm(after).to_bytes() == after.to_bytes()
    assert ("Gemm" in _ops(after)) is stored
    _check_plain(after)


@pytest.mark.parametrize(
    ("inputs", "body", "output", "shapes", "ops"),
    [
        ("float[5,6] x", "y = MatMul(x, w)", "float[a,b] y", {"w": (6, 4)}, ["Gemm"]),
        ("float[1,5,6] x", "h = MatMul(x, w) y = Add(h, c)", "float[a,b,c] y", {"w": (6, 4), "c": (4,)},
         ["Reshape", "Gemm", "Reshape"]),
        ("float[1,5,6] x", "h = MatMul(x, w) y = Add(c, h)", "float[a,b,c] y", {"w": (6, 4), "c": ()},
         ["Reshape", "Gemm", "Reshape"]),
        ("float[1,2,5,6] x", "y = MatMul(x, w)", "float[a,b,c,d] y", {"w": (6, 4)},
         ["Reshape", "Gemm", "Reshape"]),
        ("float[6] x", "y = MatMul(x, w)", "float[a] y", {"w": (6, 4)}, ["Reshape", "Gemm", "Reshape"]),
        ("float[5,6] x", "y = MatMul(x, w)", "float[a] y", {"w": (6,)}, ["Gemm", "Reshape"]),
        ("float[5,6] x", "y = MatMul(w, x)", "float[a,b] y", {"w": (3, 5)},
         ["Transpose", "Gemm", "Transpose"]),
        ("float[2,5,6] x", "y = MatMul(w, x)", "float[a,b,c] y", {"w": (3, 5)},
         ["Transpose", "Reshape", "Gemm", "Reshape", "Transpose"]),
        ("float[2,5,6] x", "y = MatMul(w, x)", "float[a,b] y", {"w": (5,)},
         ["Transpose", "Reshape", "Gemm", "Reshape"]),
        ("float[5] x", "y = MatMul(w, x)", "float[a] y", {"w": (3, 5)}, ["Reshape", "Gemm", "Reshape"]),
    ],
)  # fmt: skip
def test_products(
    make_graph: MakeGraph,
    check_rewrite: Check,
    inputs: str,
    body: str,
    output: str,
    shapes: dict[str, Any],
    ops: list[str],
) -> None:
    graph = _graph(make_graph, inputs, body, output, **shapes)
    before = graph.to_bytes()
    after = matmul_to_gemm(graph)
    assert _ops(after) == ops
    _check_plain(after)
    check_rewrite(graph, after)
    assert matmul_to_gemm(after).to_bytes() == after.to_bytes()
    assert graph.to_bytes() == before


def test_a_sum_that_is_no_bias_stays(make_graph: MakeGraph, check_rewrite: Check) -> None:
    for shape in ((5, 1), (5, 4), (2, 5, 4)):
        rank = 3 if len(shape) == 3 else 2
        output = f"float[{','.join('abc'[:rank])}] y"
        graph = _graph(
            make_graph, "float[5,6] x", "h = MatMul(x, w) y = Add(h, c)", output, w=(6, 4), c=shape
        )
        after = matmul_to_gemm(graph)
        assert _ops(after) == ["Gemm", "Add"]
        check_rewrite(graph, after)


def test_a_product_that_two_read_keeps_its_bias_apart(make_graph: MakeGraph, check_rewrite: Check) -> None:
    body = "h = MatMul(x, w) y = Add(h, c) z = Relu(h)"
    graph = _graph(make_graph, "float[5,6] x", body, "float[5,4] y, float[5,4] z", w=(6, 4), c=(4,))
    after = matmul_to_gemm(graph)
    assert _ops(after) == ["Gemm", "Add", "Relu"]
    check_rewrite(graph, after)


def test_products_of_computed_tensors_and_batches_of_weights_stay(make_graph: MakeGraph) -> None:
    for graph in (
        _graph(make_graph, "float[5,6] x, float[6,4] w", "y = MatMul(x, w)"),
        _graph(make_graph, "float[2,5,6] x", "y = MatMul(x, w)", "float[a,b,c] y", w=(2, 6, 4)),
        _graph(make_graph, "float[5,6] x", "y = Gemm <transB=1> (x, w, c)", w=(4, 6), c=(4,)),
    ):
        assert matmul_to_gemm(graph).to_bytes() == graph.to_bytes()
