"""The whole line for the three targets whose networks are ``.tflite`` files, on a network of 5 layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgekit import api
from edgekit.bundle import Bundle, folder_name, open_bundle
from edgekit.cli import main
from edgekit.errors import ModelError
from edgekit.pipeline.line import Outcome

pytest.importorskip("ai_edge_litert")
pytest.importorskip("ethosu")
pytest.importorskip("tflite_micro")

Capture = pytest.CaptureFixture[str]
LITERT, NPU, MICRO = "litert:host-1t", "ethos-u:u55-128", "tflm:stm32f746g-disco"
TARGETS = (LITERT, NPU, "tflm")
NHWC = [0, 2, 3, 1]
#: Of ``net.onnx``.
MACS = 64 * (27 * 8 + 72 * 8 + 64) + 48
RECIPE = """
[model]
source = "{model}"
[data]
calibrate = "photos"
preprocess = {{ resize = "stretch" }}
[quantize]
calibrator = "minmax"
[deploy]
targets = ["litert:host-1t", "ethos-u:u55-128", "tflm"]
"""


def network(*, leaves: bool = False) -> onnx.ModelProto:
    """Outputs ``scores [1, 6]``, which end in float, before ``map [1, 8, h, w]``, which is computed earlier.

    With ``leaves``, there is a Resize by 3, which Ethos-U55 leaves to the CPU.
    """
    resize = 'Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
    side, last = (24, "r3") if leaves else (8, "r1")
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        tiny (float[1,3,16,16] images) => (float[1,6] scores, float[1,8,{side},{side}] map) {{
            c1 = Conv <strides=[2,2], pads=[1,1,1,1]> (images, w1, b1) r1 = Relu(c1)
            {f"r3 = {resize} (r1, , factors)" if leaves else ""}
            c2 = Conv <pads=[1,1,1,1]> ({last}, w2) map = Conv(c2, w3)
            p = GlobalAveragePool(c2) f = Flatten(p) g = Gemm(f, w4, b4) s = Sigmoid(g) scores = Mul(s, ten)
        }}"""
    )
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 3,
        "b1": rng.normal(size=8) / 10,
        "w2": rng.normal(size=(8, 8, 3, 3)) / 6,
        "w3": rng.normal(size=(8, 8, 1, 1)) / 2,
        "w4": rng.normal(size=(8, 6)),
        "b4": rng.normal(size=6),
        "ten": np.full((1, 6), 10),
        **({"factors": [1, 1, 3, 3]} if leaves else {}),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.onnx``, ``leaves.onnx``, their recipes and ``photos/``; not to be changed."""
    folder = tmp_path_factory.mktemp("tflite-line")
    rng = np.random.default_rng(1)
    (folder / "photos").mkdir()
    for index in range(6):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    for name, leaves in (("net", False), ("leaves", True)):
        onnx.save(network(leaves=leaves), folder / f"{name}.onnx")
        (folder / f"{name}.toml").write_text(RECIPE.format(model=f"{name}.onnx"))
    return folder


@pytest.fixture(scope="module")
def outcome(work: Path) -> Outcome:
    """One whole run of ``net.onnx`` for all three targets, real measurements included."""
    return api.run(work / "net.toml", work / "bundle", runs=3)


@pytest.fixture(scope="module")
def bundle(outcome: Outcome) -> Bundle:
    return open_bundle(outcome.bundle)


@pytest.fixture(scope="module")
def left_over(work: Path) -> Outcome:
    """``leaves.onnx`` for the NPU, with a limit on the latency that nobody can know."""
    return api.run(work / "leaves.toml", work / "left", targets=[NPU], overrides=["budget.latency_ms=1000"])


def entry_of(outcome: Outcome, name: str) -> dict[str, Any]:
    return next(t for t in outcome.report["targets"] if t["target"] == name)


def run(capsys: Capture, *arguments: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == code
    captured = capsys.readouterr()
    return captured.err if code == 2 else captured.out


# What is in the bundle


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (LITERT, "float.tflite float.reference.onnx int8.tflite int8.decoder.onnx int8.reference.onnx"),
        (
            NPU,
            "float.onnx int8.tflite int8.decoder.onnx int8.reference.onnx int8.vela.tflite int8.vela.json",
        ),
        (
            MICRO,
            "float.onnx int8.tflite int8.decoder.onnx int8.reference.onnx model.cc model.h memory.json",
        ),
    ],
)
def test_every_file_of_a_target_is_there_and_hashed(bundle: Bundle, name: str, files: str) -> None:
    folder = folder_name(name)
    assert sorted(p.name for p in (bundle.folder / folder).iterdir()) == sorted(files.split())
    assert {f"{folder}/{file}" for file in files.split()} <= set(bundle.manifest.files)
    int8 = bundle.manifest.artifacts[name]["int8"]
    beside = set(files.split()) - {"float.onnx", "float.tflite", "float.reference.onnx", "int8.tflite"}
    assert {Path(p).name for p in bundle.manifest.details[int8].companions} == beside
    (entry,) = (
        t for t in json.loads((bundle.folder / "report.json").read_text())["targets"] if t["target"] == name
    )
    assert entry["artifacts"]["int8"]["path"] == int8
    assert entry["artifacts"]["int8"]["size_bytes"] == (bundle.folder / int8).stat().st_size


def test_the_device_files_hold_the_network(bundle: Bundle) -> None:
    board = bundle.folder / folder_name(MICRO)
    model = (board / "int8.tflite").read_bytes()
    source = (board / "model.cc").read_text()
    listed = re.findall(r"\b0x([0-9a-f]{2})\b", source)
    assert bytes(int(digits, 16) for digits in listed) == model
    assert "model.h" in source
    compiled = (bundle.folder / folder_name(NPU) / "int8.vela.tflite").read_bytes()
    assert compiled[4:8] == b"TFL3"
    assert b"ethos-u" in compiled
    assert b"ethos-u" not in (bundle.folder / folder_name(NPU) / "int8.tflite").read_bytes()


@pytest.mark.parametrize("name", [LITERT, NPU, MICRO])
def test_the_manifest_says_how_int8_is_fed_and_read(bundle: Bundle, name: str) -> None:
    entry = bundle.manifest.details[bundle.manifest.artifacts[name]["int8"]]
    (image,) = entry.inputs
    assert (image.name, image.shape, image.dtype, image.layout) == (
        "images",
        (1, 3, 16, 16),
        "float32",
        "NCHW",
    )
    # The exact range of RGB / 255 in int8.
    assert image.quantized == "int8"
    assert image.scale == pytest.approx(1 / 255)
    assert image.zero_point == -128
    assert (image.stored, list(image.axes or ())) == ((1, 16, 16, 3), NHWC)
    # In the network's order, not in the order in which the .tflite computes them.
    assert [(t.name, t.shape, t.dtype) for t in entry.outputs] == [
        ("scores", (1, 6), "float32"),
        ("map", (1, 8, 8, 8), "float32"),
    ]
    scores, found = entry.outputs
    assert (scores.scale, scores.quantized) == (None, None), "the decoder returns float"
    assert found.quantized == "int8"
    assert found.scale is not None
    assert (found.stored, list(found.axes or ())) == ((1, 8, 8, 8), NHWC)
    # What the file itself returns has names that are no outputs of the network.
    assert entry.raw is not None
    assert [t.name for t in entry.raw["inputs"]] == ["images"]
    assert {t.name for t in entry.raw["outputs"]} == {"g_dequantized", "map"}
    assert all(t.scale is not None and t.quantized == "int8" for t in entry.raw["outputs"])


@pytest.mark.parametrize("name", [LITERT, NPU, MICRO])
def test_the_manifest_is_enough_to_run_a_file_by_hand(bundle: Bundle, name: str) -> None:
    """A program on a device knows the manifest only: order of axes, scales, names in the file."""
    from edgekit.tflite.interpreter import Kernels, LiteRt

    kinds = bundle.manifest.artifacts[name]
    entry = bundle.manifest.details[kinds["int8"]]
    sample = bundle.samples()[0]
    (image,) = entry.inputs
    assert image.scale is not None
    codes = np.rint(sample.feeds["images"].transpose(image.axes) / np.float32(image.scale)) + image.zero_point
    path = bundle.folder / kinds["int8"]
    engine = LiteRt(path, Kernels.XNNPACK if name == LITERT else Kernels.REFERENCE)
    given = {image.tensor or image.name: np.clip(codes, -128, 127).astype(np.int8)}
    stored = engine.run(given)
    out = next(t for t in entry.outputs if t.name == "map")
    assert out.scale is not None
    assert out.axes is not None
    real = (stored[out.tensor or out.name].astype(np.float32) - (out.zero_point or 0)) * np.float32(out.scale)
    expected = sample.expected[name, "int8"]["map"]
    np.testing.assert_allclose(real.transpose(np.argsort(out.axes)), expected, atol=1.01 * out.scale)
    assert np.abs(expected).max() > 10 * out.scale


# What is in the report


def test_an_npu_has_the_compilers_estimate_and_no_time_of_this_machine(outcome: Outcome) -> None:
    entry = entry_of(outcome, NPU)
    estimate = entry["estimate"]["int8"]
    latency = entry["latency"]["int8"]
    assert set(entry["latency"]) == {"int8", "notes"}
    assert latency["method"] == "compiler-estimate"
    assert latency["unit"] == "ms"
    cycles = int(latency["note"].split("estimate: ")[1].split(" cycles")[0].replace(",", ""))
    clock = 1e6 * float(latency["note"].split(" at ")[1].split(" MHz")[0])
    assert cycles >= MACS / 128, "128 in each cycle at most"
    assert latency["value"] == pytest.approx(1e3 * cycles / clock)
    assert estimate["latency"] == latency
    assert estimate["missing"] == []
    assert estimate["memory"]["SRAM"] > 8 * 8 * 8
    assert sum(layer["macs"] for layer in estimate["layers"]) >= 0.9 * MACS
    ordered = [layer["cycles"] for layer in estimate["layers"]]
    assert ordered == sorted(ordered, reverse=True)
    assert not any("not measured" in text for text in outcome.report["warnings"] if text.startswith(NPU))


def test_only_litert_is_timed_on_this_machine(outcome: Outcome) -> None:
    litert = entry_of(outcome, LITERT)["latency"]
    assert {litert[kind]["method"] for kind in ("float", "int8")} == {"host"}
    assert "estimate" not in entry_of(outcome, LITERT)
    micro = entry_of(outcome, MICRO)
    assert "latency" not in micro
    assert micro["estimate"]["int8"]["latency"] is None
    assert micro["estimate"]["int8"]["memory"]["arena"] > 0
    (text,) = (text for text in outcome.report["warnings"] if "not measured" in text)
    assert text.startswith(MICRO)


@pytest.mark.parametrize("name", [LITERT, NPU])
def test_runtimes_are_compared(outcome: Outcome, name: str) -> None:
    runtimes = entry_of(outcome, name)["runtimes"]
    assert runtimes["ok"]
    assert runtimes["samples"] == 4
    assert set(runtimes["outputs"]) == {"integer reference", "LiteRT, XNNPACK", "ONNX Runtime"}
    exact = runtimes["outputs"]["integer reference"]
    assert {row["tensor"] for row in exact} == {"g", "map"}
    assert {row["max_steps"] for row in exact + runtimes["layers"]["integer reference"]} == {0}
    assert {"images", "r1", "c2", "p"} <= {row["tensor"] for row in runtimes["layers"]["ONNX Runtime"]}
    for rows in runtimes["outputs"].values():
        assert all(row["max_steps"] <= runtimes["budget_steps"] for row in rows)


def test_placement_counts_the_float_end(outcome: Outcome) -> None:
    for name in (LITERT, NPU, MICRO):
        int8 = entry_of(outcome, name)["placement"]["int8"]
        assert {left["node"] for left in int8["left"]} == {"s", "scores"}
        assert int8["ops"]["CONV_2D"] == 3
        assert "TRANSPOSE" not in int8["ops"]


def test_targets_agree_about_the_network(bundle: Bundle) -> None:
    """Three runtimes and two schemes that say the same here: outputs within two steps of each other."""
    sample = bundle.samples()[0]
    reference = sample.expected[NPU, "int8"]
    entry = bundle.manifest.details[bundle.manifest.artifacts[NPU]["int8"]]
    step = next(t.scale for t in entry.outputs if t.name == "map")
    assert step is not None
    # TFLite Micro's kernels compute as LiteRT's reference kernels do.
    np.testing.assert_array_equal(sample.expected[MICRO, "int8"]["map"], reference["map"])
    np.testing.assert_allclose(sample.expected[LITERT, "int8"]["map"], reference["map"], atol=2.01 * step)
    np.testing.assert_allclose(sample.expected[LITERT, "float"]["map"], reference["map"], atol=8 * step)


def test_the_page_and_the_terminal_show_estimate_and_runtimes(outcome: Outcome) -> None:
    from edgekit.report.terminal import summary

    text = summary(outcome.report)
    parts = dict(zip((LITERT, NPU, MICRO), text.split("net.onnx on ")[1:], strict=True))
    assert "estimate" not in parts[LITERT]
    assert "The compiler's estimate covers every operator" in parts[NPU]
    assert "compiler-estimate" in parts[NPU]
    assert "SRAM" in parts[NPU]
    assert "estimate" not in parts[MICRO]
    for name in (LITERT, NPU):
        assert "Steps of 8 bits off LiteRT, reference kernels at the outputs (2 allowed)" in parts[name]
        assert "integer reference: 0" in parts[name]
    assert "Steps off" not in parts[MICRO]
    page = (outcome.bundle / "report.html").read_text()
    assert page.count("Slowest operators") == 1
    assert page.count("Between runtimes") == 2


# What cannot be told


def test_operators_of_the_cpu_leave_no_figure(left_over: Outcome) -> None:
    entry = entry_of(left_over, NPU)
    estimate = entry["estimate"]["int8"]
    assert estimate["latency"] is None
    assert "latency" not in entry
    (missing,) = estimate["missing"]
    assert missing["op"] == "RESIZE_NEAREST_NEIGHBOR"
    assert missing["node"] == "r3"
    assert missing["reason"]
    (placed,) = (left for left in entry["placement"]["int8"]["left"] if left["node"] not in ("s", "scores"))
    assert placed["op"] == "RESIZE_NEAREST_NEIGHBOR"
    warnings = "\n".join(left_over.report["warnings"])
    assert "Latency was not measured: the compiler's estimate leaves out operators" in warnings
    assert "Leaves the NPU: RESIZE_NEAREST_NEIGHBOR 'r3'" in warnings
    from edgekit.report.terminal import summary

    text = summary(left_over.report)
    assert "The compiler's estimate is incomplete: 1 operator on the CPU" in text
    assert "compiler-estimate" not in text


def test_what_leaves_the_npu_has_a_remedy(left_over: Outcome) -> None:
    entry = entry_of(left_over, NPU)
    (missing,) = entry["estimate"]["int8"]["missing"]
    assert missing["remedy"]


def test_a_latency_that_nobody_knows_misses_every_budget(left_over: Outcome) -> None:
    assert left_over.missed == ("latency_ms",)
    (line,) = left_over.report["budget"]
    assert (line["value"], line["target"]) == (None, NPU)
    assert any("cannot be checked on ethos-u:u55-128" in text for text in left_over.report["warnings"])


def test_a_budget_is_held_against_the_estimate(outcome: Outcome, work: Path) -> None:
    estimated = entry_of(outcome, NPU)["latency"]["int8"]["value"]
    for factor, missed in ((1.01, ()), (0.99, ("latency_ms",))):
        found = api.run(
            work / "net.toml",
            work / "budget",
            targets=[NPU],
            overrides=[f"budget.latency_ms={factor * estimated}"],
        )
        assert found.missed == missed
        (line,) = found.report["budget"]
        assert line["value"] == pytest.approx(estimated)


def test_without_quantization_the_npu_has_no_figure(work: Path) -> None:
    found = api.run(work / "net.toml", work / "float", targets=[NPU], overrides=["quantize.enabled=false"])
    (entry,) = found.report["targets"]
    assert set(entry["artifacts"]) == {"float"}
    assert not {"latency", "estimate", "runtimes"} & set(entry)
    assert any("the unit runs int8 only, and nothing was quantized" in t for t in found.report["warnings"])


# What the commands make of the bundle


def test_stored_samples_come_out_again(bundle: Bundle, capsys: Capture) -> None:
    found = json.loads(run(capsys, "parity", bundle.folder, "--json"))
    assert found["ok"]
    assert [t["target"] for t in found["targets"]] == [LITERT, NPU, MICRO]
    for target in found["targets"]:
        assert [row["kind"] for row in target["replay"]] == ["float", "float", "int8", "int8"]
        assert {row["max_abs"] for row in target["replay"]} == {0.0}


def test_parity_on_samples_compares_the_graphs_behind_the_files(
    bundle: Bundle, work: Path, capsys: Capture
) -> None:
    arguments = ("parity", bundle.folder, "--data", work / "photos", "--layers", "--limit", "3")
    found = json.loads(run(capsys, *arguments, "--json"))
    for target in found["targets"]:
        assert target["parity"]["samples"] == 3
        assert [row["name"] for row in target["parity"]["outputs"]] == ["scores", "map"]
        assert all(row["cosine"] > 0.999 for row in target["parity"]["outputs"])
        assert {"c2", "g"} <= {row["name"] for row in target["parity"]["layers"]}
    text = run(capsys, *arguments, "--target", "ethos-u")
    assert "ethos-u:u55-128: int8 against float on 3 samples" in text
    assert "litert" not in text


def test_bench_times_a_tflite_bundle(bundle: Bundle, capsys: Capture) -> None:
    found = json.loads(run(capsys, "bench", bundle.folder, "--runs", "3", "--json"))
    assert set(found["samples_ms"]) == {"float", "int8"}
    assert all(len(times) == 3 for times in found["samples_ms"].values())
    assert any("LiteRT with XNNPACK" in note for note in found["notes"])


@pytest.mark.parametrize(
    "name",
    [
        f"{folder_name(LITERT)}/int8.decoder.onnx",
        f"{folder_name(NPU)}/int8.vela.tflite",
        f"{folder_name(MICRO)}/model.cc",
    ],
)
def test_a_changed_companion_is_refused(bundle: Bundle, tmp_path: Path, capsys: Capture, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.folder, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ModelError, match="was changed"):
        open_bundle(copy)
    assert f"{name}: was changed" in run(capsys, "parity", copy, code=2)
    (copy / name).unlink()
    assert f"{name}: is missing" in run(capsys, "parity", copy, code=2)


def test_a_second_run_does_nothing_again(
    outcome: Outcome, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.pipeline import steps

    def never(*_: Any, **__: Any) -> Mapping[str, Any]:
        pytest.fail("quantized again")

    monkeypatch.setattr(steps, "quantize", never)
    again = api.run(work / "net.toml", outcome.bundle, runs=3)
    for before, after in zip(outcome.report["targets"], again.report["targets"], strict=True):
        assert before == after
