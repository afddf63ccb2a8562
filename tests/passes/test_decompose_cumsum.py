"""A cumulative sum becomes a product with a triangle of ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.decompose_cumsum import LONGEST, decompose_cumsum
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(axis=st.integers(-3, 2), exclusive=st.booleans(), reverse=st.booleans())
def test_every_direction(
    make_graph: MakeGraph, check_rewrite: Check, axis: int, exclusive: bool, reverse: bool
) -> None:
    attributes = f"exclusive={int(exclusive)}, reverse={int(reverse)}"
    text = f"g (float[2,3,5] x) => (float[2,3,5] y) {{ y = CumSum <{attributes}> (x, a) }}"
    graph = infer_shapes(name_nodes(make_graph(text, {"a": np.array(axis)})))
    after = decompose_cumsum(graph)
    swaps = 0 if axis in (-1, 2) else 2
    assert [n.op_type for n in after.nodes].count("Transpose") == swaps
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("inputs", "arrays", "reason"),
    [
        (f"float[{LONGEST + 1}] x", {"a": np.array(0)}, f"adds up {LONGEST + 1}"),
        ("int64[4] x", {"a": np.array(0)}, "integers"),
        ("float[4] x, int64[] a", {}, "computed"),
    ],
)
def test_what_stays_and_why(
    make_graph: MakeGraph,
    inputs: str,
    arrays: dict[str, np.ndarray[tuple[()], np.dtype[np.int64]]],
    reason: str,
) -> None:
    kind = inputs.split()[0]
    graph = infer_shapes(name_nodes(make_graph(f"g ({inputs}) => ({kind} y) {{ y = CumSum(x, a) }}", arrays)))
    after = decompose_cumsum(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason
