"""Masks that are computed from integers become a choice between two numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.masks_to_where import masks_to_where
from edgekit.passes.name_nodes import name_nodes
from edgekit.session import open_runner

MakeGraph = Callable[..., Graph]
MINUS = "f = Cast <to=1> (k) i = Sub(one, f) "


def _graph(make: MakeGraph, body: str, kind: str = "int64") -> Graph:
    arrays = {"one": np.float32(1), "low": np.float32(-20), "table": np.full((1, 4), -20, np.float32)}
    used = {
        name: v
        for name, v in arrays.items()
        if name in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    text = f"g (float[3,4] x, {kind}[3,1] k) => (float[3,4] y) {{ {body} y = Add(x, m) }}"
    return infer_shapes(name_nodes(make(text, used)))


@pytest.mark.parametrize("kind", ["int64", "int32", "bool"])
@pytest.mark.parametrize(
    "body",
    [
        f"{MINUS} m = Mul(i, low)",
        f"{MINUS} m = Mul(low, i)",
        "f = Cast <to=1> (k) m = Mul(f, low)",
        f"{MINUS} b = Cast <to=9> (i) m = Where(b, low, i)",
    ],
)
def test_masks(make_graph: MakeGraph, body: str, kind: str) -> None:
    graph = _graph(make_graph, body, kind)
    after = masks_to_where(graph)
    assert [n.op_type for n in after.nodes] == (["Cast"] if kind != "bool" else []) + ["Where", "Add"]
    assert masks_to_where(after).to_bytes() == after.to_bytes()
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    feeds = {"x": x, "k": np.array([[1], [0], [1]], kind)}
    found, wanted = (open_runner(g, threads=1).run(feeds)["y"] for g in (after, graph))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (f"{MINUS} m = Mul(i, i)", "int64"),
        ("i = Sub(low, x) m = Mul(i, low)", "int64"),
        ("f = Cast <to=1> (k) i = Sub(low, f) m = Mul(i, low)", "int64"),
        ("f = Cast <to=1> (k) m = Mul(f, low)", "double"),
    ],
)
def test_what_is_no_mask_stays(make_graph: MakeGraph, body: str, kind: str) -> None:
    graph = _graph(make_graph, body, kind)
    assert masks_to_where(graph).to_bytes() == graph.to_bytes()
