from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.passes.edit import Names, add_constant, bypass, can_bypass, set_constant, static_shape


def test_names_are_fresh_and_stay_taken(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    names = Names(graph.model.graph)
    assert [names.fresh(n) for n in ("x", "y", "y", "z", "z")] == ["x.1", "y.1", "y.2", "z", "z.1"]


def test_changing_a_copy_leaves_the_original_as_it_was(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[1,2] x) => (float[1,2] y) { h = Mul(x, w) y = Softmax<axis=1>(h) }",
        {"w": np.array([1.0, 2.0], np.float32)},
    )
    before = graph.to_bytes()
    copy = graph.copy()
    main = copy.model.graph
    first, second = list(main)
    set_constant(main.initializers["w"], np.zeros(3, np.float32))
    add_constant(main, "extra", np.ones(1))
    second.attributes["axis"] = ir.AttrInt64("axis", 0)
    first.outputs[0].shape = ir.Shape([7])
    main.inputs[0].shape[0] = 5  # in place, on the shape object itself
    main.inputs[0].type = ir.TensorType(ir.DataType.INT8)
    first.name, first.outputs[0].name, main.inputs[0].name = "renamed", "h2", "x2"
    first.metadata_props["a"] = "b"
    copy.model.opset_imports[""] = 11
    copy.model.metadata_props["a"] = "b"
    bypass(first.outputs[0], second.outputs[0])
    assert graph.to_bytes() == before
    assert copy.to_bytes() != before


def test_bypass_keeps_the_name_of_an_output(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1] x) => (float[1] y) { h = Relu(x) y = Identity(h) }")
    relu, identity = list(graph.model.graph)
    assert can_bypass(relu.outputs[0], identity.outputs[0])
    bypass(relu.outputs[0], identity.outputs[0])
    assert [n.op_type for n in graph.nodes] == ["Relu"]
    assert [o.name for o in graph.outputs] == ["y"]


def test_an_input_cannot_stand_in_for_an_output(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    (node,) = graph.model.graph
    assert not can_bypass(node.inputs[0], node.outputs[0])


def test_bypass_of_an_input_is_a_mistake(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    x = graph.model.graph.inputs[0]
    with pytest.raises(ValueError, match="not made by a node"):
        bypass(x, x)


def test_static_shape(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[N,2] x, float[3,2] z) => (float[3,2] y) { y = Add(x, z) }")
    x, z = graph.model.graph.inputs
    assert static_shape(x) is None
    assert static_shape(z) == (3, 2)
    assert static_shape(None) is None
