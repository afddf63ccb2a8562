"""Vela in a process of its own: what it says, and what happens when it fails."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError, ToolError, UnknownNameError
from edgekit.graph import Graph
from edgekit.measure.result import Method
from edgekit.targets.ethos_u import process as process_module
from edgekit.targets.ethos_u.process import VelaProcess
from edgekit.targets.ethos_u.profiles import load_npu
from edgekit.targets.ethos_u.vela import VelaResult, compile_model, parse_reasons

NPU = load_npu("u55-256")


@pytest.fixture
def conv(around: Callable[..., Graph], tflite: Callable[[Graph], bytes]) -> bytes:
    return tflite(around("Conv", [(1, 8, 16, 16)], ((8, 8, 3, 3),), pads=[1, 1, 1, 1]))


@pytest.fixture
def scattered(around: Callable[..., Graph], tflite: Callable[[Graph], bytes]) -> bytes:
    index = np.array([3, 1], np.int64)
    return tflite(around("Gather", [(1, 16, 64)], (index,), axis=1))


def test_all_on_the_npu_is_an_estimate(conv: bytes, vela: VelaProcess) -> None:
    result = compile_model(conv, NPU, process=vela)
    assert result.complete
    assert (result.npu_ops, result.cpu_ops, result.warnings) == (3, (), ())
    assert result.model[4:8] == b"TFL3"
    assert b"ethos-u" in result.model
    assert sum(layer.cycles for layer in result.layers) == result.cycles > 0
    assert result.macs == sum(layer.macs for layer in result.layers) == 16 * 16 * 8 * (8 + 72 + 72)
    assert all(0 < layer.utilisation <= 1 for layer in result.layers)
    assert 0 < result.sram_bytes < NPU.arena_bytes
    assert result.off_chip_flash_bytes > 0
    estimate = result.estimate()
    assert estimate is not None
    assert estimate.method is Method.COMPILER_ESTIMATE
    assert estimate.unit == "ms"
    assert estimate.value == pytest.approx(result.cycles / 500e6 * 1e3)


def test_the_figures_are_those_of_the_command_line(conv: bytes, vela: VelaProcess, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(conv)
    command = [
        sys.executable,
        "-m",
        "ethosu.vela",
        "m.tflite",
        "--output-dir",
        "out",
        "--config",
        "Arm/vela.ini",
    ]
    command += ["--accelerator-config", NPU.accelerator, "--system-config", NPU.system_config]
    command += ["--memory-mode", NPU.memory_mode, "--arena-cache-size", str(NPU.arena_bytes)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (summary,) = (tmp_path / "out").glob("*summary*.csv")
    (row,) = csv.DictReader(summary.read_text().splitlines())
    result = compile_model(conv, NPU, process=vela)
    assert result.cycles == int(row["cycles_total"])
    assert result.sram_bytes == float(row["sram_memory_used"]) * 1024
    assert result.off_chip_flash_bytes == float(row["off_chip_flash_memory_used"]) * 1024
    assert result.model == (tmp_path / "out" / "m_vela.tflite").read_bytes()


def test_an_operator_on_the_cpu_leaves_no_estimate(scattered: bytes, vela: VelaProcess) -> None:
    result = compile_model(scattered, NPU, process=vela)
    (left,) = result.cpu_ops
    assert (left.op, left.reason) == ("GATHER", "Unsupported opType")
    assert result.npu_ops == 2
    assert not result.complete
    assert result.milliseconds is None
    assert result.estimate() is None
    assert "GATHER" in result.warnings[0]
    assert result.cycles > 0


def test_a_result_survives_its_json(scattered: bytes, vela: VelaProcess) -> None:
    result = compile_model(scattered, NPU, process=vela, keep=False)
    assert VelaResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result
    with pytest.raises(ValueError, match="not a result"):
        VelaResult.from_json({"cycles": 1})


def test_too_much_sram_is_a_warning(conv: bytes, vela: VelaProcess) -> None:
    small = NPU.model_copy(update={"arena_bytes": 1024})
    (warning,) = compile_model(conv, small, process=vela).warnings
    assert "more than the profile's 1,024" in warning


def test_the_same_model_gives_the_same_bytes(conv: bytes, vela: VelaProcess) -> None:
    assert compile_model(conv, NPU, process=vela) == compile_model(conv, NPU, process=vela)


def test_a_crash_is_one_clear_error_and_the_next_model_is_compiled(conv: bytes) -> None:
    with VelaProcess() as own:
        with pytest.raises(ToolError, match=r"Vela was ended by SIGSEGV\nFailed to load TfLite model"):
            compile_model(conv[:400], NPU, process=own)
        assert compile_model(conv, NPU, process=own).complete


def test_a_hang_is_ended(conv: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(
        tmp_path,
        monkeypatch,
        "import sys, time; print('stuck', file=sys.stderr, flush=True); time.sleep(60)",
    )
    with (
        VelaProcess("fake_vela") as own,
        pytest.raises(ToolError, match=r"longer than 1 s and was ended\nstuck"),
    ):
        compile_model(conv, NPU, timeout_s=1, process=own)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "ended early with exit code 3"),
        ("print('no JSON')", "'no JSON', which is no answer"),
        ('print(\'{"result": {"model": ""}}\')', "without an optimized model"),
        ('print(\'{"refused": "no such operator"}\')', "Vela refuses the model: no such operator"),
        ('print(\'{"error": "OSError: full"}\')', "Vela failed: OSError: full"),
    ],
)
def test_a_broken_answer_is_an_error(
    conv: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    _fake(tmp_path, monkeypatch, f"import sys; sys.stdin.readline(); {code}")
    with VelaProcess("fake_vela") as own, pytest.raises(ToolError, match=message):
        compile_model(conv, NPU, process=own)


def test_without_vela_the_error_says_what_to_install(conv: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"not installed.*edgekit\[ethos-u\]"):
        compile_model(conv, NPU)


def test_reasons_are_read_from_velas_warnings() -> None:
    log = (
        "\nWarning (supported operators) operator: MEAN, ofm: 'a'\nReason: Batch > 1: 2\nBatch must be 1.\n"
        "\nWarning (supported operators) operator: None, ofm: 'b c'\nReason: Unsupported opType\n"
        "\nWarning (supported operators) operator: X, ofm: 'd'\nReason: Shapes:\n  - IF SAME:\n    - equal\n"
    )
    assert parse_reasons(log) == {
        "a": ("MEAN", "Batch > 1: 2; Batch must be 1"),
        "b c": ("None", "Unsupported opType"),
        "d": ("X", "Shapes; IF SAME; equal"),
    }


@pytest.mark.parametrize(
    "name", ["u55-128", "u55-256", "u65-256", "u65-512", "u85-256", "u85-512", "u85-1024"]
)
def test_every_profile_is_one_that_vela_knows(name: str, conv: bytes, vela: VelaProcess) -> None:
    from configparser import ConfigParser

    npu = load_npu(name)
    ini = ConfigParser()
    ini.read_string(process_module._vela_ini())
    assert float(ini[f"System_Config.{npu.system_config}"]["core_clock"]) == npu.clock_hz
    assert f"Memory_Mode.{npu.memory_mode}" in ini
    assert npu.accelerator == f"ethos-{name}"
    assert str(npu.macs_per_cycle) == name.split("-")[1]
    assert compile_model(conv, npu, process=vela).complete


def test_a_profile_that_is_not_there_or_is_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"u99.*u55-128"):
        load_npu("u99")
    broken = tmp_path / "npu.toml"
    broken.write_text("[a]\nfamily = 'u55'\nspeed = 1\n")
    with pytest.raises(InputError, match="speed"):
        load_npu("a", broken)


def _fake(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (folder / "fake_vela.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
