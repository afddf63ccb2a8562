"""Noise at the outputs, planted and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.judge import Judge, Score, output_branches
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.scheme import Format, Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]

HEADS = """g (float[1,3,4,4] x) => (float[1,80] y) {
    a = Conv(x, w1) s = Sigmoid(a) {s} b = Conv(x, w2) m = Mul(b, big) {m}
    j = Concat <axis=1> ({sm}) y = Reshape(j, shape)
}"""


def _heads(build: Build, sigmoid: str = "", boxes: str = "", names: str = "s, m") -> Graph:
    """A detector's end: scores below one and boxes in the hundreds, joined."""
    random = np.random.default_rng(0)
    text = HEADS.replace("{s}", sigmoid).replace("{m}", boxes).replace("{sm}", names)
    constants = {
        "w1": random.standard_normal((3, 3, 1, 1)), "w2": random.standard_normal((2, 3, 1, 1)),
        "big": np.float32(300), "shape": np.array([1, 80]), "e": np.float32(0.01), "zero": np.float32(0),
    }  # fmt: skip
    return build(text, {k: v for k, v in constants.items() if k in text})


def test_branches_of_a_joined_output(build: Build) -> None:
    assert output_branches(_heads(build)) == ["s", "m"]


def test_each_output_is_a_branch_and_integers_are_none(build: Build) -> None:
    text = """g (float[1,3,4,4] x) => (float[1,3,4,4] y, float[3,16] z, int64[1,1,4,4] n) {
        y = Relu(x) e = Exp(x) z = Reshape(e, shape) n = ArgMax <axis=1> (x)
    }"""
    assert output_branches(build(text, {"shape": np.array([3, 16])})) == ["y", "e"]


def test_an_input_that_is_passed_on_is_a_branch(build: Build) -> None:
    text = "g (float[1,3] x) => (float[1,6] y) { e = Exp(x) y = Concat <axis=1> (x, e) }"
    assert output_branches(build(text)) == ["x", "e"]


def test_the_graph_itself_has_no_noise(build: Build, samples: MakeSamples) -> None:
    graph = _heads(build)
    score = Judge(graph, samples(graph, 3)).score(graph)
    assert score.noise == {"s": 0.0, "m": 0.0}
    assert score.db == pytest.approx(120.0)


def _replaced(graph: Graph, tensor: str, error: float) -> Graph:
    """``graph`` with ``error`` added to ``tensor``, which keeps its name."""
    import onnx_ir as ir

    result = graph.copy()
    value = result.values()[tensor]
    node = value.producer()
    assert node is not None
    inner = ir.Value(name=f"{tensor}.before", shape=value.shape, type=value.type)
    constant = ir.tensor(np.float32(error), name="planted")
    planted = ir.Value(
        name="planted", shape=ir.Shape([]), type=ir.TensorType(constant.dtype), const_value=constant
    )
    result.model.graph.register_initializer(planted)
    value.name = f"{tensor}.clean"
    add = ir.node("Add", [value, planted], name="plant")
    add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = tensor, inner.shape, inner.type
    users = [u for u in value.uses() if u.node is not add]
    result.model.graph.insert_after(node, add)
    for use in users:
        use.node.replace_input_with(use.idx, add.outputs[0])
    return result


@pytest.mark.parametrize(("tensor", "error"), [("s", 0.01), ("s", 0.1), ("m", 1.0), ("m", 30.0)])
def test_planted_noise_is_measured(tensor: str, error: float, build: Build, samples: MakeSamples) -> None:
    graph = _heads(build)
    feeds = samples(graph, 5)
    score = Judge(graph, feeds).score(_replaced(graph, tensor, error))
    runner = open_runner(graph, threads=1, extra_outputs=[tensor])
    signal = np.stack([runner.run(f)[tensor] for f in feeds]).astype(np.float64)
    expected = error**2 / (signal**2).mean()
    other = {"s": "m", "m": "s"}[tensor]
    assert score.noise[other] == pytest.approx(0.0, abs=1e-9)
    assert score.noise[tensor] == pytest.approx(expected, rel=1e-3)
    assert score.db == pytest.approx(-10 * np.log10(expected / 2), abs=0.01)


def test_large_numbers_do_not_hide_small_ones(build: Build, samples: MakeSamples) -> None:
    graph = _heads(build)
    judge = Judge(graph, samples(graph, 3))
    # Scores all wrong, boxes right: half of the answer is lost, though the output as a whole hardly differs.
    score = judge.score(_replaced(graph, "s", 5.0))
    assert score.noise == {"s": 1.0, "m": pytest.approx(0.0, abs=1e-9)}
    assert score.db == pytest.approx(3.01, abs=0.01)
    assert judge.runs == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_lost(bad: float, build: Build, samples: MakeSamples) -> None:
    graph = _heads(build)
    score = Judge(graph, samples(graph, 2)).score(_replaced(graph, "s", bad))
    assert score.noise["s"] == 1.0
    assert score.db == pytest.approx(3.01, abs=0.01)


def test_quantized_branches_are_found(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    """A branch that a quantized graph holds under another name, and one that is a graph output."""
    text = """g (float[1,3,8,8] x) => (float[1,32,8,8] y, float[1,16,8,8] z) {
        a = Conv(x, w1) z = Conv(a, w2) b = Conv(a, w3) y = Concat <axis=1> (z, b)
    }"""
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 1, 1), "w2": (16, 8, 1, 1), "w3": (16, 8, 1, 1)}
    graph = build(text, {k: random.standard_normal(v) for k, v in shapes.items()})
    feeds = samples(graph, 2)
    plan = make_plan(graph, scheme)
    params = {t: activation_params(-12.0, 12.0, Format.UINT8) for t in plan.tensors}
    quantized = insert_qdq(graph, plan, params, scheme)
    score = Judge(graph, feeds).score(quantized)
    assert set(score.noise) == {"z", "b"}
    float_runner, runner = open_runner(graph, threads=1), open_runner(quantized, threads=1)
    error = energy = 0.0
    for feed in feeds:
        wanted, found = float_runner.run(feed)["z"].astype(np.float64), runner.run(feed)["z"]
        error, energy = error + ((found - wanted) ** 2).sum(), energy + (wanted**2).sum()
    assert score.noise["z"] == pytest.approx(error / energy, rel=1e-3)
    assert 1e-5 < score.noise["b"] < 3e-2


def test_decibels_of_the_mean_branch() -> None:
    assert Score({"a": 0.01, "b": 0.03}).db == pytest.approx(-10 * np.log10(0.02))
    assert Score({"a": 1.0}).db == pytest.approx(0.0)
