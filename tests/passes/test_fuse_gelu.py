"""Every way of writing a GELU becomes one node."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import open_runner
from edgekit.train.executor import Executor

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]

NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root2": math.sqrt(2), "inv": math.sqrt(0.5),
    "k": 0.044715, "c": math.sqrt(2 / math.pi), "ck": 0.044715 * math.sqrt(2 / math.pi),
}  # fmt: skip

EXACT = {
    "torch": "a = Div(x, root2) t = Erf(a) b = Add(t, one) p = Mul(x, b) y = Mul(p, half)",
    "dynamo": "a = Mul(x, inv) t = Erf(a) b = Add(one, t) p = Mul(half, x) y = Mul(p, b)",
    "halved": "a = Mul(x, inv) t = Erf(a) h = Mul(t, half) b = Add(h, half) y = Mul(b, x)",
    "divided": "a = Div(x, root2) t = Erf(a) b = Add(t, one) h = Div(b, two) y = Mul(h, x)",
    "expanded": "a = Mul(x, inv) t = Erf(a) h = Mul(x, half) p = Mul(h, t) y = Add(p, h)",
}
TANH = {
    "power": "q = Pow(x, three) w = Mul(q, k) s = Add(x, w) a = Mul(s, c)",
    "cube": "u = Mul(x, x) q = Mul(u, x) w = Mul(k, q) s = Add(x, w) a = Mul(c, s)",
    "horner": "u = Mul(x, x) w = Mul(u, k) s = Add(one, w) v = Mul(x, c) a = Mul(v, s)",
    "spread": "q = Pow(x, three) w = Mul(q, ck) v = Mul(x, c) a = Add(v, w)",
}


def _graph(make: MakeGraph, body: str, outputs: str = "", shape: str = "2,3,9") -> Graph:
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    arrays = {name: np.array(v, np.float32) for name, v in NUMBERS.items() if name in words}
    text = f"g (float[{shape}] x) => (float[{shape}] y{outputs}) {{ {body} }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@pytest.mark.parametrize("form", EXACT)
def test_forms_with_erf(make_graph: MakeGraph, check_rewrite: Check, form: str) -> None:
    graph = _graph(make_graph, EXACT[form])
    before = graph.to_bytes()
    after = fuse_gelu(graph)
    (node,) = after.nodes
    assert (node.op_type, dict(node.attributes)) == ("Gelu", {})
    assert graph.to_bytes() == before
    check_rewrite(graph, after, 2e-6)
    assert after.history[-1].details == {"fused": ["y"]}


@pytest.mark.parametrize("form", TANH)
def test_forms_with_tanh(make_graph: MakeGraph, check_rewrite: Check, form: str) -> None:
    body = TANH[form] + " t = Tanh(a) b = Add(t, one) h = Mul(x, half) y = Mul(h, b)"
    graph = _graph(make_graph, body)
    after = fuse_gelu(graph)
    (node,) = after.nodes
    assert (node.op_type, node.attributes["approximate"].as_string()) == ("Gelu", "tanh")
    check_rewrite(graph, after, 2e-6)


def test_behind_other_arithmetic(make_graph: MakeGraph, check_rewrite: Check) -> None:
    """What comes before is arithmetic too, and must not be taken for the GELU's own."""
    graph = _graph(make_graph, "z = Mul(x, half) " + re.sub(r"\bx\b", "z", EXACT["torch"]))
    after = fuse_gelu(graph)
    assert [n.op_type for n in after.nodes] == ["Mul", "Gelu"]
    check_rewrite(graph, after, 2e-6)


