"""Normalizations over several axes or groups become the one form that an NPU has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.reshape_norms import reshape_norms

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]
IMAGE = "float[1,6,4,5] x"


def _graph(make: MakeGraph, text: str, inputs: str = IMAGE, more: str = "", **shapes: Any) -> Graph:
    random = np.random.default_rng(0)
    arrays = {name: 1 + random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    output = f"{inputs.split()[0]} y{more}"
    return infer_shapes(name_nodes(make(f"g ({inputs}) => ({output}) {{ {text} }}", arrays)))


def _ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes]


@pytest.mark.parametrize("axis", [1, 2, -2, -3])
@pytest.mark.parametrize("beta", [True, False])
def test_layer_norm_over_several_axes(
    make_graph: MakeGraph, check_rewrite: Check, axis: int, beta: bool
) -> None:
    shape = (1, 6, 4, 5)[axis:]
    arrays: dict[str, Any] = {"g": shape} | ({"b": shape} if beta else {})
    names = ", ".join(["x", *arrays])
    graph = _graph(make_graph, f"y = LayerNormalization <axis={axis}, epsilon=0.01> ({names})", **arrays)
    after = reshape_norms(graph)
    assert _ops(after) == ["Reshape", "LayerNormalization", "Reshape"]
    check_rewrite(graph, after)
    assert reshape_norms(after).to_bytes() == after.to_bytes()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("inputs", [IMAGE, "float[1,6,7] x", "float[1,6,2,3,4] x"])
def test_group_norm(make_graph: MakeGraph, check_rewrite: Check, groups: int, inputs: str) -> None:
    text = f"y = GroupNormalization <num_groups={groups}, epsilon=0.01> (x, g, b)"
    graph = _graph(make_graph, text, inputs, g=(6,), b=(6,))
    after = reshape_norms(graph)
    assert "InstanceNormalization" in _ops(after)
    assert "GroupNormalization" not in _ops(after)
    assert _ops(after)[-2:] == ["Mul", "Add"]
    check_rewrite(graph, after, 2e-5)


@pytest.mark.parametrize("axes", ["", "<axes=[0,2,3]>", "<axes=[2,3]>", "<axes=[-1,-2]>"])
def test_mean_variance(make_graph: MakeGraph, check_rewrite: Check, axes: str) -> None:
    graph = _graph(make_graph, f"y = MeanVarianceNormalization {axes} (x)")
    after = reshape_norms(graph)
    assert _ops(after) == ["InstanceNormalization"]
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("text", "inputs", "more", "shapes", "reason"),
    [
        ("y = MeanVarianceNormalization <axes=[1]> (x)", IMAGE, "", {}, "all pixels"),
        ("y = LayerNormalization <axis=2> (x, g)", f"{IMAGE}, float[4,5] g", "", {}, "computed"),
        ("y, m = LayerNormalization <axis=2> (x, g)", IMAGE, ", float[1,6,1,1] m", {"g": (4, 5)}, "'m'"),
    ],
)
def test_what_stays_and_why(
    make_graph: MakeGraph, text: str, inputs: str, more: str, shapes: dict[str, Any], reason: str
) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    graph = make_graph(f"g ({inputs}) => (float[1,6,4,5] y{more}) {{ {text} }}", arrays)
    graph = infer_shapes(name_nodes(graph))
    after = reshape_norms(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason


def test_the_plain_form_stays(make_graph: MakeGraph) -> None:
    graph = _graph(make_graph, "y = LayerNormalization (x, g)", g=(5,))
    assert reshape_norms(graph).to_bytes() == graph.to_bytes()
    assert not reshape_norms(graph).history[-1].refused
