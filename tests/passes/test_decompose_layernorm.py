"""A layer normalization becomes primitives that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.passes.decompose_layernorm import Squares, decompose_layernorm
from edgekit.passes.fuse_layernorm import fuse_layernorm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import open_runner
from edgekit.train.executor import Executor

Check = Callable[..., None]


def _norm(
    shape: tuple[int, ...], axis: int, epsilon: float = 1e-5, *, beta: bool = True, ones: bool = False
) -> Graph:
    random = np.random.default_rng(len(shape) + 10 * (axis % len(shape)))
    rest = shape[axis % len(shape) :]
    weights = {"g": np.ones(rest) if ones else random.uniform(0.5, 2, rest)}
    if beta:
        weights["b"] = random.standard_normal(rest) * (not ones)
    dims = ",".join(map(str, shape))
    text = f"""<ir_version: 8, opset_import: ["" : 21]> g (float[{dims}] x) => (float[{dims}] y) {{
        y = LayerNormalization<axis={axis}, epsilon={epsilon}>(x, {", ".join(weights)}) }}"""
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return infer_shapes(name_nodes(Graph(ir.from_proto(model))))


def _ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    back=st.integers(1, 4),
    epsilon=st.sampled_from([1e-12, 1e-5, 1e-2]),
    beta=st.booleans(),
    squares=st.sampled_from(list(Squares)),
)
def test_the_same_for_any_shape(
    check_rewrite: Check, shape: tuple[int, ...], back: int, epsilon: float, beta: bool, squares: Squares
) -> None:
    # One element varies by nothing: its inverse deviation would blow up a rounding error.
    axis = -min(back, len(shape))
    if np.prod(shape[axis:]) == 1:
        epsilon = 1e-2
    graph = _norm(shape, axis, epsilon, beta=beta)
    after = decompose_layernorm(graph, squares=squares)
    assert "LayerNormalization" not in _ops(after)
    check_rewrite(graph, after, 2e-4)


@pytest.mark.parametrize("squares", list(Squares))
def test_only_operators_with_integer_kernels(check_rewrite: Check, squares: Squares) -> None:
    graph = _norm((1, 6, 16), -1)
    before = graph.to_bytes()
    after = decompose_layernorm(graph, squares=squares)
    check_rewrite(graph, after)
    assert graph.to_bytes() == before
    middle = {
        Squares.MEAN: ["Mul", "ReduceMean"],
        Squares.DOT: ["Reshape", "Reshape", "MatMul", "Reshape"],
    }[squares]
    assert _ops(after) == [
        "ReduceMean", "Sub", *middle, "Add", "Sqrt", "Reciprocal", "Mul", "Mul", "Add",
    ]  # fmt: skip
    assert after.history[-1].details == {"rewritten": {"LayerNormalization": 1}, "squares": str(squares)}


def test_a_reciprocal_alone_reads_the_root() -> None:
    after = decompose_layernorm(_norm((2, 8), -1))
    (root,) = [n for n in after.nodes if n.op_type == "Sqrt"]
    assert [use.node.op_type for use in root.outputs[0].uses()] == ["Reciprocal"]


def test_trivial_parameters_are_left_out(check_rewrite: Check) -> None:
    graph = _norm((1, 6, 16), -1, ones=True)
    after = decompose_layernorm(graph)
    check_rewrite(graph, after)
    assert _ops(after)[-2:] == ["Reciprocal", "Mul"]
    assert set(after.model.graph.initializers) == {"y.axes", "y.epsilon"}


def test_parameters_stay_what_they_are() -> None:
    graph = _norm((1, 6, 16), -1)
    after = decompose_layernorm(graph)
    for name in ("g", "b"):
        assert np.array_equal(
            np.asarray(array(after.values()[name])), np.asarray(array(graph.values()[name]))
        )


@pytest.mark.parametrize("squares", list(Squares))
def test_statistics_that_are_read_keep_their_names(
    make_graph: Callable[..., Graph], weights: Callable[..., Any], check_rewrite: Check, squares: Squares
) -> None:
    text = """g (float[2,3,8] x) => (float[2,3,8] y, float[2,3,1] m, float[2,3,1] r) {
        y, m, r = LayerNormalization(x, g) }"""
    graph = infer_shapes(name_nodes(make_graph(text, {"g": weights(8)})))
    after = decompose_layernorm(graph, squares=squares)
    assert "MatMul" not in _ops(after), "the product of rows has no inverse deviation to hand out"
    check_rewrite(graph, after)


def test_computed_parameters(make_graph: Callable[..., Graph], check_rewrite: Check) -> None:
    text = "g (float[2,8] x, float[8] g) => (float[2,8] y) { y = LayerNormalization(x, g) }"
    graph = infer_shapes(name_nodes(make_graph(text)))
    for squares in Squares:
        after = decompose_layernorm(graph, squares=squares)
        assert "LayerNormalization" not in _ops(after)
        check_rewrite(graph, after)


def test_names_in_use_are_avoided(
    make_graph: Callable[..., Graph], weights: Callable[..., Any], check_rewrite: Check
) -> None:
    text = "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { y = LayerNormalization(x, g) z = Neg(x) }"
    graph = make_graph(text, {"g": weights(8)})
    graph.values()["z"].name = "y.mean"
    graph = infer_shapes(name_nodes(graph))
    after = decompose_layernorm(graph)
    assert "y.mean.1" in after.values()
    check_rewrite(graph, after)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="mean, dot"):
        decompose_layernorm(_norm((2, 8), -1), squares="sum")  # type: ignore[arg-type]


def test_a_float16_norm_stays(make_graph: Callable[..., Graph]) -> None:
    text = "g (float16[2,8] x, float16[8] g) => (float16[2,8] y) { y = LayerNormalization(x, g) }"
    after = decompose_layernorm(infer_shapes(name_nodes(make_graph(text))))
    assert _ops(after) == ["LayerNormalization"]
    assert after.history[-1].refused[0].reason == "its input is not float32"


def test_taken_apart_and_put_together(check_rewrite: Check) -> None:
    graph = _norm((1, 6, 16), -1)
    again = fuse_layernorm(decompose_layernorm(graph))
    assert _ops(again) == ["LayerNormalization"]
    check_rewrite(graph, again)


@pytest.mark.parametrize("squares", list(Squares))
def test_it_trains_with_any_batch(squares: Squares) -> None:
    graph = _norm((1, 6, 16), -1)
    x = np.random.default_rng(3).standard_normal((3, 6, 16)).astype(np.float32)
    runner = open_runner(graph, threads=1)
    expected = np.concatenate([runner.run({"x": row[None]})["y"] for row in x])
    found = Executor(decompose_layernorm(graph, squares=squares)).eval()({"x": torch.from_numpy(x)})["y"]
    assert np.abs(found.detach().numpy() - expected).max() < 1e-5
