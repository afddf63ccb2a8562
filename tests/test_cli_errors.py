"""What users get wrong, end to end: the message, the exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.cli import main

Capture = pytest.CaptureFixture[str]


def export(
    capsys: Capture, model: Path, data: Path, out: Path, *options: str, code: int, target: str = "ort-cpu"
) -> str:
    """Run export, expect ``code``, check that nothing was written; returns the message."""
    arguments = ["export", str(model), "--data", str(data), "--out", str(out), "--target", target, *options]
    before = sorted(out.rglob("*")) if out.is_dir() else None
    capsys.readouterr()
    assert main([*arguments, "--json", "--quiet", "--preprocess", "resize=stretch"]) == code
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert captured.err == f"error: {error['message']}\n"
    assert (sorted(out.rglob("*")) if out.is_dir() else None) == before
    return str(error["message"])


def test_a_truncated_model(material: Path, tmp_path: Path, capsys: Capture) -> None:
    content = (material / "net.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    message = export(capsys, tmp_path / "cut.onnx", material / "photos", tmp_path / "out", code=2)
    assert "cut.onnx" in message


def test_a_model_that_is_not_there(material: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "none.onnx" in export(capsys, tmp_path / "none.onnx", material / "photos", tmp_path / "o", code=2)


@pytest.mark.parametrize("location", ["gone.bin", "../net.onnx", "/etc/hostname"])
def test_weights_that_lie_elsewhere(material: Path, tmp_path: Path, location: str, capsys: Capture) -> None:
    (tmp_path / "m").mkdir()
    shutil.copy(material / "net.onnx", tmp_path / "net.onnx")
    model = onnx.load(material / "net.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m" / "x.onnx").write_bytes(model.SerializeToString())
    message = export(capsys, tmp_path / "m" / "x.onnx", material / "photos", tmp_path / "o", code=2)
    assert location in message


def test_weights_that_are_not_numbers(material: Path, tmp_path: Path, capsys: Capture) -> None:
    model = onnx.load(material / "net.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "w2")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    onnx.save(model, tmp_path / "nan.onnx")
    message = export(capsys, tmp_path / "nan.onnx", material / "photos", tmp_path / "o", code=2)
    assert "w2" in message


@pytest.mark.parametrize(("op", "domain"), [("Wonder", ""), ("Relu", "my.domain")])
def test_an_operator_that_nobody_knows(
    material: Path, tmp_path: Path, op: str, domain: str, capsys: Capture
) -> None:
    model = onnx.load(material / "net.onnx")
    relu = model.graph.node[1]
    relu.op_type, relu.domain = op, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, tmp_path / "odd.onnx")
    message = export(capsys, tmp_path / "odd.onnx", material / "photos", tmp_path / "o", code=2)
    assert op in message


def test_arrays_of_the_wrong_shape(material: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "x.npz", images=np.ones((4, 3, 16, 16), np.float32))
    message = export(capsys, material / "net.onnx", tmp_path / "x.npz", tmp_path / "o", code=2)
    assert "[3, 16, 16]" in message
    assert "[1, 3, 32, 32]" in message


def test_a_shape_that_the_model_does_not_have(material: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--input-shape", "images=1,3,64,64")
    message = export(capsys, material / "net.onnx", material / "photos", tmp_path / "o", *options, code=2)
    assert "images" in message


def test_an_unknown_target_lists_the_known(material: Path, tmp_path: Path, capsys: Capture) -> None:
    message = export(
        capsys, material / "net.onnx", material / "photos", tmp_path / "o", code=2, target="ort-gpu"
    )
    assert "ort-cpu" in message
    message = export(
        capsys, material / "net.onnx", material / "photos", tmp_path / "o", code=2, target="ort-cpu:rpi9"
    )
    assert "rpi4" in message


def test_an_empty_folder(material: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "none").mkdir()
    assert "empty" in export(capsys, material / "net.onnx", tmp_path / "none", tmp_path / "o", code=2)


def test_a_folder_without_one_readable_image(material: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "bad.png").write_bytes(b"no image")
    message = export(capsys, material / "net.onnx", tmp_path / "p", tmp_path / "o", code=2)
    assert "bad.png" in message


def test_wrong_preprocessing(material: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [
        "export",
        str(material / "net.onnx"),
        "--data",
        str(material / "photos"),
        "--target",
        "ort-cpu",
    ]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--preprocess", "resize=squeeze"]) == 2
    assert "letterbox, stretch, none" in capsys.readouterr().err


def test_out_that_cannot_be_written_is_refused_at_once(
    material: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("edgekit.pipeline.line.capture_step", never)
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out"
    assert "is a file" in export(capsys, material / "net.onnx", material / "photos", out, code=1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    assert "did not make" in export(capsys, material / "net.onnx", material / "photos", foreign, code=1)
    monkeypatch.setattr("edgekit.capture.capture", never)
    arguments = ["quantize", str(material / "net.onnx"), "--data", str(material / "photos")]
    assert main([*arguments, "--out", str(out), "--quiet"]) == 1


def test_a_full_disk(
    material: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgekit.files.os.fdopen", full)
    message = export(capsys, material / "net.onnx", material / "photos", tmp_path / "o", code=1)
    assert "No space left on device" in message
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert left == []


def test_a_recipe_with_a_wrong_key(material: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["run", str(material / "recipe.toml"), "--set", "quantize.calibrater=mse"]) == 2
    assert "calibrator" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "none.toml")]) == 2


def test_a_decoder_that_does_not_fit(material: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["run", str(material / "recipe.toml"), "--out", str(tmp_path / "o"), "--quiet"]
    assert main([*arguments, "--set", "evaluate.decode=yolov9"]) == 2
    assert "yolov8" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "parity"])
def test_what_is_no_bundle(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert main([command, str(tmp_path / "none")]) == 2
