"""What is said about this machine."""

import json
import os
from pathlib import Path

import pytest

from edgekit.measure import machine as module
from edgekit.measure.machine import core_ids, cpu_features, cpu_name, machine

ARM = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm asimddp\n\nModel\t\t: Raspberry Pi 5\n"
)
INTEL = "processor : 0\nmodel name : Some CPU @ 2.0GHz\nflags : fpu avx2 avx512f avx512_vnni\n"


def test_it_is_json_and_complete() -> None:
    found = json.loads(json.dumps(machine()))
    assert found["cores"] >= 1
    assert all(found[key] for key in ("cpu", "os", "python", "onnxruntime"))


def test_cores_are_among_those_allowed() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert set(core_ids()) <= os.sched_getaffinity(0)
    assert len(set(core_ids())) == len(core_ids())


def test_two_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_siblings", lambda number: {number, number ^ 1})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    assert core_ids() == (0, 2, 6)


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (ARM, "Raspberry Pi 5", ("NEON", "NEON dot product")),
        (INTEL, "Some CPU @ 2.0GHz", ("AVX2", "AVX-512", "AVX-512 VNNI")),
    ],
)
def test_cpuinfo_of_arm_and_intel(
    text: str, name: str, features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert cpu_name() == name
    assert cpu_features() == features


def test_a_system_without_cpuinfo_has_a_name_and_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert cpu_name()
    assert cpu_features() == ()
