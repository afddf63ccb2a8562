"""A dilated MaxPool becomes maxima of slices that hold the very same numbers."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.decompose_max_pool import decompose_max_pool
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _pool(make: MakeGraph, attributes: str, sizes: str = "9,8", outputs: str = "float[a,b,c,d] y") -> Graph:
    names = "y" if "i" not in outputs.split()[-1] else "y, i"
    text = f"g (float[1,3,{sizes}] x) => ({outputs}) {{ {names} = MaxPool <{attributes}> (x) }}"
    return infer_shapes(name_nodes(make(text)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_any_window(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(2)]

    kernel, strides, dilations = pair(1, 3), pair(1, 3), pair(1, 3)
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    assume(max(dilations) > 1)
    ceil = data.draw(st.booleans())
    attributes = f"kernel_shape={kernel}, strides={strides}, dilations={dilations}, pads={pads}"
    try:
        graph = _pool(make_graph, f"{attributes}, ceil_mode={int(ceil)}")
    except ModelError:
        return
    after = decompose_max_pool(graph)
    if after.history[-1].refused:
        assert "padding" in after.history[-1].refused[0].reason
        return
    assert "MaxPool" not in {n.op_type for n in after.nodes}
    check_rewrite(graph, after, 0.0)
    assert decompose_max_pool(after).to_bytes() == after.to_bytes()


def test_auto_pad(make_graph: MakeGraph, check_rewrite: Check) -> None:
    graph = _pool(make_graph, 'kernel_shape=[3,2], dilations=[2,3], auto_pad="VALID"')
    check_rewrite(graph, decompose_max_pool(graph), 0.0)
    # Runtimes do not agree on what this is.
    graph = _pool(make_graph, 'kernel_shape=[3,2], dilations=[2,3], auto_pad="SAME_UPPER"')
    assert "auto_pad" in decompose_max_pool(graph).history[-1].refused[0].reason


def test_a_volume(make_graph: MakeGraph, check_rewrite: Check) -> None:
    graph = _pool(make_graph, "kernel_shape=[2,2,2], strides=[2,2,1]", "4,4,5", "float[a,b,c,d,e] y")
    after = decompose_max_pool(graph)
    assert {n.op_type for n in after.nodes} == {"Slice", "Max"}
    check_rewrite(graph, after, 0.0)


def test_what_stays(make_graph: MakeGraph) -> None:
    plain = _pool(make_graph, "kernel_shape=[3,3]")
    after = decompose_max_pool(plain)
    assert after.to_bytes() == plain.to_bytes()
    assert not after.history[-1].refused
    outputs = "float[1,3,5,4] y, int64[1,3,5,4] i"
    read = _pool(make_graph, "kernel_shape=[3,3], dilations=[2,2]", outputs=outputs)
    after = decompose_max_pool(read)
    assert after.to_bytes() == read.to_bytes()
    assert "places of its maxima" in after.history[-1].refused[0].reason
