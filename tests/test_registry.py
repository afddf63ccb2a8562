"""The registry: what is found, what is refused, and that looking is cheap."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.errors import InputError, UnknownNameError

TOML = """
title = "Toy"
default = "b"
[profiles.a]
title = "first"
[profiles.b]
title = "second"
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "toy_net"
    folder.mkdir()
    (folder / "recipe.toml").write_text("[model]\nsource = 'toy.onnx'\nmade = 2024-01-02\n", encoding="utf-8")
    (tmp_path / "no_recipe").mkdir()
    monkeypatch.setattr(registry, "MODELS_FOLDER", tmp_path)
    return folder


def test_the_built_in_targets_are_there() -> None:
    assert {"null", "ort-cpu"} <= set(registry.target_names())


def test_a_target_is_loaded_with_its_default_profile_or_the_named_one() -> None:
    assert registry.load_target("ort-cpu").profile.name == "host"
    assert registry.load_target("ort-cpu:rpi4").profile.threads == 4


def test_a_folder_is_the_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("toy_npu", "__pycache__", "bad-name"):
        (tmp_path / name).mkdir()
    (tmp_path / "toy_npu" / "hardware.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "bad-name" / "hardware.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.setattr(registry, "TARGETS_FOLDER", tmp_path)
    (summary,) = registry.list_targets()
    assert summary.to_json() == {
        "name": "toy-npu",
        "title": "Toy",
        "profiles": {"a": "first", "b": "second"},
        "default": "b",
        "quantizes": False,
    }


@pytest.mark.parametrize(
    ("asked", "suggested"), [("ort_cpu", "ort-cpu"), ("ORT-CPU", "ort-cpu"), ("ort-cpu:rpi", "rpi")]
)
def test_an_unknown_name_lists_the_known_ones_and_suggests(asked: str, suggested: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{suggested}") as caught:
        registry.load_target(asked)
    assert caught.value.valid
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("asked", ["zzz", "", ":host", "ort-cpu:", "ort-cpu:host:more", "../null"])
def test_a_name_far_from_all_is_refused(asked: str) -> None:
    with pytest.raises(UnknownNameError):
        registry.load_target(asked)


def test_listing_imports_no_target_and_no_runtime() -> None:
    code = (
        "import sys; from edgekit import registry; registry.list_targets(); registry.model_names();"
        "print([m for m in sys.modules if m.startswith(('edgekit.targets', 'onnx', 'torch', 'numpy'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_is_described(models: Path) -> None:
    text = "# Toy\n\n\n## Use\n\nA toy network\nfor tests.\n\nMore text."
    (models / "README.md").write_text(text, encoding="utf-8")
    (models / "score.json").write_text('{"mAP": 0.5}', encoding="utf-8")
    assert registry.model_names() == ("toy-net",)
    described = registry.describe_model("toy-net")
    assert described["summary"] == "A toy network for tests."
    assert described["score"] == {"mAP": 0.5}
    assert described["settings"]["model"] == {"source": "toy.onnx", "made": "2024-01-02"}
    json.dumps(described)


def test_a_model_needs_no_readme_and_no_score(models: Path) -> None:
    described = registry.describe_model("toy-net")
    assert described["summary"] == ""
    assert "score" not in described


def test_a_broken_file_of_a_model_is_named(models: Path) -> None:
    (models / "score.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"score\.json"):
        registry.describe_model("toy-net")


def test_an_unknown_model_is_refused(models: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'toy-net'"):
        registry.describe_model("toy-nte")


def test_every_model_in_the_repository_can_be_described() -> None:
    for name in registry.model_names():
        json.dumps(registry.describe_model(name), allow_nan=False)
