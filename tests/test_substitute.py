"""The ``substitute`` step of a recipe, alone and with a training behind it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgekit import api
from edgekit.cli import main
from edgekit.errors import EdgekitError, UsageError
from edgekit.pipeline import compress, line
from edgekit.pipeline.line import Outcome
from edgekit.pipeline.substitute_step import substitute_graph
from edgekit.recipe_file import load_recipe
from edgekit.report.terminal import summary
from edgekit.session import open_runner

Capture = pytest.CaptureFixture[str]
SILU = "{0}g = Sigmoid({1}) {0} = Mul({1}, {0}g)"
BODY = f"""a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1) {SILU.format("s1", "a")}
    b = Conv <pads=[1,1,1,1]> (s1, w2) {SILU.format("s2", "b")} c = Conv(s2, w3) y = Relu(c)"""
DISTILL = """
[[compress]]
pass = "distill"
epochs = 1
batch = 3
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.onnx``, two SiLUs called ``s1`` and ``s2`` with the gates ``s1g`` and ``s2g``."""
    folder = tmp_path_factory.mktemp("substitute")
    rng = np.random.default_rng(0)
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    model = onnx.parser.parse_model(f"{header} g (float[1,3,16,16] x) => (float[1,8,8,8] y) {{ {BODY} }}")
    for node in model.graph.node:
        node.name = node.output[0]
    for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 1, 1)}.items():
        # Inputs of the activations spread over -6 to 6, where SiLU and ReLU6 are far apart.
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, folder / "net.onnx")
    (folder / "photos").mkdir()
    for index in range(6):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    return folder


def recipe(work: Path, name: str, step: str, more: str = "", target: str = "null") -> Path:
    path = work / f"{name}.toml"
    path.write_text(
        f"""
        [model]
        source = "net.onnx"
        [data]
        calibrate = "photos"
        preprocess = {{ resize = "stretch" }}
        [[compress]]
        pass = "substitute"
        {step}
        {more}
        [deploy]
        targets = ["{target}"]
        """
    )
    return path


@pytest.fixture(scope="module")
def trained(work: Path) -> Outcome:
    """All SiLUs become HardSwishes, then one epoch."""
    path = recipe(work, "trained", 'from = "silu"\nto = "hard_swish"', DISTILL)
    return api.run(path, work / "trained", runs=2)


def ops(outcome: Outcome) -> Counter[str]:
    (target,) = outcome.report["targets"]
    model = onnx.load(outcome.bundle / target["artifacts"]["float"]["path"])
    return Counter(node.op_type for node in model.graph.node)


def test_the_activations_are_replaced_and_the_network_is_trained(trained: Outcome) -> None:
    assert ops(trained) == {"Conv": 3, "HardSwish": 2, "Relu": 1}
    substitute, distill = trained.report["compress"]["steps"]
    assert (substitute["pass"], distill["pass"]) == ("substitute", "distill")
    assert (substitute["from"], substitute["to"]) == ("silu", "hard_swish")
    assert substitute["replaced"] == ["s1", "s2"]
    assert substitute["summary"] == "2 silu became hard_swish"
    # Weights and work are as they were.
    assert substitute["before"] == substitute["after"]
    assert substitute["distance"]["before"] == pytest.approx(0, abs=1e-6)
    assert substitute["distance"]["after"] > 0.01
    assert distill["distance"]["before"] == pytest.approx(substitute["distance"]["after"], rel=1e-4)
    assert distill["distance"]["after"] <= distill["distance"]["before"]


def test_the_report_shows_the_step(trained: Outcome) -> None:
    text = summary(trained.report)
    assert "1 substitute" in text
    assert "2 silu became hard_swish" in text
    assert "2 distill" in text
    assert "Distance to the original: 0 before" in text
    page = (trained.bundle / "report.html").read_text()
    assert "substitute" in page
    assert "2 silu became hard_swish" in page


def test_the_page_says_what_was_replaced(trained: Outcome) -> None:
    from edgekit.report.compression import step_view

    shown = " ".join(value for _, value in step_view(trained.report["compress"]["steps"][0]).facts)
    assert "silu" in shown
    assert "s1" in shown


def test_relu6_in_one_place_computes_relu6_there(work: Path) -> None:
    path = recipe(work, "one", 'from = "silu"\nto = "relu6"\nnodes = ["s2*"]')
    found = api.run(path, work / "one", runs=2)
    assert ops(found) == {"Conv": 3, "Relu": 1, "Clip": 1, "Sigmoid": 1, "Mul": 1}
    (step,) = found.report["compress"]["steps"]
    assert step["replaced"] == ["s2"]
    (target,) = found.report["targets"]
    image = np.random.default_rng(3).random((1, 3, 16, 16), dtype=np.float32)
    original = open_runner(work / "net.onnx", threads=1, extra_outputs=["b", "s1"]).run({"x": image})
    clipped = np.clip(original["b"], 0, 6)
    got = open_runner(
        found.bundle / target["artifacts"]["float"]["path"], threads=1, extra_outputs=["s1", "s2"]
    ).run({"x": image})
    np.testing.assert_allclose(got["s1"], original["s1"], atol=1e-4)
    np.testing.assert_allclose(got["s2"], clipped, atol=1e-3)
    assert clipped.max() == 6


def test_the_command_line_shows_the_step(work: Path, capsys: Capture) -> None:
    path = recipe(work, "shown", 'from = "silu"\nto = "hard_swish"')
    arguments = ["run", str(path), "--out", str(work / "shown"), "--runs", "2", "--quiet"]
    assert main(arguments) == 0
    assert "2 silu became hard_swish" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"]["compress"]["steps"][0]["pass"] == "substitute"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ('from = "silu"\nto = "sigmoid"', ("'sigmoid' does not stand in for 'silu'", "hard_swish")),
        ('from = "swish"\nto = "relu"', ("no activation called 'swish'", "silu", "gelu")),
        ('from = "gelu"\nto = "relu"', ("the network has no gelu", "substitute, from")),
        ('from = "silu"\nto = "relu"\nnodes = ["s3*"]', ("no node is called 's3*'", "substitute, nodes")),
    ],
)
def test_what_cannot_be_replaced_is_said(
    work: Path, tmp_path: Path, capsys: Capture, step: str, words: tuple[str, ...]
) -> None:
    path = recipe(work, "wrong", step)
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["a", "c*", "y"])
def test_a_pattern_that_meets_no_such_activation_is_named(work: Path, tmp_path: Path, pattern: str) -> None:
    """The network has SiLUs: the message must be about the pattern, not deny them."""
    path = recipe(work, "aside", f'from = "silu"\nto = "relu"\nnodes = ["{pattern}"]')
    with pytest.raises(UsageError) as caught:
        api.run(path, tmp_path / "out", runs=2)
    assert pattern in str(caught.value)
    assert "has no silu" not in str(caught.value)


def test_a_silu_may_be_named_by_its_sigmoid(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``replace_activations`` says: a SiLU is named by its Sigmoid or its Mul."""
    found = _replaced(work, tmp_path, monkeypatch, '["s1g"]')
    assert found == ["s1"]


