"""Rare reductions become sums, squares, roots and means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.decompose_reductions import decompose_reductions
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]
OPS = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    op=st.sampled_from(OPS),
    axes=st.sampled_from([[0], [1], [-1], [1, 2], [0, 1, 2], None]),
    keep=st.booleans(),
)
def test_over_any_axes(
    make_graph: MakeGraph, check_rewrite: Check, op: str, axes: list[int] | None, keep: bool
) -> None:
    arrays = {} if axes is None else {"a": np.array(axes)}
    count = 3 if axes is None else len(axes)
    shape = ",".join("abc"[: 3 if keep else 3 - count])
    inputs = "e" if axes is None else "e, a"
    text = (
        f"g (float[2,3,4] x) => (float[{shape}] y) {{ e = Exp(x) y = {op}<keepdims={int(keep)}>({inputs}) }}"
    )
    graph = infer_shapes(name_nodes(make_graph(text, arrays)))
    after = decompose_reductions(graph)
    assert op not in {n.op_type for n in after.nodes}
    check_rewrite(graph, after, 1e-4)
    assert decompose_reductions(after).to_bytes() == after.to_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "LpPool <kernel_shape=[2,2], strides=[2,2]> (x)",
        "LpPool <kernel_shape=[3,2], p=1, pads=[1,0,1,1]> (x)",
        'LpPool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)',
        "LpPool <kernel_shape=[2,2], dilations=[2,1]> (x)",
        "GlobalLpPool (x)",
        "GlobalLpPool <p=1> (x)",
    ],
)
def test_pools(make_graph: MakeGraph, check_rewrite: Check, text: str) -> None:
    graph = infer_shapes(
        name_nodes(make_graph(f"g (float[1,3,6,7] x) => (float[a,b,c,d] y) {{ y = {text} }}"))
    )
    after = decompose_reductions(graph)
    assert not {"LpPool", "GlobalLpPool"} & {n.op_type for n in after.nodes}
    check_rewrite(graph, after, 1e-4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = LpPool <kernel_shape=[2,2], p=3> (x)", "neither 1 nor 2"),
        ("y = LpPool <kernel_shape=[2,2], strides=[2,2], ceil_mode=1> (x)", "cut off"),
        ("y = ReduceL2 <noop_with_empty_axes=1> (x)", "nothing"),
    ],
)
def test_what_stays_and_why(make_graph: MakeGraph, text: str, reason: str) -> None:
    graph = infer_shapes(name_nodes(make_graph(f"g (float[1,3,5,5] x) => (float[a,b,c,d] y) {{ {text} }}")))
    after = decompose_reductions(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason


def test_integers_stay(make_graph: MakeGraph) -> None:
    text = "g (int64[4,2] x) => (int64[a,b] y) { y = ReduceL1(x) }"
    graph = infer_shapes(name_nodes(make_graph(text)))
    assert decompose_reductions(graph).to_bytes() == graph.to_bytes()
