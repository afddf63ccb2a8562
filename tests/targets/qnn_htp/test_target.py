"""From a float network to what a device loads: the target as the line uses it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError, ToolError, UsageError
from edgekit.graph import Graph
from edgekit.quantize.quantize import Options, quantize
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.targets.qnn_htp import compile as compiling
from edgekit.targets.qnn_htp.alone import Apart
from edgekit.targets.qnn_htp.compile import Record, device_path
from edgekit.targets.qnn_htp.emulate import EMULATOR
from edgekit.targets.qnn_htp.process import RefusedNodesError, compile_context
from edgekit.targets.qnn_htp.target import QnnHtpTarget

Arrays = dict[str, np.ndarray[Any, Any]]
BODY = """
a = Conv<pads=[1,1,1,1]>(x, w1, b1)
b = Relu(a)
c = Conv(b, w2)
d = Sigmoid(c)
e = Mul(c, d)
f = Conv(e, w3)
"""
HEAD = "y = Sigmoid(f)"
#: Erf has no kernel on HTP, and stands behind everything else.
FLOAT_END = "g = Sigmoid(f) y = Erf(g)"


def net(end: str = HEAD, body: str = BODY) -> Graph:
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((16, 3, 3, 3)) / 5,
        "b1": random.standard_normal(16) / 5,
        "w2": random.standard_normal((16, 16, 1, 1)) / 4,
        "w3": random.standard_normal((8, 16, 1, 1)) / 4,
    }
    text = f"g (float[1,3,16,16] x) => (float[1,8,16,16] y) {{ {body} {end} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, data in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(data.astype(np.float32), name))
    for node in model.graph.node:
        node.name = f"{node.output[0]}.node"
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))


def feeds(count: int = 4) -> list[Arrays]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def target(profile: str = "v75") -> QnnHtpTarget:
    return QnnHtpTarget.create(profile)


def quantized(graph: Graph, found: QnnHtpTarget) -> Graph:
    assert found.scheme is not None
    samples = feeds()
    return quantize(found.prepare(graph), found.scheme, lambda: samples, Options(max_raised=0)).graph


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``made(profile, end, io)``: target, QDQ graph and artifact, compiled once."""
    pytest.importorskip("onnxruntime_qnn")
    known: dict[tuple[str, str, str], Any] = {}

    def make(profile: str = "v75", end: str = HEAD, io: str = "float") -> Any:
        key = (profile, end, io)
        if key not in known:
            found = target(profile).with_io(io)  # type: ignore[arg-type]
            graph = quantized(net(end), found)
            artifact = found.compile(graph, "int8", tmp_path_factory.mktemp("made"))
            known[key] = found, graph, artifact
        return known[key]

    return make


def test_a_profile_chooses_hardware_and_number_format() -> None:
    usual, other = target(), target("v73-a16w8")
    assert (usual.fmt, usual.htp.arch, usual.io) == ("a8w8", 75, "float")
    assert (other.fmt, other.htp.arch) == ("a16w8", 73)
    assert usual.scheme is not None
    assert other.scheme is not None
    assert str(usual.scheme.activation) == "uint8"
    assert str(other.scheme.activation) == "uint16"
    described = other.describe()
    assert described["htp"]["arch"] == 73
    assert described["profile"]["name"] == "v73-a16w8"
    assert isinstance(load_target("qnn-htp:v81"), QnnHtpTarget)


@pytest.mark.parametrize("profile", ["v68", "v73", "v75-a16w8"])
def test_a_network_is_compiled_with_every_node_on_htp(made: Callable[..., Any], profile: str) -> None:
    found, _, artifact = made(profile)
    coverage = found.coverage(artifact.path)
    assert coverage.method == "compiled"
    assert coverage.on_unit == coverage.nodes == 7
    assert not coverage.left
    assert coverage.stamp["architecture"] == f"v{found.htp.arch}"
    assert "conversions between number formats run on HTP" in coverage.notes[0]
    by_op = {row.op: row for row in coverage.ops}
    assert by_op["Conv"].kernels == {"Conv2d": 3}
    names = {path.name for path in artifact.companions}
    assert {"int8.ctx.onnx", "int8.ctx_qnn.bin", "int8.qnn.json", "int8_host.py", "int8_host.cpp"} <= names
    assert all(path.is_file() for path in artifact.companions)
    assert device_path(artifact.path).name == "int8.ctx.onnx"
    placed = found.placement(artifact.path)
    assert (placed.integer_nodes, placed.float_nodes) == (7, 0)


