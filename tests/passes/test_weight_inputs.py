from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.verify import max_difference
from edgekit.passes.weight_inputs import weight_inputs


def _held(value: Any) -> Any:
    return array(value)


def test_weights_leave_the_list_of_inputs() -> None:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    infos = {name: helper.make_tensor_value_info(name, floats, [2]) for name in ("x", "w", "y")}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [infos["x"], infos["w"]],
            [infos["y"]],
            [onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "w")],
        ),
        ir_version=3,
        opset_imports=[helper.make_opsetid("", 11)],
    )
    graph = Graph(ir.from_proto(model))
    result = weight_inputs(graph)
    assert [i.name for i in result.inputs] == ["x"]
    assert _held(result.values()["w"]).tolist() == [1, 2]
    assert len(graph.inputs) == 2
    onnx.checker.check_model(result.to_proto())
    assert max_difference(result, weight_inputs(result)) == 0
