"""From a model and photographs to a bundle for Qualcomm's NPU, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import api
from edgekit.cli import main
from edgekit.pipeline.line import Outcome
from edgekit.pipeline.unit_steps import Recorded

pytest.importorskip("onnxruntime_qnn")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def outcome(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The small detector for v75, its emulator asked for three images."""
    return api.run(
        material / "recipe.toml",
        tmp_path_factory.mktemp("qnn") / "bundle",
        targets=["qnn-htp:v75"],
        runs=3,
        overrides=["evaluate.emulated=3"],
    )


def _target(outcome: Outcome) -> dict[str, Any]:
    (found,) = outcome.report["targets"]
    return dict(found)


def test_the_report_says_what_runs_where(outcome: Outcome) -> None:
    coverage = _target(outcome)["coverage"]
    assert coverage["method"] == "compiled"
    assert coverage["on_unit"] == coverage["nodes"] > 0
    assert coverage["left"] == []
    assert coverage["stamp"]["architecture"] == "v75"
    page = (outcome.bundle / "report.html").read_text()
    assert "On HTP" in page
    assert "In the emulator" in page


def test_the_emulator_stands_beside_this_machine_with_its_cost(outcome: Outcome) -> None:
    found = _target(outcome)["emulator"]
    assert found["samples"] == 3
    assert found["seconds"] > 0
    assert {"float", "int8", "emulator"} <= set(found)
    assert found["emulator"]["mAP"]["value"] == pytest.approx(found["int8"]["mAP"]["value"], abs=0.2)


def test_latency_is_called_what_it_is(outcome: Outcome) -> None:
    target = _target(outcome)
    assert target["latency"]["int8"]["method"] == "model-estimate"
    assert "float" not in target["latency"]
    assert any("lower bound" in note for note in target["estimate"]["int8"]["notes"])


def test_single_layers_agree_within_a_step(outcome: Outcome) -> None:
    runtimes = _target(outcome)["runtimes"]
    (layers,) = runtimes["layers"].values()
    assert layers
    assert all(row["max_steps"] <= 1 for row in layers)


def test_the_bundle_holds_what_a_device_needs_and_proves_itself(outcome: Outcome) -> None:
    manifest = json.loads((outcome.bundle / "manifest.json").read_text())
    details = manifest["details"]["qnn-htp-v75/int8.onnx"]
    names = {Path(name).name for name in details["companions"]}
    assert {"int8.ctx.onnx", "int8.ctx_qnn.bin", "int8.qnn.json", "int8_host.py", "int8_host.cpp"} <= names
    assert any("NHWC" in note for note in details["notes"])
    assert all((outcome.bundle / name).is_file() for name in details["companions"])
    assert api.parity(outcome.bundle)["ok"]


def test_no_sample_is_emulated_where_none_is_wanted(material: Path, tmp_path: Path) -> None:
    found = api.run(
        material / "recipe.toml",
        tmp_path / "bundle",
        targets=["qnn-htp:v75-a16w8"],
        runs=3,
        overrides=["evaluate.emulated=0"],
    )
    assert "emulator" not in _target(found)
    assert _target(found)["coverage"]["method"] == "compiled"


def test_coverage_is_shown_before_any_work(material: Path, capsys: Capture) -> None:
    assert main(["inspect", str(material / "net.onnx"), "--target", "qnn-htp:v73", "--strict"]) == 0
    text = capsys.readouterr().out
    assert "nodes run on HTP" in text
    assert "Conv2d" in text
    assert main(["inspect", str(material / "net.onnx"), "--target", "qnn-htp:v73", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"]["stamp"]["architecture"] == "v73"


def test_recorded_outputs_are_found_by_what_was_fed() -> None:
    import numpy as np

    feeds = [{"x": np.full(3, float(i), np.float32)} for i in range(2)]
    recorded = Recorded(feeds, [{"y": np.array([i])} for i in range(2)])
    assert recorded.run({"x": np.full(3, 1.0, np.float32)})["y"][0] == 1
    with pytest.raises(KeyError):
        recorded.run({"x": np.zeros(2, np.float32)})
