"""Packages: codes in the right order, decoders that belong to them, and clear words when a file does not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.session import open_runner
from edgekit.tflite.interpreter import Kernels
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.package import (
    ENTRY,
    IoTensor,
    PackageIo,
    PackageRunner,
    compose,
    open_package,
    read_package,
    write_package,
)

Array = npt.NDArray[Any]
NHWC = (0, 2, 3, 1)
IMAGE = IoTensor(
    name="x", tensor="in", logical=(1, 2, 2, 3), shape=(1, 2, 3, 2), axes=NHWC, dtype=DType.INT8,
    scale=0.5, zero_point=3,
)  # fmt: skip


def _image() -> Array:
    return np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3) / 4


def test_feeds_are_rounded_half_to_even_shifted_and_transposed() -> None:
    value = _image()
    stored = IMAGE.store(value)
    assert stored.dtype == np.int8
    assert stored.shape == (1, 2, 3, 2)
    # 0.25 is half a step and goes to the even neighbour 0, 1.75 is 3.5 steps and goes to 4.
    assert stored[0, 0, :, 0].tolist() == [3, 3, 4]
    assert stored[0, 0, :, 1].tolist() == [3 + 3, 3 + 4, 3 + 4]
    np.testing.assert_array_equal(IMAGE.arrange(stored), np.rint(value / 0.5).astype(np.int8) + 3)
    np.testing.assert_allclose(IMAGE.real(IMAGE.arrange(stored)), value, atol=0.25)


def test_values_beyond_the_codes_are_clipped() -> None:
    far = np.full((1, 2, 2, 3), 1e9, np.float32)
    assert IMAGE.store(far).max() == 127
    assert IMAGE.store(-far).min() == -128
    wide = IMAGE.model_copy(update={"dtype": DType.INT16, "zero_point": 0})
    assert wide.store(-far).min() == -32768
    assert IMAGE.store(np.full((1, 2, 2, 3), np.inf, np.float32)).max() == 127


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"input 'x' has shape \[1, 2, 3, 2\], not \[1, 2, 2, 3\]"):
        IMAGE.store(np.zeros((1, 2, 3, 2), np.float32))
    broken = _image()
    broken[0, 1, 1, 1] = np.nan
    with pytest.raises(ModelError, match="input 'x' holds NaN"):
        IMAGE.store(broken)
    numbers = IMAGE.model_copy(update={"dtype": DType.INT32, "scale": None, "zero_point": None})
    with pytest.raises(ModelError, match="'x' holds values that int32 cannot"):
        numbers.store(np.full((1, 2, 2, 3), 2**40))
    assert numbers.store(np.full((1, 2, 2, 3), 7)).dtype == np.int32


def test_a_flat_tensor_keeps_the_onnx_order() -> None:
    flat = IMAGE.model_copy(update={"shape": (1, 12), "axes": (), "flat": True})
    stored = flat.store(_image())
    assert stored.shape == (1, 12)
    assert stored[0, :4].tolist() == [3, 3, 4, 5]
    np.testing.assert_array_equal(flat.arrange(stored), IMAGE.arrange(IMAGE.store(_image())))


class _Twice:
    """An engine that adds each code to itself and remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: dict[str, Array] = {}

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        self.fed = dict(values)
        return {"out": values["in"] * 2}


def _io(**changed: Any) -> PackageIo:
    out = IMAGE.model_copy(update={"name": "y", "tensor": "out", "zero_point": 6})
    return PackageIo(inputs=(IMAGE,), outputs=(out,), results=("y",)).model_copy(update=changed)


def test_the_runner_returns_floats_by_onnx_name_and_codes_on_request() -> None:
    engine = _Twice()
    runner = PackageRunner(_io(), engine)
    feeds = {"x": np.full((1, 2, 2, 3), 2.0, np.float32)}
    assert runner.run(feeds)["y"].tolist() == np.full((1, 2, 2, 3), 4.0).tolist()
    assert engine.fed["in"].shape == (1, 2, 3, 2)
    codes = runner.run_codes(feeds)
    assert codes.keys() == {"y"}
    assert (codes["y"].dtype, codes["y"].shape, codes["y"][0, 0, 0, 0]) == (np.int8, (1, 2, 2, 3), 14)
    assert runner.bindings.outputs[0].scale == 0.5
    with pytest.raises(ModelError, match="input 'x' is missing"):
        runner.run({"image": feeds["x"]})


def _file(folder: Path, **metadata: str) -> Path:
    """A .tflite with one RELU on int8 codes and the metadata given."""
    pytest.importorskip("ai_edge_litert")
    from edgekit.tflite.write import write_model

    step = Quantization.single(0.5, 3)
    tensors = {n: Tensor(n, (1, 2, 3, 2), DType.INT8, step) for n in ("a", "b")}
    model = TfliteModel(tensors, (Operator("RELU", ("a",), ("b",)),), {"in": "a"}, {"out": "b"}, metadata)
    path = folder / "net.tflite"
    path.write_bytes(write_model(model))
    return path


def _relu_io(**changed: Any) -> PackageIo:
    out = IMAGE.model_copy(update={"name": "y", "tensor": "out"})
    return PackageIo(inputs=(IMAGE,), outputs=(out,), results=("y",), **changed)


@pytest.mark.parametrize("kernels", list(Kernels))
def test_a_package_runs_in_litert(tmp_path: Path, kernels: Kernels) -> None:
    path = _file(tmp_path, **{ENTRY: _relu_io().model_dump_json()})
    value = _image() - 1.0
    found = open_package(path, kernels=kernels).run({"x": value})["y"]
    np.testing.assert_allclose(found, np.maximum(np.rint(value / 0.5) * 0.5, 0))
    model, io = read_package(path)
    assert (model.counts(), io) == ({"RELU": 1}, _relu_io())


