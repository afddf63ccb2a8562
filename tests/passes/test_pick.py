"""Places along an axis are taken with as few and as cheap operators as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Change, Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.pick import pick, runs
from edgekit.passes.subgraph import Rewriter
from edgekit.session import open_runner

MakeGraph = Callable[..., Graph]


def _picked(make: MakeGraph, axis: int, indices: Sequence[int]) -> Graph:
    graph = infer_shapes(name_nodes(make("g (float[2,9,7] x) => (float[a,b,c] y) { y = Relu(x) }")))
    result = graph.copy()
    node = next(iter(result.nodes))
    build = Rewriter(result.model).before(node, "p")
    source = node.inputs[0]
    assert source is not None
    node.replace_input_with(0, pick(build, source, axis, indices))
    # The shape of the result follows what is picked.
    node.outputs[0].shape = None
    return infer_shapes(result).with_change(Change("pick", ""))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_any_indices(make_graph: MakeGraph, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 2))
    size = (2, 9, 7)[axis]
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=14))
    graph = _picked(make_graph, axis, indices)
    x = np.random.default_rng(0).standard_normal((2, 9, 7)).astype(np.float32)
    found = open_runner(graph, threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(found, np.maximum(np.take(x, indices, axis), 0))


@pytest.mark.parametrize(
    ("indices", "ops"),
    [
        (range(9), []),
        (range(1, 8), ["Slice"]),
        (range(0, 9, 3), ["Slice"]),
        ([4], ["Slice"]),
        ([0, 1, 0, 1, 2, 3], ["Slice", "Slice", "Concat"]),
        ([0, 0, 1, 1, 2, 2, 3, 3], ["Gather"]),
    ],
)
def test_the_operators(make_graph: MakeGraph, indices: Sequence[int], ops: list[str]) -> None:
    assert [n.op_type for n in _picked(make_graph, 1, indices).nodes] == [*ops, "Relu"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_runs_are_the_sequence(indices: list[int]) -> None:
    assert [i for run in runs(indices) for i in run] == indices
    assert all(run.step > 0 for run in runs(indices))
