"""The Python interface."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.api import default_out
from edgekit.errors import UsageError

ROOT = Path(__file__).parent.parent


def test_the_public_names() -> None:
    assert edgekit.__all__ == [
        "EdgekitError",
        "apply_plan",
        "bench",
        "distill",
        "export",
        "inspect",
        "load",
        "parity",
        "prune",
        "quantize",
        "run",
        "sparsify",
        "torch_module",
    ]
    assert set(edgekit.__all__) <= set(dir(edgekit))
    with pytest.raises(AttributeError, match="prune_all"):
        _ = edgekit.prune_all


def test_prune_stays_the_function_when_its_folder_is_imported() -> None:
    importlib.import_module("edgekit.prune.groups")
    assert callable(edgekit.prune)


def test_quantize_stays_the_function_when_its_folder_is_imported() -> None:
    module = importlib.import_module("edgekit.quantize.scheme")
    assert callable(edgekit.quantize)
    from edgekit.quantize import scheme

    assert scheme is module


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, edgekit; print(*(m for m in ('numpy', 'torch', 'onnx', 'typer') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_load_and_quantize(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    before = graph.sha256()
    result = edgekit.quantize(
        graph, data=material / "photos", target="ort-cpu", preprocess="resize=stretch", calibrator="minmax"
    )
    assert graph.sha256() == before
    assert result.graph.history[: len(graph.history)] == graph.history
    assert any(node.op_type == "QuantizeLinear" for node in result.graph.nodes)
    assert result.db > 10


def test_quantize_takes_arrays(material: Path) -> None:
    graph = edgekit.load(str(material / "net.onnx"))
    rng = np.random.default_rng(0)
    samples = [rng.random((1, 3, 32, 32), np.float32) for _ in range(3)]
    assert edgekit.quantize(graph, samples, calibrator="minmax").db > 10


def test_quantize_refuses(material: Path) -> None:
    graph = edgekit.load(material / "net.onnx")
    with pytest.raises(UsageError, match="float only"):
        edgekit.quantize(graph, material / "photos", "null")
    with pytest.raises(UsageError, match="no option 'bits'"):
        edgekit.quantize(graph, material / "photos", bits=4)


def test_inspect(material: Path) -> None:
    found = edgekit.inspect(material / "net.onnx", "ort-cpu")
    assert found["clashes"] is None
    assert found["ops"]["Conv"] == 2
    assert {node["op"] for node in found["float_nodes"]} >= {"Sigmoid"}
    known = edgekit.inspect(material / "net.onnx", data=material / "photos")
    assert isinstance(known["clashes"], list)
    assert "float_nodes" not in known


def test_the_default_folder_goes_by_the_recipe() -> None:
    assert default_out("a/b/recipe.toml") == Path("build/b")
    assert default_out("a/b/fast.toml") == Path("build/fast")
