"""AveragePool loses the attributes that kernels read differently, and keeps its numbers."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.settle_pools import settle_pools

MakeGraph = Callable[..., Graph]
Check = Callable[..., None]


def _pool(make: MakeGraph, attributes: str) -> Graph:
    text = f"g (float[1,3,9,8] x) => (float[a,b,c,d] y) {{ y = AveragePool <{attributes}> (x) }}"
    return infer_shapes(name_nodes(make(text)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(data=st.data())
def test_rounded_up(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    kernel, strides = ([data.draw(st.integers(1, 4)) for _ in range(2)] for _ in range(2))
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    counted = data.draw(st.integers(0, 1))
    text = f"kernel_shape={kernel}, strides={strides}, pads={pads}, count_include_pad={counted}, ceil_mode=1"
    graph = _pool(make_graph, text)
    after = settle_pools(graph)
    if after.history[-1].refused:
        return
    pool = next(n for n in after.nodes if n.op_type == "AveragePool")
    assert "ceil_mode" not in pool.attributes
    check_rewrite(graph, after)
    assert settle_pools(after).to_bytes() == after.to_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(data=st.data())
def test_dilated(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    kernel, strides, dilations = ([data.draw(st.integers(1, 3)) for _ in range(2)] for _ in range(3))
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    counted = data.draw(st.booleans())
    assume(max(dilations) > 1)
    text = f"kernel_shape={kernel}, strides={strides}, dilations={dilations}, pads={pads}"
    try:
        graph = _pool(make_graph, f"{text}, count_include_pad={int(counted)}")
    except ModelError:
        return
    after = settle_pools(graph)
    if any(pads) and not counted:
        assert "padding does not count" in after.history[-1].refused[0].reason
        return
    assert [n.op_type for n in after.nodes] == ["Conv"]
    check_rewrite(graph, after)


def test_auto_pad(make_graph: MakeGraph, check_rewrite: Check) -> None:
    graph = _pool(make_graph, 'kernel_shape=[2,3], dilations=[2,1], auto_pad="VALID"')
    check_rewrite(graph, settle_pools(graph))
    graph = _pool(make_graph, 'kernel_shape=[2,3], strides=[2,2], auto_pad="SAME_LOWER"')
    assert settle_pools(graph).to_bytes() == graph.to_bytes()
