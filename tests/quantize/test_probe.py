"""Reductions inside the session, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.quantize.probe import Probe, channel_axis, channel_means

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(("rank", "axis"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 1), (5, 1)])
def test_where_the_channels_are(rank: int, axis: int) -> None:
    assert channel_axis(rank) == axis


@pytest.mark.parametrize("seed", range(6))
def test_means_of_all_tensors(
    seed: int,
    random_net: Callable[[int], Graph],
    samples: Callable[..., list[dict[str, Array]]],
    values: Callable[..., dict[str, Array]],
) -> None:
    graph = random_net(seed)
    feeds = samples(graph, 5, seed)
    expected = values(graph, feeds)
    found = channel_means(graph, list(expected), feeds, threads=2)
    assert list(found) == list(expected)
    for name, stacked in expected.items():
        axis = channel_axis(stacked.ndim - 1) + 1
        mean = stacked.astype(np.float64).mean(axis=tuple(a for a in range(stacked.ndim) if a != axis))
        np.testing.assert_allclose(found[name], mean, rtol=1e-4, atol=1e-5, err_msg=name)


def test_nothing_asked_nothing_run(build: Callable[..., Graph]) -> None:
    graph = build("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    assert channel_means(graph, [], iter(())) == {}


def test_the_graph_is_not_touched(build: Callable[..., Graph]) -> None:
    graph = build("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    before = graph.sha256()
    channel_means(graph, ["y"], [{"x": np.ones((1, 4), np.float32)}])
    assert graph.sha256() == before


def test_an_unknown_shape_is_named(build: Callable[..., Graph]) -> None:
    graph = build("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="tensor 'y'"):
        Probe(graph).shape("y")
