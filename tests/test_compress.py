"""The compress steps of a recipe, of the command line and of the Python functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgekit
from edgekit import api
from edgekit.cli import main
from edgekit.errors import ModelError, UsageError
from edgekit.pipeline import compress, line
from edgekit.pipeline.distill_step import load_weights, save_weights
from edgekit.pipeline.line import Outcome, state_folder
from edgekit.prune.plan import PruningPlan
from edgekit.stats import count

Capture = pytest.CaptureFixture[str]
STEPS = """
[[compress]]
pass = "prune"
keep = 0.5
align = 2
sensitivity = true
samples = 4
saved = "saved/plan.json"
[[compress]]
pass = "sparsify"
pattern = "2:4"
samples = 4
[[compress]]
pass = "distill"
epochs = 2
batch = 4
saved = "saved/weights.npz"
"""


@pytest.fixture(scope="module")
def recipe(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network's recipe with all three steps; nothing is saved yet."""
    folder = tmp_path_factory.mktemp("recipe")
    text = (material / "recipe.toml").read_text()
    for name in ("net.onnx", "photos", "boxes.json"):
        text = text.replace(f'"{name}"', f'"{(material / name).as_posix()}"')
    (folder / "small.toml").write_text(text + STEPS)
    return folder / "small.toml"


@pytest.fixture(scope="module")
def outcome(recipe: Path) -> Outcome:
    """One whole run, real measurements included."""
    return api.run(recipe, recipe.parent / "bundle", runs=3, overrides=['deploy.compare=["float", "int8"]'])


