"""Every kind of clash is found where it was planted, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.findings import Finding, Kind, channel_ratio, find_clashes
from edgekit.quantize.histogram import Histogram
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.quantize import quantize
from edgekit.quantize.ranges import RangeOptions, choose_params, fixed_ranges
from edgekit.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]

NET = """g (float[1,8,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w1) s = Sigmoid(a) m = Mul(a, s)
    b = Conv(x, w2) r = Relu(b)
    j = {join}
    y = Conv(j, w3)
}"""


def _net(build: Build, join: str = "Concat <axis=1> (m, r)", **changed: Array) -> Graph:
    random = np.random.default_rng(0)
    columns = 16 if "Concat" in join else 8
    constants = {
        "w1": random.standard_normal((8, 8, 1, 1)) / 3,
        "w2": random.standard_normal((8, 8, 1, 1)) / 3,
        "w3": random.standard_normal((16, columns, 1, 1)),
    }
    factors = {k: np.asarray(v).reshape(-1, 1, 1, 1) for k, v in changed.items()}
    return build(NET.replace("{join}", join), {k: v * factors.get(k, 1.0) for k, v in constants.items()})


def _find(
    graph: Graph,
    samples: MakeSamples,
    scheme: Scheme,
    tails: bool = True,
    actions: dict[str, str] | None = None,
) -> tuple[Finding, ...]:
    plan = make_plan(graph, scheme)
    wanted = [t for t in plan.sources if t not in fixed_ranges(graph, scheme, plan)]
    calibration = observe(graph, wanted, samples(graph, 8))
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX, tails=tails))
    return find_clashes(graph, plan, calibration.histograms, params, actions or {})


@pytest.mark.parametrize("join", ["Concat <axis=1> (m, r)", "Add(m, r)"])
def test_nothing_on_a_healthy_graph(join: str, build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    assert _find(_net(build, join), samples, scheme) == ()


def test_channels(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    small = np.where(np.arange(8) < 3, 1 / 300, 1.0)
    found = _find(_net(build, w2=small), samples, scheme)
    assert [(f.kind, f.where) for f in found] == [(Kind.CHANNELS, "r")]
    assert found[0].text.startswith("the ranges of its 8 channels differ")
    assert found[0].text.endswith("3 of them get fewer than 4 of 256 steps")
    assert 150 < found[0].ratio < 1500
    assert found[0].action == "none needed: its effect on the outputs is small"
    acted = _find(_net(build, w2=small), samples, scheme, actions={"r": "raised to float32"})
    assert acted[0].action == "raised to float32"


@pytest.mark.parametrize("join", ["Concat <axis=1> (m, r)", "Add(m, r)"])
def test_branches(join: str, build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    found = _find(_net(build, join, w2=np.full(8, 0.01)), samples, scheme)
    assert [(f.kind, f.where) for f in found] == [(Kind.BRANCHES, "j.node")]
    assert "'m' reaches" in found[0].text
    assert "'r' 0.0" in found[0].text
    assert 30 < found[0].ratio < 400
    op = join.partition(" ")[0].partition("(")[0]
    assert found[0].action == f"each keeps a scale of its own up to the {op}"


def test_branches_that_share_a_scale(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    text = """g (float[1,8,8,8] x) => (float[1,16,8,8] y) {
        a = Conv(x, w1) b = Conv(x, w2) j = Concat <axis=1> (a, b) y = Conv(j, w3)
    }"""
    random = np.random.default_rng(0)
    constants = {"w1": random.standard_normal((8, 8, 1, 1)), "w2": random.standard_normal((8, 8, 1, 1)) / 50}
    graph = build(text, {**constants, "w3": random.standard_normal((16, 16, 1, 1))})
    found = _find(graph, samples, scheme)
    assert [(f.kind, f.action) for f in found] == [(Kind.BRANCHES, "none: they share one scale")]


def test_the_tail_of_a_silu(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _net(build, w1=np.full(8, 12.0), w2=np.full(8, 12.0))
    found = _find(graph, samples, scheme)
    assert [(f.kind, f.where) for f in found] == [(Kind.TAIL, "a")]
    assert "SiLU is flat below -8" in found[0].text
    assert found[0].action.startswith("range cut at -")
    assert found[0].ratio > 2
    # Where the whole tail is resolved nothing was cut, and nothing is said.
    assert _find(graph, samples, scheme, tails=False) == ()


def test_the_worst_of_a_kind_is_first(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _net(
        build, w1=np.where(np.arange(8) < 3, 1 / 100, 1.0), w2=np.where(np.arange(8) < 3, 1 / 900, 1.0)
    )
    found = [f for f in _find(graph, samples, scheme) if f.kind is Kind.CHANNELS]
    assert [f.ratio for f in found] == sorted((f.ratio for f in found), reverse=True)
    assert {f.where for f in found} >= {"a", "r"}


def test_channel_ratio() -> None:
    assert channel_ratio(np.ones(10)) == 1.0
    assert channel_ratio(np.array([100.0])) == 1.0
    assert channel_ratio(np.array([100.0, 0.0])) == 1.0  # dead channels do not count
    assert channel_ratio(np.r_[np.full(50, 1.0), np.full(50, 100.0)]) == pytest.approx(100.0)
    # A single small channel in a hundred does not make a clash.
    assert channel_ratio(np.r_[1.0, np.full(99, 100.0)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seen", "cut", "found"),
    [(-20.0, -6.0, True), (-20.0, -15.0, False), (-12.0, -4.0, False), (-17.0, -8.0, True)],
)
def test_a_tail_is_named_when_it_is_long_and_was_cut(
    seen: float, cut: float, found: bool, build: Build, scheme: Scheme
) -> None:
    graph = _net(build)
    ends = np.full(8, seen), np.full(8, 12.0)
    histograms = {"a": Histogram(np.zeros(4), seen, 12.0, *ends)}
    params = {"a": activation_params(cut, 12.0, scheme.activation)}
    clashes = find_clashes(graph, make_plan(graph, scheme), histograms, params, {})
    assert [f.kind for f in clashes] == ([Kind.TAIL] if found else [])


def test_boxes_and_scores_that_meet_in_the_output(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    text = """g (float[1,8,8,8] x) => (float[1,16,8,8] y) {
        a = Conv(x, w1) boxes = Mul(a, size)
        c = Conv(x, w2) scores = Sigmoid(c)
        y = Concat <axis=1> (boxes, scores)
    }"""
    random = np.random.default_rng(0)
    weights = {k: random.standard_normal((8, 8, 1, 1)) for k in ("w1", "w2")}
    found = {}
    for size in (1.0, 200.0):
        graph = build(text, {**weights, "size": np.array(size)})
        feeds = samples(graph, 8)
        found[size] = quantize(graph, scheme, lambda feeds=feeds: feeds, threads=1).findings  # type: ignore[misc]
    assert found[1.0] == ()
    assert [(f.kind, f.where) for f in found[200.0]] == [(Kind.BRANCHES, "y.node")]
    assert found[200.0][0].action == "joined in float, so that they share no scale"
    assert "'boxes'" in found[200.0][0].text
    assert found[200.0][0].ratio > 200
