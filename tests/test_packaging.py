"""The package as a user meets it: its namespace, its folders, how quickly it answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import edgekit

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "onnxruntime", "onnxscript", "PIL", "faster_coco_eval", "sklearn", "jinja2", "onnx")
PUBLIC = {"load", "quantize", "export", "bench", "parity", "run"}


def test_the_public_namespace() -> None:
    assert set(getattr(edgekit, "__all__", ())) >= PUBLIC
    for name in PUBLIC:
        assert callable(getattr(edgekit, name))


@pytest.mark.parametrize("name", ["targets", "models"])
def test_targets_and_models_are_reached_through_symlinks(name: str) -> None:
    link = ROOT / "edgekit" / name
    assert link.is_symlink(), (
        "this checkout has no symlinks: git config core.symlinks true, then check out again"
    )
    assert link.readlink() == Path("..") / name
    spec = importlib.util.find_spec(f"edgekit.{name}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == link


@pytest.mark.parametrize("module", ["edgekit", "edgekit.cli", "edgekit.recipe", "edgekit.registry"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint(HEAVY)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    others = [name for name in wanted if not name.startswith("edgekit[")]  # an extra may take in another
    assert {name.partition(">=")[0].lower() for name in others} <= pinned


def test_the_check_of_the_wheel_finds_what_is_missing() -> None:
    check = wheel_contents()
    good = list(check.REQUIRED)
    assert check.faults(good) == []
    assert check.faults(good[1:]) == [f"missing: {good[0]}"]
    assert check.faults([*good, "targets/__init__.py"]) == ["must not be in the wheel: targets/"]


def wheel_contents() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_contents", ROOT / ".ci" / "wheel_contents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
