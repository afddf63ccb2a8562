from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.passes.strip_notes import strip_notes


def test_notes_go_from_nodes_and_tensors_but_not_from_the_model(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    (node,) = graph.model.graph
    node.metadata_props["stack_trace"] = "/home/someone/net.py:3"
    node.doc_string = "/home/someone/net.py:3"
    graph.model.graph.inputs[0].metadata_props["kind"] = "USER_INPUT"
    graph.model.metadata_props["names"] = "cat,dog"
    result = strip_notes(graph)
    assert b"someone" not in result.to_bytes()
    assert b"USER_INPUT" not in result.to_bytes()
    assert b"cat,dog" in result.to_bytes()
    assert b"someone" in graph.to_bytes()
    assert result.history[-1].summary == "removed the exporter's notes at 2 places"
