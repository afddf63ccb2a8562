"""Every way of writing a HardSwish becomes one node."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgekit.graph import Graph
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import open_runner
from edgekit.train.executor import Executor

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]

NUMBERS = {"zero": 0, "three": 3, "six": 6, "sixth": 1 / 6, "half": 0.5, "one": 1, "two": 2, "low": -1}

FORMS = {
    "torch": "a = Add(x, three) t = Clip(a, zero, six) p = Mul(x, t) y = Div(p, six)",
    "gate": "a = Add(three, x) t = Clip(a, zero, six) g = Div(t, six) y = Mul(g, x)",
    "tf": "a = Add(x, three) t = Clip(a, zero, six) g = Mul(t, sixth) y = Mul(x, g)",
    "unit": "u = Mul(x, sixth) a = Add(u, half) t = Clip(a, zero, one) y = Mul(x, t)",
    "operator": "t = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(t, x)",
}


def _graph(make: MakeGraph, body: str, outputs: str = "") -> Graph:
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    arrays = {name: np.array(v, np.float32) for name, v in NUMBERS.items() if name in words}
    text = f"g (float[1,5,16] x) => (float[1,5,16] y{outputs}) {{ {body} }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@pytest.mark.parametrize("form", FORMS)
def test_forms(make_graph: MakeGraph, check_rewrite: Check, form: str) -> None:
    graph = _graph(make_graph, "v = Mul(x, three) " + re.sub(r"\bx\b", "v", FORMS[form]))
    before = graph.to_bytes()
    after = fuse_hard_swish(graph)
    assert [n.op_type for n in after.nodes] == ["Mul", "HardSwish"]
    assert graph.to_bytes() == before
    assert after.history[-1].details == {"fused": ["y"]}
    check_rewrite(graph, after, 2e-6)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, two) t = Clip(a, zero, six) p = Mul(x, t) y = Div(p, six)",
        "a = Add(x, three) t = Clip(a, low, six) p = Mul(x, t) y = Div(p, six)",
        "a = Add(x, three) t = Clip(a, zero, six) p = Mul(x, t) y = Div(p, three)",
        "a = Add(x, three) t = Clip(a, zero, six) p = Mul(a, t) y = Div(p, six)",
        "t = HardSigmoid(x) y = Mul(t, x)",
        "y = Clip(x, zero, six)",
    ],
)
def test_other_arithmetic_is_none(make_graph: MakeGraph, body: str) -> None:
    after = fuse_hard_swish(_graph(make_graph, body))
    assert "HardSwish" not in [n.op_type for n in after.nodes]
    assert after.history[-1].refused == ()


def test_an_inner_tensor_that_is_read_elsewhere(make_graph: MakeGraph) -> None:
    after = fuse_hard_swish(_graph(make_graph, FORMS["gate"] + " z = Neg(a)", ", float[1,5,16] z"))
    assert "HardSwish" not in [n.op_type for n in after.nodes]
    assert "'a'" in after.history[-1].refused[0].reason


def test_it_trains(make_graph: MakeGraph) -> None:
    graph = _graph(make_graph, FORMS["torch"])
    x = 4 * np.random.default_rng(0).standard_normal((1, 5, 16)).astype(np.float32)
    expected = open_runner(graph, threads=1).run({"x": x})["y"]
    found = Executor(fuse_hard_swish(graph)).eval()({"x": torch.from_numpy(x)})["y"]
    assert np.abs(found.numpy() - expected).max() < 2e-6