def test_stored_in_float16(make_graph: MakeGraph) -> None:
    """Constants that were rounded to float16 are still those of a GELU."""
    graph = _graph(make_graph, EXACT["torch"])
    value = graph.values()["root2"]
    value.const_value = ir.tensor(np.array(np.float16(math.sqrt(2)), np.float32), name="root2")
    assert [n.op_type for n in fuse_gelu(graph).nodes] == ["Gelu"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    factors=st.permutations(["x", "b", "half"]),
    swaps=st.lists(st.booleans(), min_size=4, max_size=4),
    constants=st.sampled_from([(0.5, 1.0), (0.25, 2.0), (0.5, 1.01), (0.7, 1.0), (-0.5, 1.0)]),
)
def test_only_what_is_a_gelu(
    make_graph: MakeGraph,
    check_rewrite: Check,
    factors: list[str],
    swaps: list[bool],
    constants: tuple[float, float],
) -> None:
    """Any order of operands is found; any other constant is not."""

    def two(op: str, first: str, second: str, swap: bool) -> str:
        return f"{op}({second}, {first})" if swap else f"{op}({first}, {second})"

    factor, stretch = constants
    body = f"""a = {two("Mul", "x", "inv", swaps[0])} t = Erf(a) u = Mul(t, stretch)
        b = {two("Add", "u", "stretch", swaps[1])} p = {two("Mul", factors[0], factors[1], swaps[2])}
        y = {two("Mul", "p", factors[2], swaps[3])}"""
    arrays = {"inv": math.sqrt(0.5), "half": factor, "stretch": stretch}
    text = f"g (float[2,9] x) => (float[2,9] y) {{ {body} }}"
    weights = {name: np.array(v, np.float32) for name, v in arrays.items()}
    graph = infer_shapes(name_nodes(make_graph(text, weights)))
    after = fuse_gelu(graph)
    assert ("Gelu" in [n.op_type for n in after.nodes]) == (abs(factor * stretch - 0.5) < 1e-4)
    check_rewrite(graph, after, 4e-6)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (EXACT["torch"], ", float[2,3,9] b", "'b'"),
        (EXACT["torch"] + " z = Neg(t)", ", float[2,3,9] z", "no GELU"),
        (EXACT["torch"] + " z = Neg(a)", ", float[2,3,9] z", "'a'"),
        ("y = Erf(x)", "", "no GELU"),
        ("a = Mul(x, c) t = Erf(a) b = Add(t, one) p = Mul(x, b) y = Mul(p, half)", "", "no GELU"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, body: str, outputs: str, reason: str) -> None:
    graph = _graph(make_graph, body, outputs)
    after = fuse_gelu(graph)
    assert [n.op_type for n in after.nodes] == [n.op_type for n in graph.nodes]
    assert reason in after.history[-1].refused[0].reason


def test_a_tanh_alone_is_nothing_to_report(make_graph: MakeGraph) -> None:
    after = fuse_gelu(_graph(make_graph, "y = Tanh(x)"))
    assert after.history[-1].refused == ()


def test_constants_that_broadcast_are_no_gelu(make_graph: MakeGraph) -> None:
    text = f"g (float[9] x) => (float[1,9] y) {{ {EXACT['torch']} }}"
    arrays = {n: np.array(NUMBERS[n], np.float32) for n in ("root2", "one")}
    graph = make_graph(text, {**arrays, "half": np.full((1, 1), 0.5, np.float32)})
    assert "Erf" in [n.op_type for n in fuse_gelu(infer_shapes(name_nodes(graph))).nodes]


@pytest.mark.parametrize(
    ("op", "bias", "ops"),
    [
        ("Gelu", False, ["Gelu"]),
        ("BiasGelu", True, ["Add", "Gelu"]),
        ("FastGelu", False, ["Gelu"]),
        ("FastGelu", True, ["Add", "Gelu"]),
        ("QuickGelu", False, ["Mul", "Sigmoid", "Mul"]),
    ],
)
def test_those_of_the_runtime(check_rewrite: Check, op: str, bias: bool, ops: list[str]) -> None:
    inputs = ["x", "b"] if bias else ["x"]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 9]) for n in "xy"]
    node = onnx.helper.make_node(op, inputs, ["y"], name="n", domain="com.microsoft")
    held = np.linspace(-1, 1, 9, dtype=np.float32)
    weights = [onnx.numpy_helper.from_array(held, "b")] if bias else []
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", values[:1], values[1:], weights),
        opset_imports=[onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    graph = Graph(ir.from_proto(model))
    after = fuse_gelu(graph)
    assert [n.op_type for n in after.nodes] == ops
    assert dict(after.model.opset_imports) == {"": 21}
    check_rewrite(graph, after, 2e-6)


@pytest.mark.parametrize("form", ["torch", "tanh"])
def test_it_trains(make_graph: MakeGraph, form: str) -> None:
    tanh = TANH["power"] + " t = Tanh(a) b = Add(t, one) h = Mul(x, half) y = Mul(h, b)"
    graph = _graph(make_graph, tanh if form == "tanh" else EXACT[form], shape="1,3,9")
    x: Any = np.random.default_rng(0).standard_normal((1, 3, 9)).astype(np.float32)
    expected = open_runner(graph, threads=1).run({"x": x})["y"]
    found = Executor(fuse_gelu(graph)).eval()({"x": torch.from_numpy(x)})["y"]
    assert np.abs(found.numpy() - expected).max() < 2e-6
