"""HardSigmoid becomes sums, bounds and products."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.graph import Graph
from edgekit.passes.decompose_hard_sigmoid import decompose_hard_sigmoid
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes


@pytest.mark.parametrize(
    ("attributes", "ops"),
    [
        ("<alpha=0.16666667, beta=0.5>", ["Add", "Clip", "Mul"]),
        ("", ["Mul", "Add", "Clip"]),
        ("<alpha=0.3, beta=0.1>", ["Mul", "Add", "Clip"]),
    ],
)
def test_the_same(
    make_graph: Callable[..., Graph], check_rewrite: Callable[..., None], attributes: str, ops: list[str]
) -> None:
    text = f"g (float[2,40] x) => (float[2,40] y) {{ v = Mul(x, x) y = HardSigmoid{attributes}(v) }}"
    graph = infer_shapes(name_nodes(make_graph(text)))
    before = graph.to_bytes()
    after = decompose_hard_sigmoid(graph)
    assert [n.op_type for n in after.nodes] == ["Mul", *ops]
    assert after.history[-1].details == {"rewritten": {"HardSigmoid": 1}}
    assert graph.to_bytes() == before
    check_rewrite(graph, after, 1e-6)