def test_the_emulator_gives_what_onnx_runtime_gives(made: Callable[..., Any]) -> None:
    found, graph, artifact = made()
    runner = found.open(artifact.path)
    for feed, emulated in zip(feeds(2), found.emulate(artifact.path, feeds(2)), strict=True):
        assert np.abs(emulated["y"] - runner.run(feed)["y"]).max() < 4 / 256
    parity = found.compare_runtimes(artifact.path, graph, feeds(2))
    assert parity is not None
    (row,) = parity.outputs[EMULATOR]
    assert (row.tensor, row.op) == ("y", "Sigmoid")
    assert row.max_steps <= 3  # three convolutions, one behind the other
    layers = parity.layers[EMULATOR]
    assert len(layers) >= 4
    assert all(layer.max_steps <= 1 for layer in layers)
    assert "bit for bit" in parity.notes[0]


def test_ends_of_codes_are_the_same_network(made: Callable[..., Any]) -> None:
    found, _, plain = made()
    other, _, coded = made("v75", HEAD, "quantized")
    model = onnx.load(coded.path)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    one, two = found.emulate(plain.path, feeds(2)), other.emulate(coded.path, feeds(2))
    for a, b in zip(one, two, strict=True):
        # HTP quantizes a float input itself, and rounds a few values the other way.
        assert np.abs(a["y"] - b["y"]).max() < 4 / 256
        assert np.abs(a["y"] - b["y"]).mean() < 1 / 1024
    assert any("NHWC" in note for note in coded.notes)


def test_float_ends_stay_around_the_context_and_are_named(made: Callable[..., Any]) -> None:
    found, _, artifact = made("v75", FLOAT_END)
    coverage = found.coverage(artifact.path)
    (left,) = coverage.left
    assert (left.node, left.op) == ("y.node", "Erf")
    assert left.reason
    assert left.remedy
    assert coverage.on_unit == coverage.nodes - 1
    whole = onnx.load(device_path(artifact.path), load_external_data=False)
    assert "EPContext" in [node.op_type for node in whole.graph.node]
    assert "Erf" in [node.op_type for node in whole.graph.node]
    assert found.estimate(artifact.path).latency is None
    assert found.estimate(artifact.path).missing == coverage.left
    runner = found.open(artifact.path)
    for feed, emulated in zip(feeds(1), found.emulate(artifact.path, feeds(1)), strict=True):
        assert np.abs(emulated["y"] - runner.run(feed)["y"]).max() < 2 / 256


def test_what_the_compiler_refuses_leaves_the_body(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Callable[..., Any]
) -> None:
    made()  # skips without the toolchain
    monkeypatch.setattr(compiling, "check", lambda graph, fmt: ())
    found = target()
    assert found.scheme is not None
    ops = {**found.scheme.ops, "Erf": found.scheme.ops["Relu"]}
    found.scheme = found.scheme.model_copy(update={"ops": ops})
    artifact = found.compile(quantized(net(FLOAT_END), found), "int8", tmp_path)
    (left,) = found.coverage(artifact.path).left
    assert left.op == "Erf"
    assert left.reason


def test_what_the_compiler_refuses_in_the_middle_is_an_error(
    made: Callable[..., Any], tmp_path: Path
) -> None:
    made()
    found = target()
    body = BODY.replace("b = Relu(a)", "b = Erf(a)")
    with pytest.raises(ModelError, match=r"Erf 'b\.node'|'b\.node'"):
        found.compile(quantized(net(body=body), found), "int8", tmp_path)
    assert not (tmp_path / "int8.ctx.onnx").exists()