def test_files_that_are_no_package_are_refused_with_their_path(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ModelError, match=r"none\.tflite: there is no such file"):
        open_package(tmp_path / "none.tflite")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model")
    for read in (open_package, read_package):
        with pytest.raises(ModelError, match=r"broken\.tflite"):
            read(broken)
    with pytest.raises(ModelError, match=r"net\.tflite: holds no metadata entry 'edgekit\.io'"):
        open_package(_file(tmp_path))
    with pytest.raises(ModelError, match=r"net\.tflite: its metadata 'edgekit\.io' cannot be used: inputs"):
        open_package(_file(tmp_path, **{ENTRY: '{"outputs": [], "results": []}'}))


def test_a_decoder_must_be_there_and_must_be_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    io = _io(decoder="0" * 64)
    with pytest.raises(ModelError, match=r"net\.decoder\.onnx: is missing"):
        compose(path, io, _Twice())
    (tmp_path / "net.decoder.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"net\.decoder\.onnx: is not the file that the \.tflite"):
        compose(path, io, _Twice())


def _network(*, quantized: bool, tail: bool) -> Graph:
    """x -> conv3x3 with ReLU -> (Q, DQ) -> y, or, with a tail, -> Mul by itself plus x -> y."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(3, 3, 3, 3)).astype(np.float32) * 0.2
    scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
    arrays: dict[str, Array] = {"w": weight, "b": np.linspace(-0.5, 0.5, 3, dtype=np.float32)}
    nodes = []
    source, last = "x", "a"
    if quantized:
        codes = np.round(weight / scales.reshape(-1, 1, 1, 1)).astype(np.int8)
        bias = np.round(arrays["b"] / (scales * 0.05)).astype(np.int32)
        arrays = {"wq": codes, "ws": scales.astype(np.float32), "wz": np.zeros(3, np.int8)}
        arrays |= {"bq": bias, "bs": (scales * 0.05).astype(np.float32), "bz": np.zeros(3, np.int32)}
        arrays |= {"s": np.array(0.05, np.float32), "z": np.array(4, np.int8)}
        arrays |= {"r": np.array(0.02, np.float32), "rz": np.array(-128, np.int8)}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_quantized"]),
            helper.make_node("DequantizeLinear", ["x_quantized", "s", "z"], ["x_dequantized"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
            helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["b"], axis=0),
        ]
        source = "x_dequantized"
    nodes.append(helper.make_node("Conv", [source, "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"))
    nodes.append(helper.make_node("Relu", ["c"], [last], name="relu"))
    if quantized:
        last = "y" if not tail else "a_dequantized"
        nodes.append(helper.make_node("QuantizeLinear", ["a", "r", "rz"], ["a_quantized"]))
        nodes.append(helper.make_node("DequantizeLinear", ["a_quantized", "r", "rz"], [last]))
    if tail:
        nodes.append(helper.make_node("Mul", [last, last], ["m"], name="square"))
        nodes.append(helper.make_node("Add", ["m", "x"], ["y"], name="shift"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("y" if tail or quantized else last, TensorProto.FLOAT, [1, 3, 6, 8])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


def _feeds() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(1, 3, 6, 8)).astype(np.float32)}


@pytest.mark.parametrize("tail", [False, True])
def test_a_quantized_network_written_and_opened_computes_what_it_did(tmp_path: Path, tail: bool) -> None:
    pytest.importorskip("ai_edge_litert")
    graph = _network(quantized=True, tail=tail)
    package = write_package(graph, "int8", tmp_path)
    assert package.size_bytes == package.path.stat().st_size
    assert (package.decoder is not None) == tail
    assert {package.path, *package.companions} == set(tmp_path.iterdir())
    expected = open_runner(graph, threads=1, optimize=False).run(_feeds())
    found = open_package(package.path, kernels=Kernels.REFERENCE).run(_feeds())
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["y"], expected["y"], atol=0.021 * (2 * 5.1 if tail else 1))
    assert (np.abs(found["y"] - expected["y"]) < 1e-5).mean() > 0.95
    assert np.ptp(found["y"]) > 0.5


def test_a_float_network_becomes_a_float_file(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    graph = _network(quantized=False, tail=False)
    package = write_package(graph, "float", tmp_path)
    expected = open_runner(graph, threads=1, optimize=False).run(_feeds())
    found = open_package(package.path).run(_feeds())
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-4, atol=1e-5)


def test_writing_twice_gives_the_same_bytes_and_leaves_no_old_decoder(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    first = write_package(_network(quantized=True, tail=True), "int8", tmp_path)
    before = [path.read_bytes() for path in (first.path, *first.companions)]
    again = write_package(_network(quantized=True, tail=True), "int8", tmp_path)
    assert [path.read_bytes() for path in (again.path, *again.companions)] == before
    write_package(_network(quantized=True, tail=False), "int8", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.tflite"]


def test_a_check_that_refuses_keeps_everything_unwritten(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")

    def refuse(model: TfliteModel) -> None:
        raise ModelError(f"no kernel for {next(iter(model.counts()))}")

    with pytest.raises(ModelError, match="no kernel for CONV_2D"):
        write_package(_network(quantized=True, tail=True), "int8", tmp_path, check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_the_metadata_says_where_the_file_comes_from(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    import json

    graph = _network(quantized=True, tail=False)
    model, _ = read_package(write_package(graph, "int8", tmp_path).path)
    origin = json.loads(model.metadata["edgekit.provenance"])
    assert origin["network_sha256"] == graph.sha256()
    assert json.loads(model.metadata["edgekit.notes"]) == []
    assert replace(model, metadata={}).metadata == {}
