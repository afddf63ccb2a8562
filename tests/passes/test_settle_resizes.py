"""A nearest-neighbour Resize of any mode becomes one that kernels agree on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.settle_resizes import settle_resizes

MakeGraph = Callable[..., Graph]
Check = Callable[..., None]
COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def _resize(
    make: MakeGraph,
    coordinates: str,
    rounding: str,
    scales: list[float] | None,
    sizes: list[int] | None = None,
) -> Graph:
    modes = f'coordinate_transformation_mode="{coordinates}", nearest_mode="{rounding}"'
    arrays = {"s": np.array(scales, np.float32)} if scales else {"s": np.array(sizes)}
    where = "x, , s" if scales else "x, , , s"
    text = f"g (float[1,2,6,5] x) => (float[a,b,c,d] y) {{ y = Resize <{modes}> ({where}) }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    coordinates=st.sampled_from(COORDINATES),
    rounding=st.sampled_from(ROUNDINGS),
    scales=st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 1.3]), min_size=2, max_size=2),
)
def test_by_scales(
    make_graph: MakeGraph, check_rewrite: Check, coordinates: str, rounding: str, scales: list[float]
) -> None:
    graph = _resize(make_graph, coordinates, rounding, [1.0, 1.0, *scales])
    after = settle_resizes(graph)
    for node in after.nodes:
        if node.op_type == "Resize":
            assert node.attributes["coordinate_transformation_mode"].as_string() == "asymmetric"
            assert node.attributes["nearest_mode"].as_string() == "floor"
    check_rewrite(graph, after, 0.0)


@pytest.mark.parametrize(("coordinates", "rounding"), list(product(COORDINATES, ROUNDINGS)))
def test_by_sizes(make_graph: MakeGraph, check_rewrite: Check, coordinates: str, rounding: str) -> None:
    for sizes in ([1, 2, 9, 10], [1, 2, 3, 1], [1, 2, 12, 7]):
        graph = _resize(make_graph, coordinates, rounding, None, sizes)
        check_rewrite(graph, settle_resizes(graph), 0.0)


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel"])
@pytest.mark.parametrize("factor", [2.0, 3.0, 4.0])
def test_a_whole_factor_stays_one_operator(make_graph: MakeGraph, coordinates: str, factor: float) -> None:
    graph = _resize(make_graph, coordinates, "round_prefer_floor", [1.0, 1.0, factor, factor])
    before = graph.to_bytes()
    assert [n.op_type for n in settle_resizes(graph).nodes] == ["Resize"]
    assert graph.to_bytes() == before


def test_what_stays(make_graph: MakeGraph) -> None:
    plain = _resize(make_graph, "asymmetric", "floor", [1.0, 1.0, 1.5, 2.0])
    assert settle_resizes(plain).to_bytes() == plain.to_bytes()
    other = _resize(make_graph, "half_pixel_symmetric", "floor", [1.0, 1.0, 1.5, 2.0])
    after = settle_resizes(other)
    assert after.to_bytes() == other.to_bytes()
    assert "half_pixel_symmetric" in after.history[-1].refused[0].reason