def test_without_the_toolchain_the_model_is_written_and_said_to_be_uncompiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime_qnn" else real(name)
    )
    found = target()
    graph = quantized(net(FLOAT_END), found)
    artifact = found.compile(graph, "int8", tmp_path)
    assert not (tmp_path / "int8.ctx.onnx").exists()
    coverage = found.coverage(artifact.path)
    assert coverage.method == "rules"
    assert [item.op for item in coverage.left] == ["Erf"]
    assert any("not compiled" in note for note in artifact.notes)
    assert any("not compiled" in note for note in found.estimate(artifact.path).notes)
    assert found.compare_runtimes(artifact.path, graph, feeds(1)) is None
    with pytest.raises(ToolError, match="edgekit\\[qnn\\]"):
        found.emulate(artifact.path, feeds(1))
    assert open_runner(artifact.path, threads=1).run(feeds(1)[0])["y"].shape == (1, 8, 16, 16)


def test_coverage_is_known_before_any_sample(made: Callable[..., Any]) -> None:
    made()
    found = target()
    coverage = found.try_coverage(found.prepare(net(FLOAT_END)))
    assert coverage.method == "compiled"
    assert [item.op for item in coverage.left] == ["Erf"]
    assert [item.op for item in found.check(net(FLOAT_END))] == ["Erf"]


def test_a_float_node_in_the_body_is_an_error(
    monkeypatch: pytest.MonkeyPatch, made: Callable[..., Any], tmp_path: Path
) -> None:
    found, graph, _ = made()
    real = compile_context

    class Floats:
        float_nodes = ("c.node",)

    def with_floats(*args: Any, **more: Any) -> Any:
        compiled = real(*args, **more)
        object.__setattr__(compiled, "trace", Floats())
        return compiled

    monkeypatch.setattr(compiling, "compile_context", with_floats)
    with pytest.raises(ModelError, match=r"would compute 'c\.node' in float"):
        found.compile(graph, "int8", tmp_path)


def test_a_compiler_that_refuses_for_ever_is_an_error(
    monkeypatch: pytest.MonkeyPatch, made: Callable[..., Any], tmp_path: Path
) -> None:
    found, graph, _ = made()

    def refuse(model: Path, *args: Any, **more: Any) -> Any:
        from edgekit.target import LeftNode

        raise RefusedNodesError(model, (LeftNode("nowhere", "Conv", "no"),))

    monkeypatch.setattr(compiling, "compile_context", refuse)
    with pytest.raises(ModelError, match="HTP refuses 1 node"):
        found.compile(graph, "int8", tmp_path)


def test_other_kinds_and_missing_records_are_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    found, graph, artifact = made()
    with pytest.raises(UsageError, match="artifact kind"):
        found.compile(graph, "int4", tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        found.placement(tmp_path / "none.onnx")
    lonely = tmp_path / "int8.onnx"
    lonely.write_bytes(artifact.path.read_bytes())
    with pytest.raises(ModelError, match="Compile it again"):
        found.coverage(lonely)
    record = artifact.path.with_name("int8.qnn.json")
    (tmp_path / "int8.qnn.json").write_text(json.dumps({**json.loads(record.read_text()), "more": 1}))
    with pytest.raises(ModelError, match="no usable record"):
        found.coverage(lonely)
    floats = found.compile(net(), "float", tmp_path)
    assert found.placement(floats.path).integer_nodes == 0


def test_a_record_is_read_as_it_was_written(made: Callable[..., Any]) -> None:
    _, _, artifact = made("v75", FLOAT_END)
    record = Record.load(artifact.path)
    assert record.made_for["arch"] == 75
    assert record.seconds > 0
    assert Record(**{**vars(record)}).to_bytes() == artifact.path.with_name("int8.qnn.json").read_bytes()


def test_the_estimate_is_a_lower_bound_by_name(made: Callable[..., Any]) -> None:
    found, _, artifact = made()
    estimate = found.estimate(artifact.path)
    assert estimate.latency is not None
    assert estimate.latency.method == "model-estimate"
    assert estimate.memory["context binary"] > 0
    assert any("lower bound" in note for note in estimate.notes)


def test_layers_are_opened_at_every_tensor_but_those_that_are_moved(made: Callable[..., Any]) -> None:
    from edgekit.passes.quantized_ends import quantized_ends

    _, graph, _ = made()
    apart = Apart(quantized_ends(graph))
    given = {value.name for value in apart.opened.graph.input}
    assert {f"{name}@reference" for name in apart.tensors} <= given
    onnx.checker.check_model(apart.opened)
    assert set(apart.ops.values()) <= {"Conv", "Relu", "Sigmoid", "Mul", "DequantizeLinear"}
