"""The LiteRT target: kernels that agree, what XNNPACK takes, and what stays in float."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.target import ComparesRuntimes
from edgekit.targets.litert.delegation import delegation
from edgekit.targets.litert.target import LiteRtTarget
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel

pytest.importorskip("ai_edge_litert")


def _network() -> Graph:
    """x -> conv -> Sigmoid -> conv x Sigmoid -> y, all int8, with a Sub in float behind it."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {"half": np.array(0.5, np.float32)}
    nodes: list[Any] = []

    def codes(tensor: str, scale: float, zero: int) -> str:
        arrays[f"{tensor}_s"], arrays[f"{tensor}_z"] = np.array(scale, np.float32), np.array(zero, np.int8)
        step = [f"{tensor}_s", f"{tensor}_z"]
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *step], [f"{tensor}_quantized"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{tensor}_quantized", *step], [f"{tensor}_dequantized"])
        )
        return f"{tensor}_dequantized"

    image = codes("x", 0.05, 0)
    weight = random.normal(size=(8, 3, 3, 3)).astype(np.float32) * 0.2
    scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    arrays |= {"w_q": np.round(weight / scales.reshape(-1, 1, 1, 1)).astype(np.int8)}
    arrays |= {"w_s": scales, "w_z": np.zeros(8, np.int8), "b_q": random.integers(-400, 400, 8, np.int32)}
    arrays |= {"b_s": scales * np.float32(0.05), "b_z": np.zeros(8, np.int32)}
    nodes.append(helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], axis=0))
    nodes.append(helper.make_node("DequantizeLinear", ["b_q", "b_s", "b_z"], ["b"], axis=0))
    nodes.append(helper.make_node("Conv", [image, "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"))
    found = codes("c", 0.04, 3)
    nodes.append(helper.make_node("Sigmoid", [found], ["g"], name="gate"))
    gate = codes("g", 1 / 256, -128)
    nodes.append(helper.make_node("Mul", [found, gate], ["m"], name="silu"))
    last = codes("m", 0.03, -100)
    nodes.append(helper.make_node("Sub", [last, "half"], ["y"], name="shift"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 10, 12])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a .tflite."""
    artifact = LiteRtTarget.create().compile(_network(), "int8", tmp_path_factory.mktemp("litert"))
    assert [path.name for path in artifact.companions] == ["int8.decoder.onnx"]
    return artifact.path


def _feeds() -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(1).normal(size=(1, 3, 10, 12)).astype(np.float32)}


def test_xnnpack_and_the_reference_kernels_are_at_most_a_step_apart(compiled: Path) -> None:
    target = LiteRtTarget.create("host-1t")
    fast, reference = target.open(compiled), target.open_reference(compiled)
    assert (fast.optimized, reference.optimized) == (True, False)
    expected = reference.run_codes(_feeds())
    found = fast.run_codes(_feeds())
    for name, codes in expected.items():
        assert np.abs(found[name].astype(int) - codes).max() <= 1
        assert len(np.unique(codes)) > 20


def test_placement_reads_the_file_back(compiled: Path) -> None:
    placed = LiteRtTarget.create().placement(compiled)
    assert placed.ops == {"CONV_2D": 1, "LOGISTIC": 1, "MUL": 1, "Sub": 1}
    assert (placed.integer_nodes, placed.float_nodes, placed.conversions) == (3, 1, 0)
    (left,) = placed.left
    assert (left.node, left.op) == ("shift", "Sub")
    assert "behind the last integer operator" in left.reason


def test_xnnpack_takes_all_three_operators_as_one_part(compiled: Path) -> None:
    found = LiteRtTarget.create().delegation(compiled)
    assert found.to_json() == {
        "partitions": 1,
        "delegated": {"CONV_2D": 1, "LOGISTIC": 1, "MUL": 1},
        "left": {},
    }


def test_an_operator_that_xnnpack_does_not_take_splits_the_network(tmp_path: Path) -> None:
    from edgekit.tflite.write import write_model

    step = Quantization.single(0.1, 0)
    tensors = {n: Tensor(n, (1, 4, 4, 8), DType.INT8, step) for n in ("a", "b", "c", "d")}
    operators = (
        Operator("ADD", ("a", "a"), ("b",)),
        Operator("HARD_SWISH", ("b",), ("c",)),
        Operator("ADD", ("c", "b"), ("d",)),
    )
    path = tmp_path / "net.tflite"
    path.write_bytes(write_model(TfliteModel(tensors, operators, {"a": "a"}, {"d": "d"})))
    found = delegation(path)
    assert (found.partitions, found.delegated, found.left) == (2, {"ADD": 2}, {"HARD_SWISH": 1})
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"net\.tflite"):
        delegation(path)


def test_the_runtimes_are_compared_step_by_step(compiled: Path) -> None:
    target = LiteRtTarget.create()
    assert isinstance(target, ComparesRuntimes)
    found = target.compare_runtimes(compiled, infer_shapes(_network()), [_feeds()])
    assert found is not None
    assert found.ok
    assert found.outputs["integer reference"][0].max_steps == 0
    assert found.samples == 1


def test_the_description_has_the_scheme_and_the_boards_figures() -> None:
    described = LiteRtTarget.create("rpi5").describe()
    assert described["scheme"]["activation"] == "int8"
    assert described["profile"]["memory_bytes"] == 8 * 2**30
    assert described["scheme"]["ops"]["Sigmoid"]["range"] == [0.0, 0.99609375]
