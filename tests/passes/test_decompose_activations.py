"""Activations without kernels become those that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.decompose_activations import decompose_activations
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]
OPS = ("Mish", "Softsign", "Celu", "Selu", "ThresholdedRelu", "PRelu", "Reciprocal")


def _graph(make: MakeGraph, text: str, **arrays: Any) -> Graph:
    body = f"g (float[2,3,4,5] x) => (float[2,3,4,5] y) {{ y = {text} }}"
    return infer_shapes(name_nodes(make(body, {k: np.asarray(v, np.float32) for k, v in arrays.items()})))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(alpha=st.floats(0.25, 3), gamma=st.floats(0.5, 2))
def test_with_any_parameters(make_graph: MakeGraph, check_rewrite: Check, alpha: float, gamma: float) -> None:
    texts = {
        f"Celu <alpha={alpha:.6f}> (x)": ["Mul", "Elu", "Mul"],
        f"Selu <alpha={alpha:.6f}, gamma={gamma:.6f}> (x)": ["Elu", "Mul"],
        f"ThresholdedRelu <alpha={alpha:.6f}> (x)": ["Greater", "Where"],
    }
    for text, ops in texts.items():
        graph = _graph(make_graph, text)
        after = decompose_activations(graph, OPS)
        assert [n.op_type for n in after.nodes] == ops or alpha == 1.0
        check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("Mish(x)", ["Softplus", "Tanh", "Mul"]),
        ("Softsign(x)", ["Abs", "Add", "Div"]),
        ("Celu(x)", ["Elu"]),
        ("Selu(x)", ["Elu", "Mul"]),
        ("ThresholdedRelu(x)", ["Greater", "Where"]),
        ("Reciprocal(x)", ["Div"]),
    ],
)
def test_with_their_defaults(make_graph: MakeGraph, check_rewrite: Check, text: str, ops: list[str]) -> None:
    graph = _graph(make_graph, text)
    before = graph.to_bytes()
    after = decompose_activations(graph, OPS)
    assert [n.op_type for n in after.nodes] == ops
    check_rewrite(graph, after)
    assert decompose_activations(after, OPS).to_bytes() == after.to_bytes()
    assert graph.to_bytes() == before


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (5,), (3, 4, 5)])
def test_slopes_of_their_own(make_graph: MakeGraph, check_rewrite: Check, shape: tuple[int, ...]) -> None:
    graph = _graph(make_graph, "PRelu(x, s)", s=np.random.default_rng(0).standard_normal(shape))
    after = decompose_activations(graph, ["PRelu"])
    assert [n.op_type for n in after.nodes] == ["Clip", "Mul", "Relu", "Add"]
    check_rewrite(graph, after)


def test_what_stays(make_graph: MakeGraph) -> None:
    for graph in (_graph(make_graph, "PRelu(x, s)", s=[0.1]), _graph(make_graph, "Elu(x)")):
        assert decompose_activations(graph, OPS).to_bytes() == graph.to_bytes()
    selu = _graph(make_graph, "Selu(x)")
    assert decompose_activations(selu, ["Mish"]).to_bytes() == selu.to_bytes()
    with pytest.raises(UsageError, match="'Gelu'"):
        decompose_activations(selu, ["Gelu"])
