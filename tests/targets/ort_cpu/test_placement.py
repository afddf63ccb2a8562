"""Placement against the installed ONNX Runtime: every claim about a kernel is tried, every reason is
provoked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit.target import Placement
from edgekit.targets.ort_cpu import placement as module
from edgekit.targets.ort_cpu.placement import placement

MODELS = Path(__file__).parents[3].parent / "shared" / "models"
IMAGE = [1, 8, 8, 8]


def _int64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


#: Op -> inputs, constants after them (None is an absent input), weight shape and axis, attributes, outputs.
SNIPPETS: dict[str, dict[str, Any]] = {
    "Add": {"inputs": [IMAGE, IMAGE]},
    "AveragePool": {"attributes": {"kernel_shape": [2, 2]}},
    "Concat": {"inputs": [IMAGE, IMAGE], "attributes": {"axis": 1}},
    "Conv": {"weight": ([16, 8, 3, 3], 0)},
    "Gemm": {"inputs": [[4, 16]], "weight": ([8, 16], 0), "attributes": {"transB": 1}},
    "GlobalAveragePool": {},
    "LeakyRelu": {"attributes": {"alpha": 0.1}},
    "MatMul": {"inputs": [[4, 16]], "weight": ([16, 8], 1)},
    "Mul": {"inputs": [IMAGE, IMAGE]},
    "Sigmoid": {},
    "Softmax": {"inputs": [[1, 16]], "attributes": {"axis": -1}},
    "DepthToSpace": {"attributes": {"blocksize": 2}},
    "Expand": {"constants": [_int64(2, 8, 8, 8)]},
    "Flatten": {},
    "Gather": {"constants": [_int64(1, 2)], "attributes": {"axis": 1}},
    "MaxPool": {"attributes": {"kernel_shape": [2, 2]}},
    "Reshape": {"constants": [_int64(1, -1)]},
    "Resize": {"constants": [None, np.array([1, 1, 2, 2], np.float32)], "attributes": {"mode": "nearest"}},
    "Slice": {"constants": [_int64(0), _int64(4), _int64(1)]},
    "Split": {"constants": [_int64(4, 4)], "attributes": {"axis": 1}, "outputs": 2},
    "Squeeze": {"constants": [_int64(0)]},
    "Tile": {"constants": [_int64(2, 1, 1, 1)]},
    "Transpose": {"attributes": {"perm": [0, 2, 3, 1]}},
    "Unsqueeze": {"constants": [_int64(0)]},
    "HardSigmoid": {},
    "Tanh": {},
    "Relu": {},
}


class _Builder:
    """Collects nodes and constants of a small model; ``quantize`` puts a Q and a DQ after a tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def quantize(self, name: str, scale: float = 0.02, dtype: str = "uint8") -> str:
        zero = {"uint8": 128, "int8": 0, "uint16": 32768}[dtype]
        self.constants |= {f"{name}_s": np.array(scale, np.float32), f"{name}_z": np.array(zero, dtype)}
        ends = [f"{name}_s", f"{name}_z"]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *ends], [f"{name}_d"]))
        return f"{name}_d"

    def weight(self, shape: Sequence[int], axis: int) -> str:
        self.constants["w_q"] = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        self.constants["w_s"] = np.full(shape[axis], 0.01, np.float32)
        self.constants["w_z"] = np.zeros(shape[axis], np.int8)
        self.nodes.append(helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_d"], axis=axis))
        return "w_d"

    def placement(
        self, path: Path, inputs: dict[str, Sequence[int]], outputs: Sequence[str], *, infer: bool = True
    ) -> Placement:
        graph = helper.make_graph(
            self.nodes,
            "snippet",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(value, n) for n, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model) if infer else model, path)
        return placement(path)


def _place(op: str, folder: Path, *, out_scale: float = 0.02, dtype: str = "uint8") -> Placement:
    """The op between Dequantize and Quantize nodes."""
    snippet = SNIPPETS[op]
    build = _Builder()
    inputs = {f"x{i}": shape for i, shape in enumerate(snippet.get("inputs", [IMAGE]))}
    names = [build.quantize(name, dtype=dtype) for name in inputs]
    if "weight" in snippet:
        names.append(build.weight(*snippet["weight"]))
    for number, constant in enumerate(snippet.get("constants", [])):
        names.append("" if constant is None else f"c{number}")
        if constant is not None:
            build.constants[f"c{number}"] = constant
    results = [f"y{i}" for i in range(snippet.get("outputs", 1))]
    build.nodes.append(helper.make_node(op, names, results, name="it", **snippet.get("attributes", {})))
    outputs = [build.quantize(name, out_scale, dtype) for name in results]
    return build.placement(folder / f"{op}.onnx", inputs, outputs)


@pytest.mark.parametrize("op", sorted(module.RESCALING_KERNELS))
def test_a_rescaling_kernel_is_integer_at_any_pair_of_scales(op: str, tmp_path: Path) -> None:
    found = _place(op, tmp_path, out_scale=0.03)
    assert (found.integer_nodes > 0, found.float_nodes, found.left) == (True, 0, ())


@pytest.mark.parametrize("op", sorted(module.SAME_SCALE_KERNELS))
def test_a_same_scale_kernel_is_integer_at_one_scale_only(op: str, tmp_path: Path) -> None:
    same, different = _place(op, tmp_path), _place(op, tmp_path, out_scale=0.03)
    assert (same.integer_nodes > 0, same.float_nodes) == (True, 0)
    assert (different.integer_nodes, different.float_nodes) == (0, 1)
    assert "the scales of its input and output differ (0.02 and 0.03)" in different.left[0].reason