def test_a_pattern_may_meet_other_nodes_too(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _replaced(work, tmp_path, monkeypatch, '["s1*", "a", "?2"]') == ["s1", "s2"]
    assert _replaced(work, tmp_path, monkeypatch, "[]") == ["s1", "s2"]


def _replaced(work: Path, out: Path, monkeypatch: pytest.MonkeyPatch, nodes: str) -> list[str]:
    seen: list[Any] = []
    original = substitute_graph

    def spied(*arguments: Any) -> Any:
        found = original(*arguments)
        seen.append(found[1]["replaced"])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(compress, "substitute_graph", spied)
        patched.setattr(line, "_line", lambda *_: pytest.fail("far enough"))
        path = recipe(work, "named", f'from = "silu"\nto = "relu"\nnodes = {nodes}')
        with pytest.raises(pytest.fail.Exception, match="far enough"):
            api.run(path, out / "named", fresh=True)
    return list(seen[0])


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ('from = "silu"', "to"),
        ('to = "relu"', "from"),
        ('from = "silu"\nto = "relu"\nnode = ["s1"]', "node"),
        ('from_ = "silu"\nto = "relu"', "from"),
        ('from = "silu"\nto = ""', "to"),
    ],
)
def test_a_wrong_section_names_the_key(work: Path, step: str, key: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        load_recipe(recipe(work, "section", step))
    assert key in str(caught.value)


def test_an_activation_that_the_target_lacks_can_be_replaced(work: Path) -> None:
    """What the step is for: without it the network cannot be compiled at all."""
    pytest.importorskip("ai_edge_litert")
    model = onnx.load(work / "net.onnx")
    gates = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    for gate in gates:
        product = next(n for n in model.graph.node if n.op_type == "Mul" and gate.output[0] in n.input)
        product.op_type = "Mish"
        del product.input[1]
        model.graph.node.remove(gate)
    model.opset_import[0].version = 18
    onnx.save(model, work / "mish.onnx")
    path = recipe(work, "mish", 'from = "mish"\nto = "hard_swish"', target="litert:host-1t")
    path.write_text(path.read_text().replace("net.onnx", "mish.onnx"))
    assert api.run(path, work / "mish", runs=2).report["compress"]["steps"][0]["replaced"]


def test_an_npu_runs_what_was_put_there(work: Path) -> None:
    """SiLU is two operators on Ethos-U, ReLU6 is none: Vela runs it within the convolution."""
    pytest.importorskip("ethosu")
    pytest.importorskip("ai_edge_litert")
    path = recipe(work, "npu", 'from = "silu"\nto = "relu6"', target="ethos-u:u55-128")
    found = api.run(path, work / "npu", runs=2)
    (target,) = found.report["targets"]
    placed = target["placement"]["int8"]["ops"]
    assert placed["CONV_2D"] == 3
    assert not {"LOGISTIC", "MUL", "RELU6"} & set(placed)
    assert target["estimate"]["int8"]["missing"] == []
