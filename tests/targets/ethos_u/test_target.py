"""The target as the pipeline uses it: files, runner, placement, estimate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.measure.result import Method
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.targets.ethos_u.target import EthosUTarget, compiled_path, report_path

pytest.importorskip("ethosu")
pytest.importorskip("ai_edge_litert")


@pytest.fixture
def target() -> EthosUTarget:
    return EthosUTarget.create("u55-256")


def _compiled(target: EthosUTarget, graph: Graph, folder: Path) -> Path:
    assert target.scheme is not None
    return target.compile(target.lower(with_made_up_ranges(graph, target.scheme)), "int8", folder).path


def test_int8_is_three_files_and_an_estimate(
    target: EthosUTarget, around: Callable[..., Graph], tmp_path: Path
) -> None:
    graph = around("Conv", [(1, 8, 16, 16)], ((8, 8, 3, 3),), pads=[1, 1, 1, 1])
    path = _compiled(target, graph, tmp_path)
    assert path.name == "int8.tflite"
    assert b"ethos-u" in compiled_path(path).read_bytes()
    assert b"ethos-u" not in path.read_bytes()
    content = json.loads(report_path(path).read_text())
    assert content["result"]["complete"] is True
    placement = target.placement(path)
    assert (placement.integer_nodes, placement.float_nodes, placement.left) == (3, 0, ())
    estimate = target.estimate(path)
    assert estimate.latency is not None
    assert estimate.latency.method is Method.COMPILER_ESTIMATE
    assert estimate.latency.value == pytest.approx(content["result"]["milliseconds"])
    cycles = [layer["cycles"] for layer in estimate.layers]
    assert cycles == sorted(cycles, reverse=True)
    assert estimate.memory["SRAM"] == content["result"]["sram_bytes"]
    feeds = {"x0": np.random.default_rng(0).random((1, 8, 16, 16), np.float32)}
    assert target.open(path).run(feeds)["y"].shape == (1, 72, 16, 16)


def test_what_stays_on_the_cpu_is_named_and_there_is_no_estimate(
    target: EthosUTarget, around: Callable[..., Graph], tmp_path: Path
) -> None:
    graph = around("Gather", [(1, 16, 64)], (np.array([3, 1], np.int64),), axis=1)
    path = _compiled(target, graph, tmp_path)
    placement = target.placement(path)
    assert (placement.integer_nodes, placement.float_nodes) == (2, 1)
    (left,) = placement.left
    assert left.op == "GATHER"
    assert left.reason == "on the CPU: Unsupported opType"
    estimate = target.estimate(path)
    assert estimate.latency is None
    assert [(node.op, node.reason) for node in estimate.missing] == [(left.op, "Unsupported opType")]
    assert [finding.node for finding in target.check(graph)] == ["node"]


def test_a_stale_report_is_not_believed(
    target: EthosUTarget, around: Callable[..., Graph], tmp_path: Path
) -> None:
    path = _compiled(target, around("Relu", [(1, 8, 16, 16)]), tmp_path)
    expected = target.vela(path)
    report = report_path(path)
    content = json.loads(report.read_text())
    content["result"]["cycles"] += 1
    report.write_text(json.dumps(content))
    assert target.vela(path).cycles == expected.cycles + 1
    content["made_for"]["tflite_sha256"] = "0"
    report.write_text(json.dumps(content))
    assert target.vela(path).cycles == expected.cycles
    report.unlink()
    assert target.vela(path).cycles == expected.cycles
    other = EthosUTarget.create("u55-128")
    assert other.vela(path).cycles > expected.cycles


def test_float_is_an_onnx_file(target: EthosUTarget, around: Callable[..., Graph], tmp_path: Path) -> None:
    artifact = target.compile(around("Relu", [(1, 8, 16, 16)]), "float", tmp_path)
    assert artifact.path.name == "float.onnx"
    placement = target.placement(artifact.path)
    assert (placement.integer_nodes, placement.float_nodes, placement.left) == (0, 3, ())
    with pytest.raises(ModelError, match=r"is no \.tflite"):
        target.estimate(artifact.path)