@pytest.mark.parametrize("op", sorted(SNIPPETS.keys() - module.RESCALING_KERNELS - module.SAME_SCALE_KERNELS))
def test_other_ops_stay_in_float_and_say_that_there_is_no_kernel(op: str, tmp_path: Path) -> None:
    found = _place(op, tmp_path, out_scale=0.03)
    assert found.integer_nodes == 0
    assert [(left.node, left.reason) for left in found.left] == [
        ("it", f"ONNX Runtime's CPU has no integer kernel for {op}")
    ]


def test_16_bit_codes_are_the_reason(tmp_path: Path) -> None:
    found = _place("Add", tmp_path, dtype="uint16")
    assert found.integer_nodes == 0
    assert "16-bit" in found.left[0].reason


@pytest.mark.parametrize(("before", "after"), [("uint16", "uint8"), ("uint8", "uint16")])
def test_16_bit_codes_on_one_side_are_enough(before: str, after: str, tmp_path: Path) -> None:
    build = _Builder()
    build.nodes.append(helper.make_node("Sigmoid", [build.quantize("x", dtype=before)], ["y"], name="it"))
    found = build.placement(tmp_path / "m.onnx", {"x": IMAGE}, [build.quantize("y", dtype=after)])
    assert "16-bit" in found.left[0].reason


def test_what_follows_an_integer_kernel_with_float_output_is_float(tmp_path: Path) -> None:
    build = _Builder()
    weight = build.weight([8, 16], 0)
    build.nodes.append(helper.make_node("Gemm", [build.quantize("x"), weight], ["h"], transB=1))
    build.nodes.append(helper.make_node("Tanh", ["h"], ["y"], name="tanh"))
    found = build.placement(tmp_path / "m.onnx", {"x": [4, 16]}, ["y"], infer=False)
    assert (found.ops["QGemm"], found.integer_nodes, found.float_nodes) == (1, 1, 1)
    assert [(left.node, left.reason) for left in found.left] == [
        ("tanh", "its inputs and its output are not quantized")
    ]


def test_signed_activations_are_integer_too(tmp_path: Path) -> None:
    assert _place("Conv", tmp_path, dtype="int8").float_nodes == 0


def test_a_float_input_is_named(tmp_path: Path) -> None:
    build = _Builder()
    build.nodes.append(helper.make_node("Mul", [build.quantize("x"), "plain"], ["y"], name="mul"))
    found = build.placement(tmp_path / "m.onnx", {"x": IMAGE, "plain": IMAGE}, [build.quantize("y")])
    assert [left.reason for left in found.left] == ["its input 'plain' is not quantized"]


def test_a_float_graph_output_is_named(tmp_path: Path) -> None:
    build = _Builder()
    build.nodes.append(helper.make_node("Sigmoid", [build.quantize("x")], ["y"], name="sigmoid"))
    found = build.placement(tmp_path / "m.onnx", {"x": IMAGE}, ["y"])
    assert [left.reason for left in found.left] == ["it writes the graph output 'y' in float"]


def test_an_island_between_quantized_nodes_is_told_from_its_neighbours(tmp_path: Path) -> None:
    build = _Builder()
    build.nodes.append(helper.make_node("Sigmoid", [build.quantize("x")], ["a"], name="sigmoid"))
    a = build.quantize("a")
    build.nodes.append(helper.make_node("Tanh", [a], ["b"], name="one"))
    build.nodes.append(helper.make_node("Exp", ["b"], ["c"], name="two"))
    build.nodes.append(helper.make_node("Sigmoid", [build.quantize("c")], ["d"], name="last"))
    found = build.placement(tmp_path / "m.onnx", {"x": IMAGE}, [build.quantize("d")])
    assert found.integer_nodes == 2
    assert {left.node: left.reason for left in found.left} == {
        "one": "ONNX Runtime's CPU has no integer kernel for Tanh",
        "two": "its input 'b' is not quantized",
    }


def test_shape_arithmetic_is_neither_float_nor_integer(tmp_path: Path) -> None:
    build = _Builder()
    build.nodes.append(helper.make_node("NonZero", ["x"], ["n"]))
    build.nodes.append(helper.make_node("Add", ["n", "n"], ["m"]))
    build.nodes.append(helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT))
    found = build.placement(tmp_path / "m.onnx", {"x": IMAGE}, ["y"])
    assert found.integer_nodes == 0
    assert found.ops["Add"] == 1
    assert found.float_nodes == sum(found.ops.values()) - 1


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        placement(tmp_path / "nothing.onnx")


def test_a_real_network_quantized_by_onnx_runtime_runs_in_integers(tmp_path: Path) -> None:
    source = MODELS / "mobilefacenet.onnx"
    if not source.is_file():
        pytest.skip("../shared/models/mobilefacenet.onnx is not there")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        left = 1

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            self.left -= 1
            shape = (1, 3, 112, 112)
            feeds = {"input0": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
            return feeds if self.left >= 0 else None

    target = tmp_path / "int8.onnx"
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, target, Noise(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
    before, after = placement(source), placement(target)
    assert (before.integer_nodes, before.conversions, before.left) == (0, 0, ())
    assert before.ops["Conv"] == after.ops["QLinearConv"] == 51
    assert (after.float_nodes, after.conversions, after.left) == (0, 2, ())
    assert after.integer_nodes >= 63
