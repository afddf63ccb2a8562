"""The line from a recipe to a bundle, and its state between runs."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgekit
from edgekit import api
from edgekit.bundle import open_bundle
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import InputError, OutputError, UsageError
from edgekit.graph import TensorSpec
from edgekit.measure.latency import LatencyResult
from edgekit.measure.result import Measurement, Method
from edgekit.pipeline import assess, line, steps
from edgekit.pipeline.job import from_recipe, make_options, read_preprocess
from edgekit.pipeline.layers import rescaled, without_rescaled
from edgekit.pipeline.line import Outcome, state_folder
from edgekit.pipeline.split import Part, Watched
from edgekit.pipeline.state import Store, digest, listing, plain
from edgekit.quantize.quantize import Options, quantize
from edgekit.recipe import QuantizeSection
from edgekit.recipe_file import load_recipe

INPUT = (TensorSpec("images", (1, 3, 32, 32), np.dtype(np.float32)),)


@pytest.fixture(scope="module")
def outcome(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One whole run with nothing left out, real measurements included."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    return api.run(
        material / "recipe.toml", out, runs=3, overrides=["budget.size_mb=0.000001", "budget.max_drop=1"]
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the timing, which costs seconds and processes."""

    def measured(models: dict[str, Path], feeds: Any, **_: Any) -> LatencyResult:
        figure = Measurement(1.0, "ms", Method.HOST, {"p95": 1.0, "min": 1.0})
        speedup = {label: Measurement(0.5, "", Method.HOST) for label in list(models)[1:]}
        times: dict[str, tuple[float, ...]] = dict.fromkeys(models, (1.0,))
        return LatencyResult(
            1, dict.fromkeys(models, figure), times, speedup, {}, "cpu", (), (), ("it was noisy",)
        )

    monkeypatch.setattr("edgekit.measure.latency.measure_latency", measured)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the expensive functions that were called."""
    found: list[str] = []
    for module, name in ((steps, "quantize"), (assess, "_detection")):
        original = getattr(module, name)

        def spied(*args: Any, _original: Callable[..., Any] = original, _name: str = name, **kw: Any) -> Any:
            found.append(_name)
            return _original(*args, **kw)

        monkeypatch.setattr(module, name, spied)
    return found


def test_the_report_holds_every_part(outcome: Outcome) -> None:
    report = outcome.report
    assert report["schema"] == 1
    assert report["model"]["inputs"] == [{"name": "images", "shape": [1, 3, 32, 32], "dtype": "float32"}]
    assert report["model"]["capture"]["max_abs_difference"]["method"] == "host"
    assert report["data"]["count"] == 12
    (target,) = report["targets"]
    assert target["target"] == "ort-cpu:host-1t"
    assert target["quantization"]["calibrator"] == "minmax"
    assert target["quantization"]["tensors_8bit"] > 3
    assert target["placement"]["int8"]["integer_nodes"] >= 3
    assert target["latency"]["threads"] == 1
    assert "latency_1t" not in target
    assert target["parity"]["method"] == "host"
    assert target["parity"]["outputs"][0]["cosine"] > 0.99
    assert target["parity"]["layers"]
    assert set(target["task"]["int8"]) == {"mAP", "mAP50"}
    assert len(target["overlays"]) == 4


def test_a_history_starts_after_capture(outcome: Outcome) -> None:
    captured = [c["pass_name"] for c in outcome.report["model"]["capture"]["changes"]]
    quantized = [c["pass_name"] for c in outcome.report["targets"][0]["quantization"]["history"]]
    assert captured[0] not in quantized


def test_a_missed_budget_is_in_the_report_and_the_bundle_is_written(outcome: Outcome) -> None:
    assert outcome.missed == ("size_mb",)
    lines = {entry["name"]: entry["ok"] for entry in outcome.report["budget"]}
    assert lines == {"size_mb": False, "max_drop": True}
    assert json.loads((outcome.bundle / "report.json").read_text()) == outcome.report


def test_the_bundle_is_complete(outcome: Outcome) -> None:
    names = {p.relative_to(outcome.bundle).as_posix() for p in outcome.bundle.rglob("*") if p.is_file()}
    assert {
        "manifest.json",
        "report.json",
        "report.html",
        "ort-cpu-host-1t/float.onnx",
        "ort-cpu-host-1t/int8.onnx",
        "samples/0.npz",
        "samples/1.npz",
    } <= names
    assert sum(name.startswith("overlays/") for name in names) == 8
    manifest = open_bundle(outcome.bundle).manifest
    assert manifest.decoder is not None
    assert manifest.decoder.classes == ("cat", "dog")
    int8 = manifest.details["ort-cpu-host-1t/int8.onnx"].inputs[0]
    # The exact range of RGB / 255, not what the calibration images happened to hold.
    assert int8.layout == "NCHW"
    assert int8.scale == pytest.approx(1 / 255)
    assert int8.zero_point == 0


def test_an_interrupted_run_goes_on_where_it_stopped(
    material: Path, tmp_path: Path, quick: None, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(line, "compile_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.run(material / "recipe.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert calls == ["quantize"]
    api.run(material / "recipe.toml", tmp_path / "out")
    assert calls == ["quantize", "_detection"]
    api.run(material / "recipe.toml", tmp_path / "out")
    assert calls == ["quantize", "_detection"]
    api.run(material / "recipe.toml", tmp_path / "out", overrides=["quantize.max_raised=1"])
    assert calls == ["quantize", "_detection", "quantize"]
    api.run(material / "recipe.toml", tmp_path / "out", fresh=True)
    assert calls[3:] == ["quantize", "_detection"]


def test_a_step_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")

    def make(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.step("a", 1, make)
    assert list((tmp_path / "state").iterdir()) == []
    assert not store.has("a", 1)


def test_a_product_is_found_again_and_unused_ones_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    first = store.step("a", [1], lambda _: {"x": float("nan"), "y": np.float32(0.5)})
    store.step("a", [2], lambda _: {})
    assert (first.kept, first.data) == (False, {"x": None, "y": 0.5})
    again = Store(tmp_path / "state")
    assert again.step("a", [1], lambda _: {}).kept
    again.prune()
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_changed_samples_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("1")
    before = digest(listing("a", tmp_path))
    assert digest(listing("a", tmp_path)) == before
    (tmp_path / "a" / "2.txt").write_text("2")
    assert digest(listing("a", tmp_path)) != before


def test_the_code_behind_a_callable_is_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def samples(): ...")
    before = listing("mine:samples", tmp_path)
    (tmp_path / "mine.py").write_text("def samples(): return []")
    assert listing("mine:samples", tmp_path) != before
    assert listing("nowhere.at.all:f", tmp_path) == [["nowhere.at.all:f", 0, 0]]


def test_a_full_disk_leaves_the_earlier_bundle(
    material: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    api.run(material / "recipe.toml", out)
    before = (out / "manifest.json").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(line, "write_manifest", full)
    with pytest.raises(OutputError, match="No space left"):
        api.run(material / "recipe.toml", out, overrides=["budget.size_mb=1"])
    assert (out / "manifest.json").read_bytes() == before
    assert open_bundle(out).manifest.model.name == "net"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".edgekit", "out"]


def test_a_full_disk_while_a_step_is_kept(tmp_path: Path) -> None:
    def full(_: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        Store(tmp_path / "state").step("a", 1, full)
    assert list((tmp_path / "state").iterdir()) == []


def test_warnings_name_what_was_assumed_skipped_and_slow(material: Path, tmp_path: Path, quick: None) -> None:
    shutil.copytree(material / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    made = api.export(
        material / "net.onnx",
        tmp_path / "photos",
        out=tmp_path / "out",
        calibrator="minmax",
        target_db=200.0,
        max_raised=0,
    )
    text = "\n".join(made.report["warnings"])
    assert "Preprocessing was assumed" in text
    assert "broken.png" in text
    assert "slower than float" in text
    assert "it was noisy" in text
    assert "below the 200 dB" in text
    assert "too few to hold any back" in text
    assert made.report["data"]["count"] == 12
    assert made.report["data"]["skipped"][0]["name"] == "broken.png"
    assert made.report["targets"][0]["task"]["name"] == "outputs"


def test_float_only_targets_and_several_at_once(material: Path, tmp_path: Path, quick: None) -> None:
    made = api.run(
        material / "recipe.toml",
        tmp_path / "out",
        targets=["null", "ort-cpu:rpi4"],
        overrides=["budget.latency_ms=5"],
    )
    null, board = made.report["targets"]
    assert set(null["artifacts"]) == {"float"}
    assert "latency" not in null
    assert set(board["artifacts"]) == {"float", "int8"}
    # The figure is this machine's: it neither meets nor misses the board's budget.
    assert made.report["budget"] == [
        {"name": "latency_ms", "limit": 5.0, "value": None, "ok": False, "target": "null:reference"}
    ]
    assert any("cannot be checked" in text for text in made.report["warnings"])
    bundle = open_bundle(tmp_path / "out")
    assert bundle.targets == ("null:reference", "ort-cpu:rpi4")
    assert bundle.target("ort-cpu") == "ort-cpu:rpi4"


def test_max_drop_of_the_recipe_raises_the_aim(
    material: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims: list[float] = []

    def spied(graph: Any, scheme: Any, feeds: Any, options: Any, **kw: Any) -> Any:
        aims.append(options.target_db)
        return quantize(graph, scheme, feeds, options, **kw)

    monkeypatch.setattr(steps, "quantize", spied)
    monkeypatch.setattr(line, "drop", lambda _: 0.5)
    made = api.run(material / "recipe.toml", tmp_path / "out", overrides=["quantize.max_drop=0.1"])
    first = Options().target_db
    assert aims == [first, first + line.MORE_DB, first + 2 * line.MORE_DB]
    assert any("quantize.max_drop" in text for text in made.report["warnings"])


def test_export_takes_the_rest_from_a_recipe(material: Path, tmp_path: Path, quick: None) -> None:
    made = edgekit.export(
        material / "net.onnx",
        material / "photos",
        "ort-cpu:rpi5",
        out=tmp_path / "out",
        recipe=material / "recipe.toml",
        limit=5,
        percentile=99.0,
    )
    (target,) = made.report["targets"]
    assert target["target"] == "ort-cpu:rpi5"
    assert target["task"]["name"] == "detection"
    assert target["quantization"]["calibrator"] == "minmax"
    assert made.report["data"]["count"] == 5
    assert made.report["data"]["preprocess_note"].startswith("from the recipe")


def test_a_wrong_task_is_refused_before_any_work(material: Path, tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for setting, message in (
        ("evaluate.decode=yolo1", "yolov8"),
        (f"evaluate.annotations={tmp_path / 'none.json'}", "images"),
        (f"evaluate.images={tmp_path / 'empty'}", "empty"),
    ):
        with pytest.raises(InputError, match=message):
            api.run(material / "recipe.toml", tmp_path / "out", overrides=[setting])
    assert calls == []


def test_a_foreign_folder_is_refused_before_any_work(
    material: Path, tmp_path: Path, calls: list[str]
) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputError, match="did not make"):
        api.run(material / "recipe.toml", tmp_path)
    assert not state_folder(tmp_path).exists()
    assert calls == []


def test_every_fifth_sample_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for index in range(40):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "p" / f"{index:02d}.png")
    (tmp_path / "p" / "03.png").write_bytes(b"broken")
    whole = open_samples(tmp_path / "p", INPUT, Preprocess())
    kept, held = Part(whole, held=False), Part(whole, held=True, limit=3)
    watched = Watched(kept)
    assert len(list(watched())) == watched.used
    assert {s.name for s in kept} & {s.name for s in held} == set()
    assert len(list(held)) == 3
    assert watched.skipped.keys() == {"03.png"}


def test_watched_remembers_skipped_samples_of_a_whole_pass(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "0.png")
    (tmp_path / "p" / "1.png").write_bytes(b"broken")
    watched = Watched(open_samples(tmp_path / "p", INPUT, Preprocess()))
    list(watched())
    first: Iterator[Any] = watched()
    next(first)
    first.close()  # type: ignore[attr-defined]
    assert set(watched.skipped) == {"1.png"}
    assert watched.used == 1


def test_the_range_of_an_image_input_is_exact(material: Path) -> None:
    how = Preprocess.parse("mean=0.5/0.4/0.3,std=0.5/0.25/0.5")
    samples = open_samples(material / "photos", INPUT, how)
    ((low, high),) = steps.input_ranges(INPUT, how, samples).values()
    assert (low, high) == pytest.approx((-1.6, 2.4))
    arrays = open_samples([np.zeros((3, 32, 32), np.float32)], INPUT, how)
    assert steps.input_ranges(INPUT, how, arrays) == {}


def test_preprocessing_says_where_it_came_from() -> None:
    assert read_preprocess(None, "x")[2]
    how, note, assumed = read_preprocess({"color": "bgr"}, "from the recipe")
    assert (how.color, assumed) == ("bgr", False)
    assert note.startswith("from the recipe: BGR")
    with pytest.raises(UsageError):
        read_preprocess("colour=bgr", "x")


def test_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match="calibrater"):
        make_options(calibrater="mse")
    with pytest.raises(UsageError, match="auto, minmax"):
        make_options(calibrator="best")
    assert make_options(calibrator=None).calibrator == "auto"


def test_plain_makes_json() -> None:
    value = plain({"a": np.arange(2), "b": (np.float64("inf"), Path("x")), 1: Method.HOST})
    assert json.loads(json.dumps(value)) == {"a": [0, 1], "b": [None, "x"], "1": "host"}


def test_rescaled_layers_are_not_compared(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    history = [{"pass_name": "equalize", "details": {"raised": {"r1": 3.0, "c2": 2.0, "gone": 2.0}}}]
    assert rescaled(graph, history) == {"r1", "c1", "c2", "p"}
    rows = [{"name": name} for name in ("c1", "r1", "f")]
    found = without_rescaled({"layers": rows, "skipped": []}, graph, history)
    assert [row["name"] for row in found["layers"]] == ["f"]
    assert [row["name"] for row in found["skipped"]] == ["c1", "r1"]
    assert without_rescaled({"samples": 1}, graph, history) == {"samples": 1}


def test_a_recipe_and_the_quantizer_have_the_same_defaults(material: Path) -> None:
    recipe = load_recipe(material / "recipe.toml", [f"quantize.calibrator={Options().calibrator}"])
    assert recipe.quantize == QuantizeSection()
    assert from_recipe(recipe).options == Options()
