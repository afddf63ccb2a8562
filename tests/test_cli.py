"""The command line, end to end, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import main
from edgekit.commands.shell import read_shapes
from edgekit.errors import UsageError
from edgekit.quantize.quantize import Options

ROOT = Path(__file__).parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "bundle"
    arguments = ["export", str(material / "net.onnx"), "--data", str(material / "photos"), "--out", str(out)]
    options = ["--target", "ort-cpu:host-1t", "--preprocess", "resize=stretch", "--calibrator", "minmax"]
    assert main([*arguments, *options, "--runs", "2", "--quiet"]) == 0
    return out


def as_json(capsys: Capture, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run with ``--json``; standard output must hold exactly one document."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json", "--quiet"]) == code
    captured = capsys.readouterr()
    if code == 0:
        assert captured.err == ""
    return dict(json.loads(captured.out))


def as_text(capsys: Capture, *arguments: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == code
    return capsys.readouterr().out


def test_export_answers(material: Path, bundle: Path, capsys: Capture) -> None:
    arguments = ("export", material / "net.onnx", "--data", material / "photos", "--out", bundle)
    options = ("--target", "ort-cpu:host-1t", "--preprocess", "resize=stretch", "--calibrator", "minmax")
    found = as_json(capsys, *arguments, *options, "--runs", "2")
    assert (found["bundle"], found["ok"], found["missed"]) == (str(bundle), True, [])
    assert found["report"]["command"].startswith("edgekit export ")
    text = as_text(capsys, *arguments, *options, "--runs", "2")
    assert "net.onnx on ort-cpu:host-1t" in text
    assert f"Report: {bundle}/report.html" in text


def test_run_with_a_missed_budget_ends_with_1(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    settings = (
        "--set",
        "budget.size_mb=0.0001",
        "--set",
        "evaluate.task=outputs",
        "--target",
        "ort-cpu:host-1t",
    )
    found = as_json(capsys, "run", material / "recipe.toml", "--out", out, "--runs", "2", *settings, code=1)
    assert found["missed"] == ["size_mb"]
    assert (out / "manifest.json").is_file()
    text = as_text(capsys, "run", material / "recipe.toml", "--out", out, "--runs", "2", *settings, code=1)
    assert "Budget missed" in text


def test_quantize(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "q.onnx"
    arguments = ("quantize", material / "net.onnx", "--data", material / "photos", "--out", out)
    found = as_json(capsys, *arguments, "--calibrator", "minmax")
    assert out.stat().st_size == found["size_bytes"]
    assert found["db"] > 10
    assert found["rungs"]
    assert "ranges by minmax" in as_text(capsys, *arguments, "--calibrator", "minmax")


def test_bench(material: Path, bundle: Path, capsys: Capture) -> None:
    found = as_json(capsys, "bench", bundle, "--runs", "2")
    assert set(found["samples_ms"]) == {"float", "int8"}
    text = as_text(
        capsys, "bench", material / "net.onnx", "--against", bundle, "--threads", "1", "--runs", "2"
    )
    assert "1 thread" in text
    assert "as fast" in text


def test_parity(material: Path, bundle: Path, capsys: Capture) -> None:
    found = as_json(capsys, "parity", bundle)
    (target,) = found["targets"]
    assert found["ok"]
    assert len(target["replay"]) == 4
    assert {row["max_abs"] for row in target["replay"]} == {0.0}
    text = as_text(capsys, "parity", bundle, "--data", material / "photos", "--layers", "--limit", "3")
    assert "int8 against float on 3 samples" in text
    assert "layers" in text


def test_parity_notices_another_result(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgekit.pipeline.check.replay", lambda *_: {"max_abs": 1.0, "cosine": 0.0, "ok": False}
    )
    assert "DIFFERS" in as_text(capsys, "parity", bundle, code=1)


def test_inspect(material: Path, capsys: Capture) -> None:
    found = as_json(capsys, "inspect", material / "net.onnx", "--target", "ort-cpu")
    assert found["target"] == "ort-cpu:host"
    text = as_text(capsys, "inspect", material / "net.onnx", "--target", "ort-cpu")
    assert "stay in float on ort-cpu:host" in text
    assert "give --data" in text
    assert "range clash" in as_text(capsys, "inspect", material / "net.onnx", "--data", material / "photos")


@pytest.mark.parametrize("name", ["targets", "models", "doctor"])
def test_lists(name: str, capsys: Capture) -> None:
    assert as_json(capsys, name)
    assert as_text(capsys, name)


def test_one_target_and_one_model(capsys: Capture) -> None:
    assert as_json(capsys, "targets", "ort-cpu:rpi4")["profile"]["name"] == "rpi4"
    text = as_text(capsys, "targets", "ort-cpu")
    assert "Mul" in text
    assert as_json(capsys, "models", "yolo")["name"] == "yolo"
    assert "recipe" in as_text(capsys, "models", "yolo")


@pytest.mark.parametrize(
    ("features", "state"),
    [(["AVX2"], "warning"), (["AVX2", "AVX-VNNI"], "ok"), (["NEON"], "warning"), ([], "warning")],
)
def test_the_doctor_knows_which_instructions_matter(features: list[str], state: str) -> None:
    from edgekit.commands.about import _instructions

    assert _instructions(features)["state"] == state


def test_help_and_version_are_quick_and_light() -> None:
    code = "import sys, edgekit.cli as c; c.main(['--help']); print(*sys.modules, file=sys.stderr)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    # Ten times what it takes on a quiet machine.
    assert time.perf_counter() - start < 3
    assert "export" in done.stdout
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "PIL", "pydantic", "rich", "jinja2"}
    assert heavy.isdisjoint(done.stderr.split())


def test_without_arguments_the_help_is_shown(capsys: Capture) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: edgekit")


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgekit 0.")


@pytest.mark.parametrize(
    "arguments",
    [["export"], ["nonsense"], ["bench", "x", "--runs", "0"], ["bench", "x", "--nonsense"], ["run"]],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: Capture) -> None:
    found = as_json(capsys, *arguments, code=2)
    assert found["error"]["type"] == "UsageError"
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")


def test_what_user_code_prints_stays_out_of_the_document(
    material: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy_samples.py").write_text(
        "import numpy as np\n"
        "def samples():\n    print('hello')\n    return [np.ones((3, 32, 32), np.float32)] * 2\n"
    )
    main(["inspect", str(material / "net.onnx"), "--data", "noisy_samples:samples", "--json", "--quiet"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["source"]
    assert "hello" in captured.err


def test_ctrl_c_says_how_to_go_on(
    material: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.pipeline.line.quantize_step", interrupted)
    arguments = ["run", str(material / "recipe.toml"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 130
    error = capsys.readouterr().err
    assert "run the same command again" in error
    assert as_json(capsys, *arguments, code=130)["error"]["type"] == "InterruptError"


def test_a_fault_is_one_line_and_debug_shows_it_all(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("edgekit.registry.list_targets", broken)
    assert main(["targets"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ZeroDivisionError: by zero")
    assert "--debug" in error
    assert as_json(capsys, "targets", code=1)["error"]["type"] == "InternalError"
    with pytest.raises(ZeroDivisionError):
        main(["targets", "--debug"])


def test_progress_goes_to_stderr_in_plain_lines(material: Path, capsys: Capture) -> None:
    assert main(["inspect", str(material / "net.onnx"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert "capture" in captured.err


def test_input_shapes_are_read() -> None:
    assert read_shapes(["a=1,3,8,8", "b:0=1x2"]) == {"a": (1, 3, 8, 8), "b:0": (1, 2)}
    bad: Callable[[str], Any] = lambda text: pytest.raises(UsageError, match="--input-shape")  # noqa: E731
    for text in ("a", "a=", "=1", "a=1,-3", "a=0"):
        with bad(text):
            read_shapes([text])


def test_defaults_named_in_the_help_are_the_quantizers(capsys: Capture) -> None:
    assert main(["quantize", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"costlier ways are tried; {Options().target_db:g} by default" in text
    assert f"{Options().reconstruct_seconds:g} by default, 0 never does it" in text
    assert f"keeps; {Options().percentile:g} by default" in text
