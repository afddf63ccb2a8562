from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.graph import Graph
from edgekit.passes.remove_zero_bias import remove_zero_bias
from edgekit.passes.verify import max_difference


def test_only_zeros_before_a_normalization_go(
    make_graph: Callable[..., Graph], weights: Callable[..., np.ndarray[Any, Any]]
) -> None:
    norm = {"g": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 1}
    graph = make_graph(
        """net (float[1,2,3,3] x) => (float[1,4,3,3] y) {
            a = Conv(x, w, zero)  n = BatchNormalization(a, g, b, m, v)
            c = Conv(n, u, real)  o = BatchNormalization(c, g, b, m, v)
            y = Conv(o, u, zero)
        }""",
        {
            "w": weights(4, 2, 1, 1),
            "u": weights(4, 4, 1, 1),
            "zero": weights(4) * 0,
            "real": weights(4),
            **norm,
        },
    )
    result = remove_zero_bias(graph)
    assert [node.inputs[2] is None for node in result.nodes if node.op_type == "Conv"] == [True, False, False]
    assert "zero" in result.model.graph.initializers
    assert result.history[-1].summary == "removed 1 biases of nothing but zeros"
    assert max_difference(graph, result) < 1e-5
