"""Files with ends of codes, run with float values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.coded import CodedRunner, dequantize, open_coded, quantize
from edgekit.describe import describe_artifact
from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.quantized_ends import ENDS_KEY, End, quantized_ends
from edgekit.session import OrtRunner, open_runner

SHAPE = (1, 3, 4, 4)


def network() -> Graph:
    """An image and a float vector in; codes of one result, floats of another out."""
    pairs = [("x", "s", "z", "xd"), ("n", "s2", "z2", "y")]
    nodes = []
    for source, scale, zero, out in pairs:
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{source}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{source}_q", scale, zero], [out]))
    nodes.insert(2, helper.make_node("Mul", ["xd", "v"], ["m"]))
    nodes.insert(3, helper.make_node("Sigmoid", ["m"], ["n"]))
    nodes.append(helper.make_node("Neg", ["m"], ["w"]))
    constants: dict[str, np.ndarray[Any, Any]] = {
        "s": np.array(1 / 255, np.float32),
        "z": np.array(0, np.uint8),
        "s2": np.array(1 / 256, np.float32),
        "z2": np.array(-128, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("y", "w")],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def feeds() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "x": random.uniform(-0.2, 1.2, SHAPE).astype(np.float32),
        "v": random.normal(size=4).astype(np.float32),
    }


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    path = tmp_path / "int8.onnx"
    quantized_ends(network()).save(path)
    return path


def test_floats_in_and_out_as_if_the_file_had_float_ends(coded: Path) -> None:
    runner = open_coded(coded, 1, optimize=False)
    assert isinstance(runner, CodedRunner)
    assert runner.input_names == ["x", "v"]
    assert runner.output_names == ["y", "w"]
    wanted = open_runner(network(), threads=1, optimize=False).run(feeds())
    found = runner.run(feeds())
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_raw_codes_are_what_the_file_gives(coded: Path) -> None:
    runner = open_coded(coded, 1, optimize=False)
    assert isinstance(runner, CodedRunner)
    prepared = runner.prepare(feeds())
    assert {k: str(v.dtype) for k, v in prepared.items()} == {"x": "uint8", "v": "float32"}
    codes = runner.codes(feeds())
    assert {k: str(v.dtype) for k, v in codes.items()} == {"y": "int8", "w": "float32"}
    for name, values in runner.runner.run(prepared).items():
        np.testing.assert_array_equal(codes[name], values)


@pytest.mark.parametrize("optimize", [True, False])
def test_whether_it_is_optimized_is_said(coded: Path, optimize: bool) -> None:
    runner = open_coded(coded, 1, optimize=optimize)
    assert isinstance(runner, CodedRunner)
    assert runner.optimized is optimize


def test_a_file_with_float_ends_gets_the_plain_runner(tmp_path: Path) -> None:
    network().save(tmp_path / "net.onnx")
    assert isinstance(open_coded(tmp_path / "net.onnx", 1, optimize=True), OrtRunner)


def test_feeds_that_do_not_fit_are_named(coded: Path) -> None:
    runner = open_coded(coded, 1, optimize=True)
    with pytest.raises(ModelError, match=r"input 'v' is missing \(valid: x\)"):
        runner.run({"x": feeds()["x"]})
    with pytest.raises(ModelError, match="input 'x': takes float values, not uint8"):
        runner.run(feeds() | {"x": np.zeros(SHAPE, np.uint8)})
    with pytest.raises(ModelError, match=r"input 'x': has the shape \[1, 3, 4, 4\], not \[3, 4, 4\]"):
        runner.run(feeds() | {"x": np.zeros(SHAPE[1:], np.float32)})


def test_a_missing_file_and_one_whose_ends_were_changed_are_refused(coded: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        open_coded(coded.with_name("none.onnx"), 1, optimize=True)
    model = onnx.load(coded)
    (entry,) = (p for p in model.metadata_props if p.key == ENDS_KEY)
    entry.value = entry.value.replace('"dtype":"uint8"', '"dtype":"int8"')
    onnx.save(model, coded)
    with pytest.raises(ModelError, match=r"int8\.onnx: its metadata describe other inputs"):
        open_coded(coded, 1, optimize=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_rounding_is_that_of_onnx_runtime(dtype: str) -> None:
    limits = np.iinfo(dtype)
    zero = int(limits.min + (int(limits.max) - int(limits.min)) // 3)
    end = End(name="x", dtype=dtype, shape=(4096,), scale=float(np.float32(0.1)), zero_point=zero)
    values = np.random.default_rng(0).normal(0, 20, 4096).astype(np.float32)
    values[:7] = [0.25, 0.35, np.nan, np.inf, -np.inf, 3e38, -3e38]
    pair = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [
            helper.make_tensor_value_info("q", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [4096]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096]),
        ],
        [
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
            numpy_helper.from_array(np.array(zero, dtype), "z"),
        ],
    )
    model = helper.make_model(pair, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    wanted = open_runner(model.SerializeToString(), threads=1, optimize=False).run({"x": values})
    codes = quantize(values, end)
    np.testing.assert_array_equal(codes, wanted["q"])
    np.testing.assert_array_equal(dequantize(codes, end), wanted["y"])


def test_the_description_of_such_a_file_says_type_scale_and_zero_point(coded: Path) -> None:
    entry = describe_artifact(coded)
    x, v = entry.inputs
    y, w = entry.outputs
    assert (x.dtype, x.quantized, x.scale, x.zero_point) == ("uint8", "uint8", float(np.float32(1 / 255)), 0)
    assert (x.layout, x.shape) == ("NCHW", SHAPE)
    assert (y.dtype, y.quantized, y.scale, y.zero_point, y.layout) == ("int8", "int8", 1 / 256, -128, "")
    assert [(t.dtype, t.quantized, t.scale) for t in (v, w)] == [("float32", None, None)] * 2
