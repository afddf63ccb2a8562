"""``edgekit debug`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edgekit import api
from edgekit.cli import main


@pytest.fixture
def argv(material: Path) -> list[str]:
    return ["debug", str(material / "net.onnx"), "--data", str(material / "photos"), "-q"]


def test_a_float_model(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0

    text = capsys.readouterr().out
    assert "ort-cpu:host" in text
    assert "int8 " in text
    assert "cosine" in text


def test_json_holds_everything_once(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert {"summary", "findings", "layers", "db", "shares", "preprocessing", "fix"} <= set(found)
    assert found["fix"] is None
    assert found["samples"] == 12


@pytest.mark.parametrize("folder", [False, True])
def test_fix_writes_a_quantized_file(
    folder: bool, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("made" if folder else "made.onnx")

    assert main([*argv, "--fix", "--out", str(out), "--json"]) == 0

    fix = json.loads(capsys.readouterr().out)["fix"]
    written = out / "int8.onnx" if folder else out
    assert fix["out"] == str(written)
    assert fix["db_after"] >= fix["db_before"] - 1e-6
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(written).graph.node)


def test_a_qdq_file_with_and_without_its_float_model(
    argv: list[str], material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "int8.onnx"
    api.quantize(api.load(material / "net.onnx"), str(material / "photos")).graph.save(path)
    capsys.readouterr()
    call = [argv[0], str(path), *argv[2:], "--json"]

    assert main(call) == 0
    assert json.loads(capsys.readouterr().out)["db_weights"] is None
    assert main([*call, "--float", str(material / "net.onnx")]) == 0
    assert json.loads(capsys.readouterr().out)["db_weights"] is not None


def test_a_bundle(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.export(material / "net.onnx", material / "photos", "ort-cpu:host-1t", out=tmp_path / "b", runs=1)
    capsys.readouterr()

    assert main(["debug", str(tmp_path / "b"), "--data", str(material / "photos"), "-q"]) == 0
    assert "the bundle's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--fix"], "--out"),
        (["--out", "x.onnx"], "--fix"),
        (["--target", "null"], "float only"),
        (["--float", "nothing.onnx"], "--float"),
        (["--preprocess", "color=red"], "color"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_usage_errors_are_one_line(
    extra: list[str], message: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, *extra]) == 2

    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_missing_model_is_one_line(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "nothing.onnx", "--data", str(material / "photos"), "-q"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
