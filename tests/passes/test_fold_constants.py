from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph, array
from edgekit.passes.edit import static_shape
from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.verify import max_difference


def _held(value: Any) -> Any:
    return array(value)


def _ops(graph: Any) -> Any:
    return [node.op_type for node in graph.nodes]


def test_a_shape_chain_folds_away(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        """g (float[2,3,4] x) => (float[A,B] y) {
            s = Shape(x)
            i = Constant<value_int=0>()
            n = Gather<axis=0>(s, i)
            axes = Constant<value_ints=[0]>()
            n1 = Unsqueeze(n, axes)
            rest = Constant<value_ints=[-1]>()
            to = Concat<axis=0>(n1, rest)
            y = Reshape(x, to)
        }"""
    )
    before = graph.to_bytes()
    folded = fold_constants(graph)
    assert _ops(folded) == ["Reshape"]
    assert static_shape(folded.values()["y"]) == (2, 12)
    assert set(folded.model.graph.initializers) == {"to"}
    assert folded.history[-1].details["folded"] == 7
    assert graph.to_bytes() == before
    assert max_difference(graph, folded) == 0


def test_shape_takes_start_and_end(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2,3,4] x) => (int64[2] y) { s = Shape<start=1>(x) y = Add(s, s) }")
    (value,) = (v for n, v in fold_constants(graph).values().items() if n == "s")
    assert _held(value).tolist() == [3, 4]


def test_size_folds(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[2,3,4] x) => (int64 y, float[2,3,4] z) { s = Size(x) y = Add(s, s) z = Relu(x) }"
    )
    folded = fold_constants(graph)
    assert _held(folded.values()["s"]) == 24
    assert _ops(folded) == ["Add", "Relu"], "what an output is made of stays a node"
    assert "output of the model" in folded.history[-1].refused[0].reason


def test_a_rearranged_weight_keeps_its_name(make_graph: Callable[..., Any], weights: Any) -> None:
    w = weights(5, 3)
    graph = make_graph(
        "g (float[1,2,3] x) => (float[1,2,5] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }", {"w": w}
    )
    before = graph.to_bytes()
    folded = fold_constants(graph)
    assert graph.to_bytes() == before
    assert set(folded.model.graph.initializers) == {"w"}
    assert np.array_equal(_held(folded.values()["w"]), w.T)
    assert folded.history[-1].details["rearranged_weights"] == {"w": "Transpose[1, 0]"}
    assert np.array_equal(_held(graph.values()["w"]), w)
    assert graph.values()["w"].const_value.name == "w", "the tensor is shared with whoever made the graph"
    assert max_difference(graph, folded) == 0


def test_a_weight_with_two_users_is_not_renamed(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = make_graph(
        """g (float[1,3] x, float[1,3] z) => (float[1,3] y, float[1,3] v) {
            t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) v = MatMul(z, w)
        }""",
        {"w": weights(3, 3)},
    )
    folded = fold_constants(graph)
    assert set(folded.model.graph.initializers) == {"w", "t"}
    assert max_difference(graph, folded) == 0


def test_growth_is_limited(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[64,64,64] x) => (float[64,64,64] y) { e = Expand(one, to) y = Mul(x, e) }",
        {"one": np.ones(1, np.float32), "to": np.array([64, 64, 64], np.int64)},
    )
    refused = fold_constants(graph, growth_limit=1 << 19)
    assert _ops(refused) == ["Expand", "Mul"]
    assert "1.0 MiB" in refused.history[-1].refused[0].reason
    assert _ops(fold_constants(graph)) == ["Mul"]


def test_growth_counts_in_sum(make_graph: Callable[..., Any]) -> None:
    text = "e{0} = Expand(one, to) y{0} = Mul(x, e{0})"
    graph = make_graph(
        "g (float[64,64] x) => (float[64,64] y1, float[64,64] y2, float[64,64] y3) {"
        + " ".join(text.format(i) for i in (1, 2, 3))
        + "}",
        {"one": np.ones(1, np.float32), "to": np.array([64, 64], np.int64)},
    )
    folded = fold_constants(graph, growth_limit=40_000)
    assert _ops(folded).count("Expand") == 1
    assert folded.history[-1].details["grown_bytes"] == 2 * 64 * 64 * 4


def test_random_numbers_are_not_folded(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { r = RandomNormal<shape=[2]>() y = Add(x, r) }")
    assert _ops(fold_constants(graph)) == ["RandomNormal", "Add"]


def test_cast_like_becomes_cast(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        """g (float[2] x, int64[2] i) => (float[2] y) {
            c = CastLike(one, x) a = CastLike(i, x) b = Add(a, c) y = Mul(b, x) }""",
        {"one": np.ones(1, np.int64)},
    )
    folded = fold_constants(graph)
    assert _ops(folded) == ["Cast", "Add", "Mul"]
    assert max_difference(graph, folded) == 0


def _with_branches(condition: onnx.NodeProto | None, opset: int = 21) -> Graph:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    value = functools.partial(helper.make_tensor_value_info, elem_type=floats, shape=[2])
    one = onnx.numpy_helper.from_array(np.ones(2, np.float32), "one")
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["t"]), helper.make_node("Relu", ["t"], ["out"])],
        "then", [], [value("out")], [one],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["out2"])], "else", [], [value("out2")])
    inputs = [value("x")]
    nodes = [helper.make_node("If", ["c"], ["h"], then_branch=then, else_branch=other)]
    if condition is None:
        inputs.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    else:
        nodes.insert(0, condition)
    nodes.append(helper.make_node("Neg", ["h"], ["t"]))
    nodes.append(helper.make_node("Neg", ["t"], ["y"]))
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [value("y")]),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=8,
    )  # fmt: skip
    return Graph(ir.from_proto(model))


@pytest.mark.parametrize(
    ("value", "ops"), [(True, ["Add", "Relu", "Neg", "Neg"]), (False, ["Identity", "Neg", "Neg"])]
)
def test_a_branch_that_is_known_is_inlined(value: Any, ops: Any) -> None:
    constant = onnx.helper.make_node(
        "Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array(value), "v")
    )
    graph = _with_branches(constant)
    before = graph.to_bytes()
    folded = fold_constants(graph)
    assert graph.to_bytes() == before
    assert _ops(folded) == ops
    assert folded.history[-1].details["inlined"] == 1
    onnx.checker.check_model(folded.to_proto(), full_check=True)
    assert max_difference(graph, folded) == 0


def test_a_branch_that_depends_on_an_input_stays() -> None:
    graph = _with_branches(None)
    assert _ops(fold_constants(graph)) == ["If", "Neg", "Neg"]


def test_a_constant_output_stays_a_node(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[2] x) => (float[2] y, int64[1] c) { y = Relu(x) c = Constant<value_ints=[3]>() }"
    )
    folded = fold_constants(graph)
    assert sorted(_ops(folded)) == ["Constant", "Relu"]
    assert max_difference(graph, folded) == 0


def test_a_constant_that_cannot_be_computed_is_told(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        'g (float[2] x) => (float[2] y) { [s] s = Constant<value_string="a">() t = Identity(s) y = Relu(x) }'
    )
    folded = fold_constants(graph)
    assert [(r.where, r.reason) for r in folded.history[-1].refused] == [
        ("s", "it cannot be computed in advance")
    ]
