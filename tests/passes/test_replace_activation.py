"""Activations are replaced where asked for, and only there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.replace_activation import REPLACEMENTS, replace_activations
from edgekit.session import open_runner

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]

FORMS = {
    "silu": "s = Sigmoid(v) y = Mul(v, s)",
    "gelu": "y = Gelu(v)",
    "gelu_tanh": 'y = Gelu<approximate="tanh">(v)',
    "mish": "y = Mish(v)",
    "hard_swish": "y = HardSwish(v)",
    "elu": "y = Elu(v)",
    "leaky_relu": "y = LeakyRelu(v)",
    "relu6": "y = Clip(v, zero, six)",
    "relu": "y = Relu(v)",
    "sigmoid": "y = Sigmoid(v)",
    "hard_sigmoid": "y = HardSigmoid<alpha=0.16666667, beta=0.5>(v)",
}


def _graph(make: MakeGraph, body: str, outputs: str = "") -> Graph:
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    arrays = {n: np.array(v, np.float32) for n, v in {"zero": 0, "six": 6}.items() if n in words}
    text = f"g (float[1,5,16] x) => (float[1,5,16] y{outputs}) {{ v = Neg(x) {body} }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@pytest.mark.parametrize(("from_", "to"), [(a, b) for a, others in REPLACEMENTS.items() for b in others])
def test_every_pair(make_graph: MakeGraph, check_rewrite: Check, from_: str, to: str) -> None:
    graph = _graph(make_graph, FORMS[from_])
    before = graph.to_bytes()
    after = replace_activations(graph, from_, to)
    check_rewrite(_graph(make_graph, FORMS[to]), after, 1e-6)
    assert graph.to_bytes() == before
    change = after.history[-1]
    assert change.details["from"] == from_
    assert change.details["to"] == to
    assert [r["output"] for r in change.details["replaced"]] == ["y"]


@pytest.mark.parametrize("from_", FORMS)
def test_other_kinds_stay(make_graph: MakeGraph, from_: str) -> None:
    graph = _graph(make_graph, FORMS[from_])
    for kind, others in REPLACEMENTS.items():
        if kind != from_:
            after = replace_activations(graph, kind, others[0])
            assert after.to_bytes() == graph.to_bytes()
            assert after.history[-1].details["replaced"] == []


@pytest.mark.parametrize("chosen", ["product", "gate"])
def test_named_nodes_alone(make_graph: MakeGraph, chosen: str) -> None:
    graph = _graph(make_graph, "s = Sigmoid(v) w = Mul(v, s) u = Sigmoid(w) y = Mul(u, w)")
    first = [n for n in graph.nodes if n.outputs[0].name == {"product": "w", "gate": "s"}[chosen]]
    after = replace_activations(graph, "silu", "hard_swish", [str(first[0].name)])
    assert [n.op_type for n in after.nodes] == ["Neg", "HardSwish", "Sigmoid", "Mul"]
    assert [r.reason for r in after.history[-1].refused] == ["it is not among the named nodes"]
    x = {"x": np.linspace(-8, 8, 80, dtype=np.float32).reshape(1, 5, 16)}
    v = -x["x"]
    hard = v * np.clip(v / 6 + 0.5, 0, 1)
    found = open_runner(after, threads=1).run(x)["y"]
    assert np.abs(found - hard / (1 + np.exp(-hard))).max() < 1e-5


def test_a_sigmoid_that_others_read_stays(make_graph: MakeGraph) -> None:
    graph = _graph(make_graph, FORMS["silu"] + " z = Neg(s)", ", float[1,5,16] z")
    after = replace_activations(graph, "silu", "relu")
    assert sorted(n.op_type for n in after.nodes) == ["Neg", "Neg", "Relu", "Sigmoid"]


def test_an_elu_of_another_alpha_is_left_alone(make_graph: MakeGraph) -> None:
    after = replace_activations(_graph(make_graph, "y = Elu<alpha=0.3>(v)"), "elu", "relu")
    assert [n.op_type for n in after.nodes] == ["Neg", "Elu"]


@pytest.mark.parametrize(
    ("from_", "to", "nodes", "message"),
    [
        ("tanh", "relu", None, "valid: silu, gelu"),
        ("silu", "tanh", None, "valid: hard_swish, relu6, relu"),
        ("silu", "relu", ["Neg_v"], "node 'Neg_v'"),
        ("silu", "relu", ["nothing"], "valid: Mul_y"),
        ("gelu", "relu", ["Mul_y"], "none in this network"),
    ],
)
def test_refusals(make_graph: MakeGraph, from_: str, to: str, nodes: list[str] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace_activations(_graph(make_graph, FORMS["silu"]), from_, to, nodes)
