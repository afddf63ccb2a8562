"""What every target and every profile must do. A new target is covered as soon as its folder is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import registry
from edgekit.errors import EdgekitError, ModelError, UsageError
from edgekit.graph import Graph
from edgekit.session import open_runner
from edgekit.target import Target

EVERY = [f"{summary.name}:{profile}" for summary in registry.list_targets() for profile in summary.profiles]
STEP = 0.05


#: Package that a target's runtime is, where it does not come with edgekit.
NEEDS = {
    "litert": "ai_edge_litert",
    "tflm": "tflite_micro",
    "ethos-u": "ethosu",
    "qnn-htp": "onnxruntime_qnn",
}


def _graph(quantized: bool, activation: np.dtype[Any] | None = None) -> Graph:
    """conv3x3 with ReLU and global average pooling; in the quantized form with Q and DQ nodes around the
    conv, whose activations are of the type given, uint8 without."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(8, 3, 3, 3)).astype(np.float32) * 0.2
    bias = np.zeros(8, np.float32)
    scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
    codes = np.round(weight / scales.reshape(-1, 1, 1, 1)).astype(np.int8)
    arrays: dict[str, np.ndarray[Any, Any]] = {"b": bias}
    nodes = []
    if quantized:
        arrays |= {"wq": codes, "ws": scales.astype(np.float32), "wz": np.zeros(8, np.int8)}
        codes_of = np.dtype(np.uint8) if activation is None else activation
        lowest = int(np.iinfo(codes_of).min)
        arrays |= {"s": np.array(STEP, np.float32), "z": np.array(lowest + 128, codes_of)}
        arrays |= {"r": np.array(STEP, np.float32), "rz": np.array(lowest, codes_of)}
        del arrays["b"]
        arrays |= {
            "bq": np.zeros(8, np.int32),
            "bs": (scales * STEP).astype(np.float32),
            "bz": np.zeros(8, np.int32),
        }
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
            helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["b"], axis=0),
        ]
    else:
        arrays["w"] = weight
    nodes.append(
        helper.make_node(
            "Conv", ["xd" if quantized else "x", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"
        )
    )
    nodes.append(helper.make_node("Relu", ["c"], ["a"], name="relu"))
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["a", "r", "rz"], ["aq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["aq", "r", "rz"], ["ad"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["ad" if quantized else "a"], ["y"], name="pool"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


def _feeds() -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(name: str) -> Target:
    return registry.load_target(name)


@pytest.fixture
def runtime(target: Target) -> None:
    """Skips where the package of the target's runtime is not installed."""
    if target.name in NEEDS:
        pytest.importorskip(NEEDS[target.name])


def _quantized(target: Target) -> Graph:
    """The quantized network in the target's own format of activations."""
    return _graph(True, None if target.scheme is None else np.dtype(target.scheme.activation.value))


def test_it_has_a_name_a_title_and_the_profile_that_was_asked_for(name: str, target: Target) -> None:
    assert f"{target.name}:{target.profile.name}" == name
    assert target.title
    assert target.profile.title


def test_it_describes_itself_in_json(target: Target) -> None:
    described = json.loads(json.dumps(target.describe(), allow_nan=False))
    assert described["name"] == target.name
    assert described["profile"]["name"] == target.profile.name
    assert target.profile.name in described["profiles"]


def test_every_figure_of_a_board_has_a_source(target: Target) -> None:
    if not target.profile.host:
        assert "threads:" in target.profile.source
        assert "memory_bytes:" in target.profile.source
        assert target.profile.memory_bytes > 0


@pytest.mark.usefixtures("runtime")
def test_the_float_model_compiled_computes_what_onnx_runtime_computes(target: Target, tmp_path: Path) -> None:
    graph = _graph(quantized=False)
    before = graph.sha256()
    artifact = target.compile(target.lower(graph), "float", tmp_path)
    assert (artifact.kind, artifact.path.parent) == ("float", tmp_path)
    assert artifact.size_bytes == artifact.path.stat().st_size > 0
    assert graph.sha256() == before
    expected = open_runner(graph, threads=1, optimize=False).run(_feeds())
    got = target.open(artifact.path, threads=1).run(_feeds())
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("runtime")
def test_the_quantized_model_computes_what_its_file_says(target: Target, tmp_path: Path) -> None:
    graph = _quantized(target)
    artifact = target.compile(target.lower(graph), "int8", tmp_path)
    expected = open_runner(graph, threads=1, optimize=False).run(_feeds())
    got = target.open(artifact.path, threads=1).run(_feeds())
    # Kernels may round a tie the other way: one step in single elements, far less in the average that comes
    # out.
    np.testing.assert_allclose(got["y"], expected["y"], atol=STEP / 4)
    assert np.abs(got["y"]).max() > STEP


@pytest.mark.usefixtures("runtime")
def test_it_opens_with_the_profiles_own_threads(target: Target, tmp_path: Path) -> None:
    artifact = target.compile(_graph(quantized=False), "float", tmp_path)
    assert target.open(artifact.path).run(_feeds())["y"].shape == (1, 8, 1, 1)


@pytest.mark.usefixtures("runtime")
def test_placement_accounts_for_every_node(target: Target, tmp_path: Path) -> None:
    float_path = target.compile(target.lower(_graph(quantized=False)), "float", tmp_path).path
    int8_path = target.compile(target.lower(_quantized(target)), "int8", tmp_path).path
    plain, quantized = target.placement(float_path), target.placement(int8_path)
    assert plain.integer_nodes == plain.conversions == 0
    assert plain.float_nodes == sum(plain.ops.values()) > 0
    assert plain.left == ()
    counted = quantized.integer_nodes + quantized.float_nodes + quantized.conversions
    assert 0 < counted <= sum(quantized.ops.values())
    assert len(quantized.left) == quantized.float_nodes
    assert all(left.reason and left.op for left in quantized.left)


def test_an_unknown_kind_is_refused_and_nothing_is_written(target: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        target.compile(_graph(quantized=False), "../int7", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_missing_or_broken_artifact_is_a_model_error(
    target: Target, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        target.open(path)
    with pytest.raises(EdgekitError, match=r"broken\.onnx"):
        target.placement(path)
