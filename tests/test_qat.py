"""Training a quantized network: the recipe's pass, the last rung of the ladder, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgekit
from edgekit import api
from edgekit.cli import main
from edgekit.errors import UsageError
from edgekit.graph import array
from edgekit.pipeline.qat_step import refine
from edgekit.progress import Reporter
from edgekit.recipe import QatSection
from edgekit.recipe_file import read_step

Capture = pytest.CaptureFixture[str]
QAT = '[[compress]]\npass = "qat"\nepochs = 1\nbatch = 4\naugment = false\n'


def _recipe(material: Path, folder: Path, more: str) -> Path:
    text = (material / "recipe.toml").read_text()
    for name in ("net.onnx", "photos", "boxes.json"):
        text = text.replace(f'"{name}"', f'"{(material / name).as_posix()}"')
    path = folder / "small.toml"
    path.write_text(text + more)
    return path


def test_the_pass_trains_what_was_quantized(material: Path, tmp_path: Path) -> None:
    recipe = _recipe(material, tmp_path, QAT)
    outcome = api.run(recipe, tmp_path / "bundle", runs=3)
    (target,) = outcome.report["targets"]
    quantization = target["quantization"]
    assert [rung["name"] for rung in quantization["ladder"]][-1] == "qad"
    trained = quantization["qat"]
    assert trained["best"] <= trained["start"]
    assert len(trained["epochs"]) == 1
    assert (tmp_path / "bundle" / "report.html").read_text().count("qad")
    plain = api.run(_recipe(material, tmp_path, ""), tmp_path / "plain", runs=3)
    assert "qat" not in plain.report["targets"][0]["quantization"]


def test_the_last_rung_is_climbed_only_where_the_others_do_not_reach(material: Path, tmp_path: Path) -> None:
    near = ["quantize.qad_seconds=2", "quantize.reconstruct_seconds=0", "quantize.target_db=-5"]
    far = ["quantize.qad_seconds=2", "quantize.reconstruct_seconds=0", "quantize.target_db=90"]
    recipe = _recipe(material, tmp_path, "")
    names = []
    for number, overrides in enumerate((near, far)):
        found = api.run(recipe, tmp_path / str(number), runs=3, overrides=overrides)
        names.append([r["name"] for r in found.report["targets"][0]["quantization"]["ladder"]])
    assert "qad" not in names[0]
    assert names[1][-1] == "qad"


def test_the_pass_must_be_the_last_one(material: Path, tmp_path: Path) -> None:
    recipe = _recipe(material, tmp_path, QAT + '[[compress]]\npass = "sparsify"\nsparsity = 0.5\n')
    with pytest.raises(UsageError, match="qat trains what was quantized"):
        api.run(recipe, tmp_path / "bundle")


def test_zeros_of_a_sparse_network_stay_zeros(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    sparse = api.sparsify(graph, str(material / "photos"), sparsity=0.6, recover="none").graph
    result = api.qat(
        sparse, str(material / "photos"), training={"epochs": 1, "batch": 4, "augment": False}, teacher=graph
    )
    before = {k: array(v) for k, v in result.quantization.work.model.graph.initializers.items()}
    counted = 0
    for name, value in sparse.model.graph.initializers.items():
        weight, after = array(value), before.get(name)
        if weight is None or after is None or weight.ndim < 2 or (weight == 0).mean() < 0.5:
            continue
        counted += 1
        assert np.all(after[weight == 0] == 0)
    assert counted


def test_the_command_writes_a_file_that_runs(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "trained.onnx"
    command = ["qat", str(material / "net.onnx"), "--data", str(material / "photos"), "--out", str(out)]
    assert main([*command, "--epochs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ladder"][-1]["name"] == "qad"
    ops = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops
    assert not list(tmp_path.glob(".*checkpoint"))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--target", "null"], 2, "runs float only"),
        (["--labels", "nowhere:labels", "--epochs", "1"], 2, "nowhere"),
        (["--epochs", "0"], 2, "epochs"),
    ],
)
def test_mistakes_are_told_in_one_line(
    material: Path, tmp_path: Path, capsys: Capture, arguments: list[str], code: int, text: str
) -> None:
    out = tmp_path / "trained.onnx"
    command = ["qat", str(material / "net.onnx"), "--data", str(material / "photos"), "--out", str(out)]
    assert main([*command, *arguments]) == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_training_reports_how_it_went(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    result = api.quantize(graph, str(material / "photos"), reconstruct_seconds=0.0)
    section = read_step({"pass": "qat", "epochs": 1, "batch": 4, "augment": False})
    assert isinstance(section, QatSection)
    from edgekit.data.preprocess import Preprocess
    from edgekit.data.samples import open_samples

    samples = open_samples(str(material / "photos"), graph.inputs, Preprocess())
    lines: list[str] = []

    class Lines(Reporter):
        def status(self, text: str) -> None:
            lines.append(text)

    changed, data = refine(result, graph, samples, section, reporter=Lines())
    assert changed.ladder[:-1] == result.ladder
    assert data["best_epoch"] in (0, 1)
    assert any(line.startswith("qad: ") for line in lines)
    again: dict[str, Any] = json.loads(json.dumps(data))
    assert again == data
