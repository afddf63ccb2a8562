"""What int8 ``.tflite`` files take and return as asked, and what a microcontroller's memories say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit import api
from edgekit.cli import main
from edgekit.errors import UsageError
from edgekit.pipeline.line import Outcome

pytest.importorskip("ai_edge_litert")

Ends = Literal["quantized", "float"] | None

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    tiny (float[1,3,16,16] x) => (float[1,8,8,8] y) {
        a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w2)
    }"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3))):
        weight = (random.standard_normal(shape) / 4).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "data.npz", x=random.standard_normal((8, 3, 16, 16)).astype(np.float32))
    return folder


def _export(work: Path, io: Ends, target: str = "litert:host-1t") -> Outcome:
    out = work / f"{target.partition(':')[0]}-{io}"
    return api.export(work / "net.onnx", work / "data.npz", target, out=out, io=io, runs=2)


@pytest.mark.parametrize(("io", "dtypes"), [(None, "int8"), ("quantized", "int8"), ("float", "float32")])
def test_the_file_has_the_ends_that_were_asked_for(work: Path, io: Ends, dtypes: str) -> None:
    from edgekit.tflite.package import read_package

    outcome = _export(work, io)
    model, described = read_package(outcome.bundle / "litert-host-1t" / "int8.tflite")
    ends = [*described.inputs, *described.outputs]
    assert {str(entry.dtype) for entry in ends} == {dtypes}
    assert ("QUANTIZE" in model.counts()) is (io == "float")
    assert ("runtimes" in outcome.report["targets"][0]) is (io != "float")


def test_both_ends_compute_the_same(work: Path) -> None:
    from edgekit.registry import load_target

    with np.load(work / "data.npz") as file:
        feeds = {"x": file["x"][:1]}
    target = load_target("litert:host-1t")
    ends: tuple[Ends, ...] = ("quantized", "float")
    found = [
        target.open(_export(work, io).bundle / "litert-host-1t" / "int8.tflite").run(feeds)["y"]
        for io in ends
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_target_without_a_choice_says_so(work: Path) -> None:
    with pytest.raises(UsageError, match="'ort-cpu' has no choice"):
        _export(work, "float", "ort-cpu:host-1t")
    arguments = ["export", str(work / "net.onnx"), "--data", str(work / "data.npz"), "--target", "litert"]
    assert main([*arguments, "--out", str(work / "no"), "--io", "int4"]) == 2
    assert not (work / "no").exists()


def test_a_microcontrollers_memories_are_in_the_report(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tflite_micro")
    from edgekit.report.terminal import summary

    outcome = _export(work, None, "tflm:pico2")
    (entry,) = outcome.report["targets"]
    need = entry["estimate"]["int8"]
    size = (outcome.bundle / "tflm-pico2" / "int8.tflite").stat().st_size
    assert need["memory"]["flash"] == size
    assert 1000 < need["memory"]["arena"] < 100_000
    assert need["problems"] == []
    assert need["latency"] is None
    assert "latency" not in entry
    text = summary(outcome.report)
    assert "Memory on the device" in text
    assert "incomplete" not in text
    assert any("says nothing about the board" in warning for warning in outcome.report["warnings"])


def test_what_does_not_fit_is_a_warning(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tflite_micro")
    from edgekit.targets.tflm.hardware import Board
    from edgekit.targets.tflm.target import TflmTarget

    small = TflmTarget.create("pico2").board.model_copy(update={"arena_bytes": 100})
    assert isinstance(small, Board)
    monkeypatch.setattr(TflmTarget, "board", property(lambda self: small))
    out = work / "small"
    outcome = api.export(work / "net.onnx", work / "data.npz", "tflm:pico2", out=out, runs=2)
    assert any("Does not run on the board: the tensor arena" in w for w in outcome.report["warnings"])
