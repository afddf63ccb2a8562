"""A quantized MatMul with a bias runs on integers after lowering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.graph import Graph
from edgekit.passes.verify import max_difference
from edgekit.registry import load_target
from edgekit.targets.ort_cpu.lift_biases import lift_biases


def _quantized_linear() -> Graph:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 16, 32] x) => (float[1, 16, 8] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(wq, ws, wz)
        m = MatMul(d, w)
        y = Add(m, b)
    }"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "wq": random.integers(-127, 128, (32, 8)).astype(np.int8),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "b": random.standard_normal(8).astype(np.float32),
    }
    for label, data in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), label))
    model = onnx.shape_inference.infer_shapes(model)
    return Graph(ir.from_proto(model))


def test_the_sum_is_the_same_and_runs_on_integers(tmp_path: Path) -> None:
    graph = _quantized_linear()
    lifted = lift_biases(graph)
    assert max_difference(graph, lifted) < 0.02 * 0.01 * 127 * 32
    target = load_target("ort-cpu")
    lifted.save(tmp_path / "lifted.onnx")
    graph.save(tmp_path / "plain.onnx")
    assert target.placement(tmp_path / "lifted.onnx").ops.get("MatMulIntegerToFloat") == 1
    assert "Gemm" in target.placement(tmp_path / "plain.onnx").ops, "ONNX Runtime no longer needs this pass"


def test_a_float_graph_is_left_as_it_is() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1,4,4] x) => (float[1,4,4] y) { m = MatMul(x, x) y = Add(m, x) }"""
    graph = Graph(ir.from_proto(onnx.parser.parse_model(text)))
    assert lift_biases(graph) is graph
