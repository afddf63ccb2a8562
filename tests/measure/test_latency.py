"""Latency: figures order as the work does, and whatever fails is told."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError, ToolError, UsageError
from edgekit.measure.latency import Effort, compare, measure_latency, random_feeds
from edgekit.measure.result import Method
from edgekit.target import Profile

BOARD = Profile("toy", "Toy Board", threads=64, memory_bytes=1)
FEEDS = {"x": np.ones((1, 16, 24, 24), np.float32)}


def _stack(path: Path, layers: int, *, size: int | str = 24, ballast: int = 0) -> Path:
    """``layers`` 3x3 convolutions of 16 channels; ``ballast`` adds that many floats of unused-looking
    weight."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray[Any, Any]] = {
        f"w{i}": random.normal(size=(16, 16, 3, 3)).astype(np.float32) * 0.1 for i in range(layers)
    }
    nodes = [
        helper.make_node("Conv", ["x" if i == 0 else f"t{i}", f"w{i}"], [f"t{i + 1}"], pads=[1, 1, 1, 1])
        for i in range(layers)
    ]
    last = f"t{layers}"
    if ballast:
        weights["ballast"] = random.normal(size=(ballast // 1024, 1024)).astype(np.float32)
        nodes.append(helper.make_node("ReduceMax", ["ballast"], ["most"], keepdims=0))
        nodes.append(helper.make_node("Add", [last, "most"], ["sum"]))
        last = "sum"
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, size, size])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_thirty_layers_take_longer_than_one(tmp_path: Path) -> None:
    models = {"deep": _stack(tmp_path / "30.onnx", 30), "flat": _stack(tmp_path / "1.onnx", 1)}
    calls: list[tuple[int, int]] = []
    result = measure_latency(
        models, FEEDS, threads=1, runs=20, memory=False, progress=lambda a, b: calls.append((a, b))
    )
    assert result.latency["deep"].value > 4 * result.latency["flat"].value
    assert result.speedup["flat"].value > 4
    assert result.speedup["flat"].spread["min"] <= result.speedup["flat"].spread["max"]
    assert calls[-1] == (20, 20)
    for name, value in result.latency.items():
        spread = value.spread
        assert (value.unit, value.method, spread["count"]) == ("ms", Method.HOST, 20)
        assert spread["min"] <= value.value == spread["p50"] <= spread["p95"] <= spread["max"]
        assert value.value == pytest.approx(np.median(result.samples_ms[name]))


def test_a_model_against_itself_is_a_tie(tmp_path: Path) -> None:
    path = _stack(tmp_path / "m.onnx", 12)
    result = compare({"a": path, "b": path}, threads=1, effort=Effort(runs=60), memory=False)
    assert result.speedup["b"].value == pytest.approx(1.0, rel=0.35)


def test_the_json_is_the_latency_part_of_a_report(tmp_path: Path) -> None:
    models = {"float": _stack(tmp_path / "f.onnx", 2), "int8": _stack(tmp_path / "i.onnx", 1)}
    result = measure_latency(models, FEEDS, threads=1, runs=5)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["threads"] == 1
    assert content["speedup"] == pytest.approx(content["float"]["value"] / content["int8"]["value"])
    assert len(content["samples_ms"]["float"]) == content["float"]["spread"]["count"]
    assert content["peak_memory"].keys() == {"float", "int8"}
    assert content["cpu"]


def test_one_model_has_no_speedup(tmp_path: Path) -> None:
    result = measure_latency(
        {"float": _stack(tmp_path / "f.onnx", 1)}, FEEDS, threads=1, runs=3, memory=False
    )
    assert "speedup" not in result.to_json()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_the_process_is_kept_on_as_many_cores_as_threads_and_ours_is_not(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    result = compare({"a": _stack(tmp_path / "f.onnx", 1)}, threads=1, effort=Effort(runs=3), memory=False)
    assert len(result.pinned) == 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system has no /proc")
def test_peak_memory_is_the_models_and_not_the_callers(tmp_path: Path) -> None:
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    models = {
        "light": _stack(tmp_path / "l.onnx", 1),
        "heavy": _stack(tmp_path / "h.onnx", 1, ballast=16_000_000),
    }
    peak = measure_latency(models, FEEDS, threads=1, runs=2).peak_memory
    assert peak["light"].value < 20e6
    assert 60e6 < peak["heavy"].value < 260e6
    assert peak["light"].spread["process"] < len(held)
    assert (peak["heavy"].unit, peak["heavy"].method) == ("bytes", Method.HOST)


def test_a_boards_profile_gives_a_host_figure_that_says_so(tmp_path: Path) -> None:
    result = compare(
        {"a": _stack(tmp_path / "f.onnx", 1)}, profile=BOARD, effort=Effort(runs=3), memory=False
    )
    notes = " ".join(result.notes)
    assert "not on Toy Board" in notes
    assert "64 threads were asked for" in notes
    assert result.threads < 64
    assert result.latency["a"].method is Method.HOST


def test_the_time_budget_ends_a_long_measurement_early(tmp_path: Path) -> None:
    effort = Effort(runs=100_000, min_runs=4, budget_s=0.3)
    result = compare({"a": _stack(tmp_path / "f.onnx", 4)}, threads=1, effort=effort, memory=False)
    assert 4 <= result.latency["a"].spread["count"] < 100_000
    assert any("the time budget was used up" in note for note in result.notes)


def test_models_of_different_input_sizes_are_compared(tmp_path: Path) -> None:
    models = {
        "small": _stack(tmp_path / "s.onnx", 8, size=12),
        "large": _stack(tmp_path / "l.onnx", 8, size=48),
    }
    result = compare(models, threads=1, effort=Effort(runs=20), memory=False)
    assert result.speedup["large"].value < 0.5


def test_a_measurement_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"longer than 0\.05 s"):
        measure_latency({"a": _stack(tmp_path / "f.onnx", 1)}, FEEDS, threads=1, timeout_s=0.05)


