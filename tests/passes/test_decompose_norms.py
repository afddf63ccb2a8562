"""Instance and group normalization become primitives that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.decompose_layernorm import Squares
from edgekit.passes.decompose_norms import decompose_norms
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]


def _graph(make: MakeGraph, op: str, shape: tuple[int, ...]) -> Graph:
    random = np.random.default_rng(len(shape))
    held: dict[str, Any] = {n: random.uniform(0.5, 2, shape[1]).astype(np.float32) for n in "gb"}
    dims = ",".join(map(str, shape))
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ y = {op}(x, g, b) }}"
    return infer_shapes(name_nodes(make(text, held)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    groups=st.integers(1, 3),
    wide=st.integers(1, 3),
    pixels=st.lists(st.integers(2, 5), min_size=1, max_size=2).map(tuple),
    instance=st.booleans(),
    squares=st.sampled_from(list(Squares)),
)
def test_the_same_for_any_shape(
    make_graph: MakeGraph,
    check_rewrite: Check,
    groups: int,
    wide: int,
    pixels: tuple[int, ...],
    instance: bool,
    squares: Squares,
) -> None:
    op = "InstanceNormalization" if instance else f"GroupNormalization<num_groups={groups}, epsilon=0.001>"
    graph = _graph(make_graph, op, (1, groups * wide, *pixels))
    before = graph.to_bytes()
    after = decompose_norms(graph, squares=squares)
    assert not any(n.op_type.endswith("Normalization") for n in after.nodes)
    assert graph.to_bytes() == before
    check_rewrite(graph, after, 1e-4)


def test_computed_parameters_stay(make_graph: MakeGraph) -> None:
    text = """g (float[1,4,5] x, float[4] g, float[4] b) => (float[1,4,5] y) {
        y = InstanceNormalization(x, g, b) }"""
    after = decompose_norms(infer_shapes(name_nodes(make_graph(text))))
    assert [n.op_type for n in after.nodes] == ["InstanceNormalization"]
    assert "computed" in after.history[-1].refused[0].reason


def test_an_unknown_form_is_refused(make_graph: MakeGraph) -> None:
    with pytest.raises(UsageError, match="mean, dot"):
        decompose_norms(
            _graph(make_graph, "InstanceNormalization", (1, 4, 5)),
            squares="sum",  # type: ignore[arg-type]
        )