def test_every_step_is_in_the_report(outcome: Outcome) -> None:
    found = outcome.report["compress"]
    prune, sparsify, distill = found["steps"]
    assert (prune["pass"], sparsify["pass"], distill["pass"]) == ("prune", "sparsify", "distill")
    assert prune["reached"]["got"] == pytest.approx(0.5, abs=0.01)
    assert all(group["after"] == group["before"] // 2 for group in prune["groups"])
    assert prune["verify"] < 1e-4
    channels = [entry for entry in prune["sensitivity"] if entry["kind"] == "channels"]
    assert {entry["group"] for entry in channels} == {g["name"] for g in prune["groups"]}
    assert all(entry["latency_saved_ms"] is not None for entry in channels)
    assert prune["distance"]["recovered"] <= prune["distance"]["pruned"]
    assert sparsify["sparsity"] > 0
    assert "latency" in json.dumps(sparsify["benefit"])
    assert len(distill["epochs"]) == 2
    assert found["final"]["macs"] < found["original"]["macs"]
    assert found["final"]["macs"] == distill["after"]["macs"]


def test_the_original_is_measured_beside(outcome: Outcome) -> None:
    (target,) = outcome.report["targets"]
    kinds = {"float", "int8", "original", "original_int8"}
    assert kinds <= set(target["latency"])
    assert kinds <= set(target["task"])
    assert set(target["sizes"]) == kinds
    assert target["sizes"]["float"] < target["sizes"]["original"]


def test_the_bundle_holds_the_plan_and_the_weights(outcome: Outcome) -> None:
    names = sorted(path.name for path in (outcome.bundle / "compress").iterdir())
    assert names == ["1-prune-plan.json", "3-distill-weights.npz"]
    page = (outcome.bundle / "report.html").read_text()
    assert "Compression" in page


def test_a_missing_saved_result_is_said(outcome: Outcome) -> None:
    assert any("no saved result plan.json" in text for text in outcome.report["warnings"])
    assert any("no saved result weights.npz" in text for text in outcome.report["warnings"])


def test_the_float_artifact_is_the_compressed_network(outcome: Outcome) -> None:
    (target,) = outcome.report["targets"]
    model = onnx.load(outcome.bundle / target["artifacts"]["float"]["path"])
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert shapes["w1"] == (4, 3, 3, 3)
    assert shapes["w2"] == (4, 4, 3, 3)


def test_sparse_weights_stay_sparse_through_the_training(outcome: Outcome) -> None:
    (target,) = outcome.report["targets"]
    model = onnx.load(outcome.bundle / target["artifacts"]["float"]["path"])
    (weight,) = (onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "w2")
    assert np.count_nonzero(weight) <= weight.size / 2


def test_a_second_run_keeps_everything(
    outcome: Outcome, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("prune_graph", "sparsify_graph", "distill_graph"):
        monkeypatch.setattr(compress, name, _never)
    again = api.run(recipe, outcome.bundle, runs=3, overrides=['deploy.compare=["float", "int8"]'])
    assert again.report["compress"] == outcome.report["compress"]


def test_saved_results_are_used_and_made_afresh_when_asked(
    outcome: Outcome, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = recipe.parent / "saved"
    saved.mkdir()
    for source, name in (("1-prune-plan.json", "plan.json"), ("3-distill-weights.npz", "weights.npz")):
        (saved / name).write_bytes((outcome.bundle / "compress" / source).read_bytes())
    monkeypatch.setattr(line, "_line", lambda *_: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        api.run(recipe, tmp_path / "out")
    steps = _steps(tmp_path / "out")
    assert steps["prune"]["saved"] == "the plan comes from plan.json"
    assert steps["distill"]["saved"] == "the weights come from weights.npz"
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        api.run(recipe, tmp_path / "out", fresh=True)
    steps = _steps(tmp_path / "out")
    assert steps["prune"]["saved"] is None
    assert steps["distill"]["saved"] is None


def _steps(out: Path) -> dict[str, Any]:
    found = {}
    for path in state_folder(out).glob("*/product.json"):
        step = json.loads(path.read_text()).get("step")
        if step:
            found[step["pass"]] = step
    return found


def _never(*_: Any, **__: Any) -> Any:
    pytest.fail("the step was run again")


def test_weights_of_another_network_are_refused(material: Path, tmp_path: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    smaller = edgekit.prune(
        graph, material / "photos", keep=0.5, align=2, samples=4, preprocess="resize=stretch"
    ).graph
    changed = smaller.copy()
    save_weights(smaller, graph, tmp_path / "weights.npz")
    assert load_weights(changed, tmp_path / "weights.npz").sha256() != ""
    with pytest.raises(ModelError, match="run with --fresh to train anew"):
        load_weights(graph, tmp_path / "weights.npz")
    (tmp_path / "none.npz").write_text("no archive")
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(graph, tmp_path / "none.npz")


def run(capsys: Capture, *arguments: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def options(material: Path, out: Path) -> Sequence[str | Path]:
    return ("--data", material / "photos", "--preprocess", "resize=stretch", "--out", out)


def test_prune_writes_model_and_plan(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "small.onnx"
    aim = ("--macs", "0.5", "--align", "2", "--samples", "4")
    text = run(capsys, "prune", material / "net.onnx", *options(material, out), *aim)
    assert "multiply-accumulates" in text
    assert "Latency on 1 thread" in text
    before, after = edgekit.load(material / "net.onnx"), edgekit.load(out)
    assert count(after).macs <= 0.55 * count(before).macs
    plan = tmp_path / "small.plan.json"
    again = tmp_path / "again.onnx"
    run(
        capsys, "prune", material / "net.onnx", *options(material, again), "--plan", plan, "--recover", "none"
    )
    assert count(edgekit.load(again)).macs == count(after).macs
    assert PruningPlan.load(plan).groups == PruningPlan.load(tmp_path / "again.plan.json").groups


def test_prune_with_distillation_answers_in_json(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "small.onnx"
    aim = (
        "--keep",
        "0.5",
        "--align",
        "2",
        "--samples",
        "4",
        "--recover",
        "distill",
        "--epochs",
        "1",
        "--json",
    )
    document = json.loads(run(capsys, "prune", material / "net.onnx", *options(material, out), *aim))
    assert [step["pass"] for step in document["steps"]] == ["prune", "distill"]
    assert document["latency"]["speedup"] > 0


def test_sparsify_and_distill(material: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "sparse.onnx"
    aim = ("--sparsity", "0.5", "--samples", "4")
    text = run(capsys, "sparsify", material / "net.onnx", *options(material, out), *aim)
    assert "50.0% of the weights in 3 layers are zero" in text
    student = tmp_path / "student.onnx"
    teach = ("--teacher", material / "net.onnx", "--epochs", "1")
    text = run(capsys, "distill", out, *options(material, student), *teach)
    assert "epochs" in text
    assert edgekit.load(student).outputs == edgekit.load(out).outputs
    assert not (tmp_path / "student.checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--keep", "1.5"), "keep: should be less than or equal to 1, not 1.5"),
        (("prune",), "needs one aim out of keep, macs"),
        (("prune", "--keep", "0.5", "--importance", "guess"), "fisher"),
        (("prune", "--keep", "0.5", "--recover", "pray"), "none, refit, distill"),
        (("prune", "--plan", "none.json"), "no such file"),
        (("prune", "--macs", "0.5"), "cannot be reached"),
        (("sparsify", "--pattern", "2:1"), "2:1"),
        (("sparsify",), "sparsity"),
    ],
)
def test_wrong_options_are_explained(
    material: Path, tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], message: str
) -> None:
    name, *rest = arguments
    text = run(capsys, name, material / "net.onnx", *options(material, tmp_path / "x.onnx"), *rest, code=2)
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "x.onnx").exists()


def test_a_plan_beside_an_aim_is_refused(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    with pytest.raises(UsageError, match="no meaning beside a plan"):
        edgekit.prune(graph, material / "photos", plan="plan.json", keep=0.5)
