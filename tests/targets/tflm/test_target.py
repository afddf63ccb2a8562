"""The microcontroller target: what lies in its folder, and whether it fits the board."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import registry
from edgekit.errors import InputError, ModelError
from edgekit.graph import Graph
from edgekit.targets.litert.target import LiteRtTarget
from edgekit.targets.tflm.fit import Need, fit, load_need
from edgekit.targets.tflm.hardware import load_boards
from edgekit.targets.tflm.target import TflmTarget
from edgekit.tflite.package import PackageRunner

GOOD = """
title = "Toy"
default = "board"
[profiles.board]
title = "Toy board"
threads = 1
memory_bytes = 2048
clock_hz = 1000
flash_bytes = 4096
arena_bytes = 1024
[profiles.board.sources]
threads = "a"
memory_bytes = "b"
clock_hz = "c"
flash_bytes = "d"
arena_bytes = "e"
"""
NEED = Need(flash_bytes=4000, arena_bytes=1000, decoder_nodes=0, operators=("AddConv2D",), source="")


def _network() -> Graph:
    """x -> two quantized convolutions with ReLU -> GlobalAveragePool in float."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "s": np.array(0.05, np.float32), "z": np.array(0, np.int8),
        "r": np.array(0.03, np.float32), "rz": np.array(-128, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_quantized"]),
        helper.make_node("DequantizeLinear", ["x_quantized", "s", "z"], ["x_dequantized"]),
    ]
    before, step, channels = "x_dequantized", 0.05, 3
    for i in range(2):
        weight = random.normal(size=(8, channels, 3, 3)).astype(np.float32) * 0.2
        scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        arrays[f"w{i}_q"] = np.round(weight / scales.reshape(-1, 1, 1, 1)).astype(np.int8)
        arrays |= {f"w{i}_s": scales, f"w{i}_z": np.zeros(8, np.int8)}
        arrays[f"b{i}_q"] = random.integers(-400, 400, 8).astype(np.int32)
        arrays |= {f"b{i}_s": scales * np.float32(step), f"b{i}_z": np.zeros(8, np.int32)}
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{i}_q", f"w{i}_s", f"w{i}_z"], [f"w{i}"], axis=0),
            helper.make_node("DequantizeLinear", [f"b{i}_q", f"b{i}_s", f"b{i}_z"], [f"b{i}"], axis=0),
            helper.make_node(
                "Conv", [before, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1], name=f"conv{i}"
            ),
            helper.make_node("Relu", [f"c{i}"], [f"a{i}"], name=f"relu{i}"),
            helper.make_node("QuantizeLinear", [f"a{i}", "r", "rz"], [f"a{i}_quantized"]),
            helper.make_node("DequantizeLinear", [f"a{i}_quantized", "r", "rz"], [f"a{i}_dequantized"]),
        ]
        before, step, channels = f"a{i}_dequantized", 0.03, 8
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["y"], name="pool"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network compiled for microcontrollers."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tflite_micro")
    return TflmTarget.create().compile(_network(), "int8", tmp_path_factory.mktemp("tflm")).path


def test_the_folder_holds_the_model_its_source_and_what_it_needs(compiled: Path) -> None:
    names = {path.name for path in compiled.parent.iterdir()}
    assert names == {"int8.tflite", "int8.decoder.onnx", "model.cc", "model.h", "memory.json"}
    need = load_need(compiled)
    assert need.flash_bytes == compiled.stat().st_size
    assert need.operators == ("AddConv2D",)
    assert need.decoder_nodes == 1
    # The two largest neighbours in memory at once, and bookkeeping.
    assert 12 * 12 * 16 < need.arena_bytes < 12 * 12 * 16 + 8192
    stored = json.loads((compiled.parent / "memory.json").read_text())
    assert (stored["arena"]["method"], stored["arena"]["value"]) == ("host", need.arena_bytes)
    assert f"kArenaSize = {need.arena_bytes};" in (compiled.parent / "model.h").read_text()


def test_it_runs_on_tflite_micro_within_one_step_of_litert(compiled: Path) -> None:
    micro = TflmTarget.create().open(compiled)
    reference = LiteRtTarget.create().open_reference(compiled)
    feeds = {"x": np.random.default_rng(2).normal(size=(1, 3, 12, 12)).astype(np.float32)}
    assert isinstance(micro, PackageRunner)
    assert not micro.optimized
    found = micro.run_codes(feeds)
    expected = reference.run_codes(feeds)
    assert found.keys() == expected.keys()
    for name, codes in expected.items():
        assert np.abs(found[name].astype(int) - codes).max() <= 1
        assert len(np.unique(codes)) > 20
    np.testing.assert_allclose(micro.run(feeds)["y"], reference.run(feeds)["y"], atol=0.03)


def test_every_profile_says_whether_it_fits(compiled: Path) -> None:
    for profile in registry.list_targets():
        if profile.name != "tflm":
            continue
        for name in profile.profiles:
            found = TflmTarget.create(name).fit(compiled)
            assert found.fits
            assert [finding.kind for finding in found.findings] == ["flash", "arena", "float-tail"]
            assert json.loads(json.dumps(found.to_json()))["need"]["arena"]["unit"] == "bytes"


def test_what_does_not_fit_names_both_figures_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "hardware.toml").write_text(GOOD)
    board = load_boards(tmp_path / "hardware.toml").profiles["board"]
    assert fit(NEED, board).fits
    assert all(not finding.remedy for finding in fit(NEED, board).findings)
    large = fit(replace(NEED, flash_bytes=5000), board)
    assert not large.fits
    assert large.findings[0].blocks
    assert "does not fit: 5,000 bytes of 4,096 bytes" in large.findings[0].text
    assert large.findings[0].remedy
    assert not large.findings[1].blocks
    assert not fit(replace(NEED, arena_bytes=1025), board).fits


def test_a_fit_without_its_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"memory\.json: cannot be used"):
        TflmTarget.create().fit(tmp_path / "int8.tflite")
    (tmp_path / "memory.json").write_text('{"arena": 1}')
    with pytest.raises(ModelError, match="Compile the network again"):
        TflmTarget.create().fit(tmp_path / "int8.tflite")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('flash_bytes = "d"', "", "must name"),
        ("flash_bytes = 4096", "", "flash_bytes"),
        ("arena_bytes = 1024", "arena_bytes = 4000", "exceeds memory_bytes"),
        ("threads = 1", "threads = 1\ncores = 2", "cores"),
    ],
)
def test_a_mistake_in_the_hardware_file_is_refused(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = tmp_path / "hardware.toml"
    path.write_text(GOOD)
    assert load_boards(path).choose(None).memory_bytes == 2048
    path.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(InputError, match=message):
        load_boards(path)


def test_the_description_has_the_boards_memories() -> None:
    described = TflmTarget.create("nucleo-h743zi").describe()["profile"]
    assert (described["flash_bytes"], described["arena_bytes"]) == (2 * 2**20, 2**19)
