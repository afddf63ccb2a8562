"""The null target computes what the file says, not what a fused kernel makes of it."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgekit import registry
from edgekit.graph import Graph


def _rounded_sum() -> Graph:
    """x -> Q -> DQ -> Add with itself -> Q -> DQ -> y, all at step 0.1."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("Add", ["xd", "xd"], ["a"], name="add"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.uint8), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


def test_every_node_is_computed_in_float_on_quantized_values(tmp_path: Path) -> None:
    target = registry.load_target("null")
    artifact = target.compile(_rounded_sum(), "int8", tmp_path)
    got = target.open(artifact.path).run({"x": np.array([0.04, 0.06, 99.0], np.float32)})
    np.testing.assert_allclose(got["y"], [0.0, 0.2, 25.5], rtol=1e-6)
    placed = target.placement(artifact.path)
    assert (placed.integer_nodes, placed.float_nodes, placed.conversions) == (0, 1, 4)
    assert [(left.node, left.op) for left in placed.left] == [("add", "Add")]
    assert "computes in float" in placed.left[0].reason


def test_the_same_file_is_integer_for_onnx_runtime(tmp_path: Path) -> None:
    target = registry.load_target("ort-cpu")
    placed = target.placement(target.compile(_rounded_sum(), "int8", tmp_path).path)
    assert (placed.integer_nodes, placed.float_nodes) == (1, 0)
