"""The loop that rewrites single operators: what it does, leaves and says."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder

BODY = "g (float[2,6] x) => (float[2,6] y) { a = Abs(x) b = Neg(a) c = Abs(b) y = Abs(c) }"


def test_it_counts_what_it_does_and_names_what_it_leaves(make_graph: Callable[..., Graph]) -> None:
    graph = infer_shapes(name_nodes(make_graph(BODY)))
    before = graph.to_bytes()

    def judge(node: ir.Node) -> Verdict:
        return {"a": "", "c": "too late", "y": None}[str(node.outputs[0].name)]

    def rewrite(build: Builder, node: ir.Node) -> None:
        x = given(node, 0)
        build.take(node.outputs[0], build.node("Max", "size", x, build.node("Neg", "minus", x)))

    after = rewrite_nodes(graph, "sizes", "wrote {} sizes", ("Abs",), judge, rewrite)
    assert [n.op_type for n in after.nodes] == ["Neg", "Max", "Neg", "Abs", "Abs"]
    change = after.history[-1]
    assert (change.pass_name, change.summary) == ("sizes", "wrote 1 sizes")
    assert change.details == {"rewritten": {"Abs": 1}}
    assert [r.reason for r in change.refused] == ["too late"]
    assert graph.to_bytes() == before


def test_given(make_graph: Callable[..., Graph]) -> None:
    node = next(iter(make_graph(BODY).nodes))
    assert given(node, 0).name == "x"
    assert is_float(node.inputs[0])
    assert not is_float(None)
    with pytest.raises(ValueError, match="no input 1"):
        given(node, 1)
