"""What the manifest says of a ``.tflite``: alone, with a float end behind it, and with one before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.bundle import ArtifactEntry
from edgekit.describe import describe_artifact
from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target

pytest.importorskip("ai_edge_litert")

CONVS = "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2)"
IMAGE = "float[1,3,8,6] x"
MAP = "float[1,8,4,2] y"


def build(lines: str, inputs: str = IMAGE, outputs: str = MAP) -> Graph:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {lines} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w4": (6, 8)}.items():
        if name in lines:
            values = rng.normal(size=shape).astype(np.float32) / 4
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return infer_shapes(Graph(ir.from_proto(model)))


def quantized(graph: Graph, raised: tuple[str, ...] = (), target: str = "ethos-u") -> Graph:
    scheme = load_target(target).scheme
    assert scheme is not None
    rng = np.random.default_rng(1)
    feeds = [{s.name: rng.normal(size=s.shape).astype(np.float32) for s in graph.inputs} for _ in range(4)]
    plan = make_plan(graph, scheme, raised=raised)
    seen = observe(graph, unknown_ranges(graph, scheme, plan, {}), feeds, threads=1)
    return insert_qdq(
        graph, plan, choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX)), scheme
    )


def described(
    graph: Graph, folder: Path, layout: str = "auto", io: Literal["quantized", "float"] = "quantized"
) -> ArtifactEntry:
    from edgekit.tflite.package import write_package

    package = write_package(graph, "net", folder, io=io)
    entry = describe_artifact(package.path, layout)
    assert entry.size_bytes == package.path.stat().st_size
    return entry


def brief(entries: Any) -> list[tuple[Any, ...]]:
    return [(e.name, e.shape, e.dtype, e.quantized, e.stored, e.axes) for e in entries]


NHWC = (0, 2, 3, 1)


def test_a_file_without_float_ends(tmp_path: Path) -> None:
    graph = quantized(build(CONVS.replace("c =", "y =")))
    entry = described(graph, tmp_path)
    assert brief(entry.inputs) == [("x", (1, 3, 8, 6), "float32", "int8", (1, 8, 6, 3), NHWC)]
    assert brief(entry.outputs) == [("y", (1, 8, 4, 2), "float32", "int8", (1, 4, 2, 8), NHWC)]
    assert entry.raw is None
    assert entry.inputs[0].layout == "NCHW"
    assert entry.outputs[0].layout == ""
    from edgekit.graph import array

    values = graph.values()
    for name, tensor in (("x", entry.inputs[0]), ("y", entry.outputs[0])):
        scale, zero = array(values[f"{name}_scale"]), array(values[f"{name}_zero_point"])
        assert scale is not None
        assert zero is not None
        assert (tensor.scale, tensor.zero_point) == (float(scale), int(zero))


def test_names_in_the_file_are_given_where_they_differ(tmp_path: Path) -> None:
    from edgekit.tflite.read import read_model

    graph = quantized(
        build(
            f"{CONVS} p = GlobalAveragePool(c) f = Flatten(p) y = Gemm <transB=1> (f, w4)",
            outputs="float[1,6] y",
        )
    )
    entry = described(graph, tmp_path)
    model = read_model((tmp_path / "net.tflite").read_bytes())
    (tensor,) = entry.outputs
    assert {tensor.tensor or tensor.name} == set(model.outputs)
    assert {entry.inputs[0].tensor or entry.inputs[0].name} == set(model.inputs)
    assert (tensor.shape, tensor.stored, tensor.axes) == ((1, 6), None, None)


def test_codes_of_16_bits_are_said(tmp_path: Path) -> None:
    entry = described(quantized(build(CONVS.replace("c =", "y =")), ("y",)), tmp_path)
    assert (entry.inputs[0].quantized, entry.outputs[0].quantized) == ("int8", "int16")
    assert entry.outputs[0].zero_point == 0


def test_float_inputs_and_outputs_have_no_scale(tmp_path: Path) -> None:
    graph = build(CONVS.replace("c =", "y ="))
    for entry in (described(graph, tmp_path), described(quantized(graph), tmp_path, io="float")):
        assert brief(entry.inputs) == [("x", (1, 3, 8, 6), "float32", None, (1, 8, 6, 3), NHWC)]
        assert brief(entry.outputs) == [("y", (1, 8, 4, 2), "float32", None, (1, 4, 2, 8), NHWC)]
        assert entry.outputs[0].scale is None


def test_with_a_decoder_the_outputs_are_the_networks_and_raw_is_the_files(tmp_path: Path) -> None:
    lines = f"{CONVS} y = Sigmoid(c) z = Tanh(c)"
    graph = quantized(build(lines, outputs="float[1,8,4,2] z, float[1,8,4,2] y"))
    entry = described(graph, tmp_path)
    assert [(t.name, t.scale, t.stored, t.dtype) for t in entry.outputs] == [
        ("z", None, None, "float32"),
        ("y", None, None, "float32"),
    ]
    assert entry.raw is not None
    assert brief(entry.raw["inputs"]) == brief(entry.inputs)
    assert brief(entry.raw["outputs"]) == [
        ("c_dequantized", (1, 8, 4, 2), "float32", "int8", (1, 4, 2, 8), NHWC)
    ]
    assert entry.raw["outputs"][0].scale is not None


def test_an_output_of_the_file_keeps_its_place_among_those_of_the_decoder(tmp_path: Path) -> None:
    lines = f"{CONVS} z = Sigmoid(c) y = Conv(b, w2)"
    graph = quantized(build(lines, outputs="float[1,8,4,2] y, float[1,8,4,2] z"))
    entry = described(graph, tmp_path)
    assert [(t.name, t.quantized) for t in entry.outputs] == [("y", "int8"), ("z", None)]
    assert entry.raw is not None
    assert {t.name for t in entry.raw["outputs"]} == {"c_dequantized", "y"}


def test_with_a_front_the_inputs_are_the_networks(tmp_path: Path) -> None:
    graph = quantized(build(f"s = Sin(x) {CONVS.replace('(x,', '(s,').replace('c =', 'y =')}"))
    entry = described(graph, tmp_path)
    assert (tmp_path / "net.front.onnx").is_file()
    assert [(t.name, t.dtype, t.scale, t.layout) for t in entry.inputs] == [("x", "float32", None, "NCHW")]
    assert [t.name for t in entry.outputs] == ["y"]
    assert entry.outputs[0].quantized == "int8"
    assert entry.raw is not None
    assert [(t.name, t.quantized) for t in entry.raw["inputs"]] == [("s", "int8")]
    assert brief(entry.raw["outputs"]) == brief(entry.outputs)


def test_an_input_that_only_the_decoder_reads_is_listed(tmp_path: Path) -> None:
    graph = quantized(build(f"{CONVS} y = Mul(c, size)", inputs=f"{IMAGE}, float[1,1,1,1] size"))
    entry = described(graph, tmp_path)
    assert [t.name for t in entry.inputs] == ["x", "size"]
    assert [t.name for t in entry.outputs] == ["y"]
    assert entry.raw is not None
    assert [t.name for t in entry.raw["inputs"]] == ["x"]


@pytest.mark.parametrize("end", ["decoder", "front"])
def test_inputs_are_in_the_networks_order(tmp_path: Path, end: str) -> None:
    """Stored samples number the inputs as the network does."""
    first = "float[1,1,1,1] size" if end == "decoder" else "float[1,8,4,2] size"
    lines = f"{CONVS} y = Mul(c, size)"
    if end == "front":
        lines = f"o = Sin(size) {CONVS} d = Add(c, o) y = Conv <pads=[1,1,1,1]> (d, w2)"
    graph = quantized(build(lines, inputs=f"{first}, {IMAGE}"))
    entry = described(graph, tmp_path)
    assert [t.name for t in entry.inputs] == [spec.name for spec in graph.inputs] == ["size", "x"]


def test_the_layout_that_was_asked_for_is_said(tmp_path: Path) -> None:
    graph = quantized(build(CONVS.replace("c =", "y =")))
    assert described(graph, tmp_path, "nchw").inputs[0].layout == "NCHW"
    assert described(graph, tmp_path, "nhwc").inputs[0].layout == "", "its last axis holds no colours"


def test_what_cannot_be_described_is_refused_with_its_path(tmp_path: Path) -> None:
    graph = quantized(build(f"{CONVS} y = Sigmoid(c)"))
    described(graph, tmp_path)
    (tmp_path / "net.decoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"net\.decoder\.onnx"):
        describe_artifact(tmp_path / "net.tflite")
    for name in ("none.tflite", "none.onnx"):
        with pytest.raises(ModelError, match=name):
            describe_artifact(tmp_path / name)
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.tflite"):
        describe_artifact(tmp_path / "broken.tflite")


def test_another_tools_file_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from edgekit.tflite.read import read_model
    from edgekit.tflite.write import write_model

    described(quantized(build(CONVS.replace("c =", "y ="))), tmp_path)
    path = tmp_path / "net.tflite"
    path.write_bytes(write_model(replace(read_model(path.read_bytes()), metadata={})))
    with pytest.raises(ModelError, match=r"edgekit\.io"):
        describe_artifact(path)


def test_an_onnx_file_is_described_as_before(tmp_path: Path) -> None:
    graph = quantized(build(CONVS.replace("c =", "y =")))
    graph.save(tmp_path / "net.onnx")
    entry = describe_artifact(tmp_path / "net.onnx")
    assert brief(entry.inputs) == [("x", (1, 3, 8, 6), "float32", "int8", None, None)]
    assert brief(entry.outputs) == [("y", (1, 8, 4, 2), "float32", "int8", None, None)]
    assert entry.inputs[0].layout == "NCHW"
    assert entry.raw is None
    assert entry.companions == ()
