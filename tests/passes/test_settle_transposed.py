"""ConvTranspose loses dilations and groups, and keeps its numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.settle_transposed import settle_transposed, spread

MakeGraph = Callable[..., Graph]
Check = Callable[..., None]


def _graph(make: MakeGraph, attributes: str, shape: tuple[int, ...], bias: bool = True) -> Graph:
    random, group = np.random.default_rng(0), 2 if "group=2" in attributes else 1
    arrays = {"w": random.standard_normal(shape).astype(np.float32)}
    if bias:
        arrays["b"] = random.standard_normal(shape[1] * group).astype(np.float32)
    text = f"y = ConvTranspose <{attributes}> ({', '.join(['x', *arrays])})"
    return infer_shapes(name_nodes(make(f"g (float[1,4,5,4] x) => (float[m,n,o,p] y) {{ {text} }}", arrays)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_any(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    dilations, strides = ([data.draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    group = data.draw(st.sampled_from([1, 2]))
    more = data.draw(st.sampled_from(["", ", pads=[1,0,0,1]", ", kernel_shape=[2,3]"]))
    text = f"dilations={dilations}, strides={strides}, group={group}{more}"
    graph = _graph(make_graph, text, (4, 3, 2, 3), data.draw(st.booleans()))
    after = settle_transposed(graph)
    for node in after.nodes:
        if node.op_type == "ConvTranspose" and (max(dilations) > 1 or group > 1):
            assert "dilations" not in node.attributes
            assert node.attributes["group"].as_int() == 1
    check_rewrite(graph, after, 2e-5)
    assert settle_transposed(after).to_bytes() == after.to_bytes()


@pytest.mark.parametrize(
    ("attributes", "shape"), [("strides=[2,2]", (4, 3, 2, 2)), ("group=4, dilations=[1,1]", (4, 1, 2, 2))]
)
def test_what_stays(make_graph: MakeGraph, attributes: str, shape: tuple[int, ...]) -> None:
    graph = _graph(make_graph, attributes, shape, bias=False)
    assert settle_transposed(graph).to_bytes() == graph.to_bytes()


def test_computed_weights_stay(make_graph: MakeGraph) -> None:
    text = "y = ConvTranspose <dilations=[2,2]> (x, w)"
    graph = make_graph(f"g (float[1,4,5,4] x, float[4,3,2,2] w) => (float[m,n,o,p] y) {{ {text} }}")
    after = settle_transposed(infer_shapes(name_nodes(graph)))
    assert "computed" in after.history[-1].refused[0].reason


def test_spread() -> None:
    found = spread(np.arange(1, 5).reshape(1, 1, 2, 2), (2, 1))
    np.testing.assert_array_equal(found[0, 0], [[1, 2], [0, 0], [3, 4]])
