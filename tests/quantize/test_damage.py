"""The tensor that 8 bits hurt most is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.damage import estimate_damage, measure_damage, next_weights
from edgekit.quantize.histogram import Histogram
from edgekit.quantize.judge import Judge
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qdq import insert_pairs
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.ranges import RangeOptions, choose_params
from edgekit.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]


def _fragile(build: Build, where: int) -> Graph:
    """Four layers; behind layer ``where`` most channels are 500 times smaller than one of them."""
    random = np.random.default_rng(0)
    lines, source = "", "x"
    constants: dict[str, Any] = {}
    for index in range(4):
        lines += f"c{index} = Conv({source}, w{index}) r{index} = Relu(c{index}) "
        constants[f"w{index}"] = random.standard_normal((16, 16, 1, 1)) / 4
        source = f"r{index}"
    scale = np.where(np.arange(16) == 3, 1.0, 1 / 500).astype(np.float32)
    constants[f"w{where}"] *= scale.reshape(-1, 1, 1, 1)
    constants[f"w{where + 1}"] /= scale.reshape(1, -1, 1, 1)
    lines += f"y = Conv({source}, last)"
    constants["last"] = random.standard_normal((16, 16, 1, 1)) / 4
    return build(f"g (float[1,16,6,6] x) => (float[1,16,6,6] y) {{ {lines} }}", constants)


def _prepared(
    graph: Graph, scheme: Scheme, feeds: list[dict[str, Array]]
) -> tuple[Plan, dict[str, QParams], dict[str, Histogram], Judge]:
    plan = make_plan(graph, scheme)
    histograms = dict(observe(graph, plan.sources, feeds).histograms)
    calibration = observe(graph, plan.sources, feeds)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX))
    return plan, params, histograms, Judge(graph, feeds[:3])


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_planted_fragile_tensor_is_first(
    where: int, build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph = _fragile(build, where)
    plan, params, histograms, judge = _prepared(graph, scheme, samples(graph, 8))
    estimates = estimate_damage(graph, plan, params, histograms)
    measured = measure_damage(graph, plan, params, histograms, judge, scheme, search=False)
    fragile = f"r{where}"
    assert max(estimates, key=lambda t: estimates[t]) == fragile
    assert max(measured, key=lambda t: measured[t].noise) == fragile
    others = [d.noise for t, d in measured.items() if t != fragile]
    assert measured[fragile].noise > 20 * max(others)
    assert all(0 <= e <= 1 for e in estimates.values())


def test_what_is_measured_is_one_tensor_alone(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _fragile(build, 1)
    plan, params, histograms, judge = _prepared(graph, scheme, samples(graph, 8))
    measured = measure_damage(graph, plan, params, histograms, judge, scheme, search=False)
    assert set(measured) == set(plan.sources)
    alone = judge.score(insert_pairs(graph, {"r1": params["r1"]}), integer=False)
    assert measured["r1"].noise == pytest.approx(alone.noise["y"])
    assert (measured["r1"].range, measured["r1"].method) == (params["r1"].range, "")


def test_a_better_range_is_looked_for(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    """One pixel in a sample is a thousand times larger than all others: cutting it pays."""
    text = "g (float[1,16,6,6] x) => (float[1,16,6,6] y) { a = Conv(x, w) t = Tanh(a) y = Conv(t, w) }"
    graph = build(text, {"w": np.random.default_rng(0).standard_normal((16, 16, 1, 1)) / 4})
    feeds = samples(graph, 8)
    feeds[5]["x"][0, 2, 3, 3] = 3000.0
    plan, params, histograms, judge = _prepared(graph, scheme, feeds)
    plain = measure_damage(graph, plan, params, histograms, judge, scheme, search=False)
    searched = measure_damage(graph, plan, params, histograms, judge, scheme, search=True)
    assert plain["x"].method == ""
    assert searched["x"].noise < 0.5 * plain["x"].noise
    assert searched["x"].method
    again = insert_pairs(graph, {"x": activation_params(*searched["x"].range, scheme.activation)})
    assert judge.score(again, integer=False).noise["y"] == pytest.approx(searched["x"].noise, rel=1e-6)
    for tensor, found in searched.items():
        assert found.noise <= plain[tensor].noise
        if not found.method:
            assert found.range == params[tensor].range


def test_the_weights_that_a_tensor_reaches(build: Build) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] z) {
        a = Conv(x, w1) r = Relu(a) b = Conv(x, w1) j = Concat <axis=1> (b, r) y = Conv(j, w2)
        t = Tanh(r) z = Conv(t, w3)
    }"""
    constants = {"w1": np.ones((4, 3, 1, 1)), "w2": np.ones((4, 8, 1, 1)), "w3": np.ones((4, 4, 1, 1))}
    values = build(text, constants).values()
    assert [(n.name, first) for n, first in next_weights(values["a"], 0)] == [("y.node", 4)]
    assert [(n.name, first) for n, first in next_weights(values["b"], 0)] == [("y.node", 0)]
    assert [(n.name, first) for n, first in next_weights(values["t"], 0)] == [("z.node", 0)]
    assert list(next_weights(values["y"], 0)) == []


def test_the_estimate_is_right_in_size(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    """Noise over signal on the next weights' outputs, within a factor of what the layer really shows."""
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) y = Conv(a, w) }"
    graph = build(text, {"w": np.random.default_rng(0).standard_normal((16, 16, 1, 1)) / 4})
    plan, params, histograms, judge = _prepared(graph, scheme, samples(graph, 8))
    params["a"] = activation_params(-8.0, 8.0, scheme.activation)
    estimate = estimate_damage(graph, plan, params, histograms)["a"]
    real = judge.score(insert_pairs(graph, {"a": params["a"]}), integer=False).noise["y"]
    assert real / 4 < estimate < real * 4


def test_the_estimate_takes_the_columns_that_a_tensor_meets(
    build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        a = Conv(x, w) b = Conv(x, w) j = Concat <axis=1> (a, b) y = Conv(j, v)
    }"""
    random = np.random.default_rng(0)
    v = random.standard_normal((16, 32, 1, 1)) / 4
    v[:, 16:] *= 0.01  # nothing of the second branch is used
    graph = build(text, {"w": random.standard_normal((16, 16, 1, 1)) / 4, "v": v})
    plan, params, histograms, _ = _prepared(graph, scheme, samples(graph, 8))
    estimates = estimate_damage(graph, plan, params, histograms)
    assert estimates["b"] == pytest.approx(1e-4 * estimates["a"], rel=0.5)
