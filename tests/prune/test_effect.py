"""Distance of outputs from the original's."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.graph import Graph
from edgekit.passes.edit import set_constant
from edgekit.prune.effect import Effect

Feeds = list[dict[str, np.ndarray[Any, Any]]]


def _shifted(graph: Graph, by: float) -> Graph:
    result = graph.copy()
    bias = result.model.graph.initializers["head.bias"]
    assert bias.const_value is not None
    set_constant(bias, (bias.const_value.numpy() + np.arange(5) * by).astype(np.float32))
    return result


def test_the_same_graph_is_at_no_distance_and_more_change_is_further(net: Graph, feeds: Feeds) -> None:
    effect = Effect(net, feeds, threads=1)
    assert effect.distance(net) == 0.0
    assert 0.0 < effect.distance(_shifted(net, 0.01)) < effect.distance(_shifted(net, 0.1))


def test_outputs_that_are_not_finite_are_infinitely_far(net: Graph, feeds: Feeds) -> None:
    assert Effect(net, feeds, threads=1).distance(_shifted(net, float("nan"))) == float("inf")