def test_a_missing_and_a_broken_file_are_tool_errors(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such file"):
        measure_latency({"a": tmp_path / "nothing.onnx"}, FEEDS)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"planted")
    with pytest.raises(ToolError, match=r"model 'a':.*broken\.onnx"):
        measure_latency({"a": broken}, FEEDS, threads=1)
    with pytest.raises(ToolError, match=r"broken\.onnx"):
        compare({"a": broken})


def test_feeds_that_do_not_fit_are_a_tool_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="the measurement failed"):
        measure_latency({"a": _stack(tmp_path / "f.onnx", 1)}, {"y": np.ones(1, np.float32)}, threads=1)


def test_wrong_arguments_are_refused_before_anything_runs(tmp_path: Path) -> None:
    path = _stack(tmp_path / "f.onnx", 1)
    with pytest.raises(UsageError, match="no model"):
        measure_latency({}, FEEDS)
    with pytest.raises(UsageError, match="'threads' cannot be the label"):
        measure_latency({"threads": path}, FEEDS)
    with pytest.raises(UsageError, match="runs: must be greater than 0"):
        measure_latency({"a": path}, FEEDS, runs=0)
    with pytest.raises(UsageError, match="threads: must not be negative"):
        measure_latency({"a": path}, FEEDS, threads=-1)
    with pytest.raises(UsageError, match="warmup"):
        Effort(warmup=-1)


def test_random_feeds_fit_the_model_and_repeat(tmp_path: Path) -> None:
    path = _stack(tmp_path / "f.onnx", 1)
    first, second = random_feeds(path), random_feeds(path)
    assert first["x"].shape == (1, 16, 24, 24)
    assert first["x"].dtype == np.float32
    np.testing.assert_array_equal(first["x"], second["x"])


def test_random_feeds_need_fixed_shapes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'x' has no fixed shape"):
        random_feeds(_stack(tmp_path / "f.onnx", 1, size="side"))


def _relu(path: Path, *, package: bool) -> Path:
    """A .tflite with one RELU, as another tool writes it or with edgekit's metadata."""
    from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel
    from edgekit.tflite.package import ENTRY, IoTensor, PackageIo
    from edgekit.tflite.write import write_model

    step = Quantization.single(0.01, -128)
    tensors = {n: Tensor(n, (1, 24, 24, 16), DType.INT8, step) for n in ("a", "b")}
    ends = [
        IoTensor(
            name=name, tensor=tensor, logical=(1, 16, 24, 24), shape=(1, 24, 24, 16), axes=(0, 2, 3, 1),
            dtype=DType.INT8, scale=0.01, zero_point=-128,
        )
        for name, tensor in ("xi", "yo")
    ]  # fmt: skip
    io = PackageIo(inputs=(ends[0],), outputs=(ends[1],), results=("y",))
    metadata = {ENTRY: io.model_dump_json()} if package else {}
    operator = Operator("RELU", ("a",), ("b",))
    path.write_bytes(write_model(TfliteModel(tensors, (operator,), {"i": "a"}, {"o": "b"}, metadata)))
    return path


def test_onnx_and_tflite_files_are_timed_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    models = {
        "float": _stack(tmp_path / "f.onnx", 12),
        "int8": _relu(tmp_path / "i.tflite", package=True),
        "other": _relu(tmp_path / "o.tflite", package=False),
    }
    feeds = {label: random_feeds(path) for label, path in models.items()}
    assert feeds["int8"].keys() == feeds["float"].keys() == {"x"}
    assert feeds["int8"]["x"].shape == (1, 16, 24, 24)
    assert (feeds["other"]["i"].dtype, feeds["other"]["i"].shape) == (np.int8, (1, 24, 24, 16))
    result = compare(models, threads=1, effort=Effort(runs=10))
    assert result.speedup["int8"].value > 1
    assert result.latency["other"].spread["count"] == 10
    assert "'int8', 'other' ran in LiteRT" in result.notes[-1]
    if Path("/proc/self/status").is_file():
        assert result.peak_memory["int8"].value < 30e6


def test_a_broken_tflite_is_a_tool_error(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"planted")
    with pytest.raises(ToolError, match=r"broken\.tflite: cannot be read as TFLite"):
        compare({"a": broken})
    with pytest.raises(ToolError, match=r"model 'a': .*TFLite"):
        measure_latency({"a": broken}, FEEDS, threads=1)
