"""``edgekit inspect --target``: what will leave an NPU, before anything is compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.cli import main

Capture = pytest.CaptureFixture[str]
NPU = "ethos-u:u55-256"
RESIZE = (
    '{0} = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
    "({1}, none, {2})"
)


def _save(path: Path, lines: str, *, tokens: bool = False) -> Path:
    """A network of images ``[1, 3, 12, 12]``, or of tokens ``[1, 6, 16]``."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 3,
        "w2": rng.normal(size=(8, 8, 3, 3)) / 6,
        "m1": rng.normal(size=(16, 16)) / 4,
        "m2": rng.normal(size=(16, 16)) / 4,
        "gamma": np.ones(16),
        "beta": np.zeros(16),
        "none": np.zeros(0),
        "by2": [1.0, 1.0, 2.0, 2.0],
        "by3": [1.0, 1.0, 3.0, 3.0],
        "half": 0.5,
        "one": 1.0,
        "root": 2**0.5,
    }
    shapes = (
        "(float[1,6,16] x) => (float[1,6,16] y)" if tokens else "(float[1,3,12,12] x) => (float[1,8,h,w] y)"
    )
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {shapes} {{ {lines} }}'
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        if name in lines:
            model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Everything of it runs on the NPU."""
    return _save(
        tmp_path / "clean.onnx",
        f"a = Conv(x, w1) b = Relu(a) {RESIZE.format('r', 'b', 'by2')} y = Conv(r, w2)",
    )


@pytest.fixture
def leaving(tmp_path: Path) -> Path:
    """Two Resizes by 3 and a Sin."""
    lines = (
        f"a = Conv(x, w1) {RESIZE.format('r', 'a', 'by3')} b = Conv(r, w2)"
        f" {RESIZE.format('q', 'b', 'by3')} s = Sin(q) y = Conv(s, w2)"
    )
    return _save(tmp_path / "leaving.onnx", lines)


@pytest.fixture
def ask(capsys: Capture) -> Callable[..., str]:
    def run(*arguments: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["inspect", *map(str, arguments), "--quiet"]) == code
        captured = capsys.readouterr()
        return captured.out or captured.err

    return run


def test_each_node_that_leaves_is_listed_with_rule_and_remedy(leaving: Path, ask: Callable[..., str]) -> None:
    found = json.loads(ask(leaving, "--target", NPU, "--json"))
    left = found["leaves_unit"]
    assert [entry["op"] for entry in left] == ["Resize", "Resize", "Sin"]
    assert len({entry["node"] for entry in left}) == 3
    assert all(entry["reason"] and entry["remedy"] for entry in left)
    assert "2, 4 or 8" in left[0]["reason"]
    text = ask(leaving, "--target", NPU)
    assert f"3 nodes leave the NPU on {NPU}" in text
    head = text.index("3 nodes leave the NPU")
    assert f"- 2 x Resize: {left[0]['reason']} ({left[0]['node']}, {left[1]['node']})" in text[head:]
    assert f"    → {left[0]['remedy']}" in text[head:]
    assert f"- 1 x Sin: {left[2]['reason']} ({left[2]['node']})" in text[head:]


def test_strict_fails_on_a_node_that_leaves_and_says_the_same(leaving: Path, ask: Callable[..., str]) -> None:
    assert ask(leaving, "--target", NPU, "--strict", code=1) == ask(leaving, "--target", NPU)
    found = json.loads(ask(leaving, "--target", NPU, "--strict", "--json", code=1))
    assert len(found["leaves_unit"]) == 3


def test_a_clean_model_passes(clean: Path, ask: Callable[..., str]) -> None:
    assert f"Nothing leaves the NPU on {NPU}" in ask(clean, "--target", NPU, "--strict")
    assert json.loads(ask(clean, "--target", NPU, "--strict", "--json"))["leaves_unit"] == []


def test_rules_are_those_of_the_profile(tmp_path: Path, ask: Callable[..., str]) -> None:
    path = _save(
        tmp_path / "triple.onnx", f"a = Conv(x, w1) {RESIZE.format('r', 'a', 'by3')} y = Conv(r, w2)"
    )
    assert "1 node leaves the NPU on ethos-u:u55-128" in ask(
        path, "--target", "ethos-u:u55-128", "--strict", code=1
    )
    assert "Nothing leaves" in ask(path, "--target", "ethos-u:u85-256", "--strict")


def test_the_float_end_does_not_count(tmp_path: Path, ask: Callable[..., str]) -> None:
    path = _save(tmp_path / "tail.onnx", "a = Conv(x, w1) b = Conv(a, w2) s = Sin(b) y = Mul(s, half)")
    found = json.loads(ask(path, "--target", NPU, "--strict", "--json"))
    assert found["leaves_unit"] == []
    assert {entry["op"] for entry in found["float_nodes"]} == {"Sin", "Mul"}


def test_rules_see_the_network_as_the_target_prepares_it(tmp_path: Path, ask: Callable[..., str]) -> None:
    """A GELU that is spelled out holds an Erf, which no NPU has; as one operator it is a table."""
    gelu = "d = Div(a, root) e = Erf(d) p = Add(e, one) m = Mul(a, p) g = Mul(m, half)"
    path = _save(tmp_path / "gelu.onnx", f"a = Conv(x, w1) {gelu} y = Conv(g, w2)")
    found = json.loads(ask(path, "--target", NPU, "--strict", "--json"))
    assert found["leaves_unit"] == []
    assert found["ops"]["Erf"] == 1, "the network itself is described as it was given"
    assert any(change["pass_name"] == "fuse_gelu" for change in found["changes"])


def test_a_layer_normalization_does_not_leave_the_npu(tmp_path: Path, ask: Callable[..., str]) -> None:
    """Vela keeps all of it on the NPU: as ``prepare`` writes it, its root is one RSQRT."""
    norm = "n = LayerNormalization <axis=-1> (a, gamma, beta)"
    path = _save(tmp_path / "norm.onnx", f"a = MatMul(x, m1) {norm} y = MatMul(n, m2)", tokens=True)
    found = json.loads(ask(path, "--target", NPU, "--json"))
    assert found["leaves_unit"] == []


def test_strict_needs_a_target(clean: Path, ask: Callable[..., str]) -> None:
    text = ask(clean, "--strict", code=2)
    assert "--strict" in text
    assert "--target" in text
    assert json.loads(ask(clean, "--strict", "--json", code=2))["error"]["type"] == "UsageError"


def test_a_target_without_rules_is_strict_about_float_nodes(
    clean: Path, leaving: Path, ask: Callable[..., str]
) -> None:
    assert json.loads(ask(clean, "--target", "litert", "--strict", "--json"))["leaves_unit"] is None
    text = ask(leaving, "--target", "litert", "--strict", code=1)
    assert "2 nodes stay in float on litert:host" in text
    assert "no integer kernel for Sin" in text
    assert "leaves the NPU" not in text
    assert ask(leaving, "--target", "litert")


def test_an_unknown_profile_is_refused_with_those_there_are(clean: Path, ask: Callable[..., str]) -> None:
    text = ask(clean, "--target", "ethos-u:u99", "--strict", code=2)
    assert "u55-256" in text
