"""Ranges of what a Sigmoid or a Softmax flattens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.flat import DEPTH, REACH, flat_readers, seen_part
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.ranges import RangeOptions, choose_params
from edgekit.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]


def _graph(build: Build, lines: str, result: str) -> Graph:
    random = np.random.default_rng(0)
    constants = {"w": random.standard_normal((16, 8, 1, 1)), "s": np.array([1, 16, 16])}
    used = {k: v for k, v in constants.items() if k in lines}
    return build(f"g (float[1,8,4,4] x) => ({result}) {{ {lines} }}", used)


@pytest.mark.parametrize(
    ("lines", "result", "found"),
    [
        ("a = Conv(x, w) y = Sigmoid(a)", "float[1,16,4,4] y", {"a": "Sigmoid"}),
        (
            "a = Conv(x, w) r = Reshape(a, s) y = Softmax<axis=1>(r)",
            "float[1,16,16] y",
            {"a": "Softmax", "r": "Softmax"},
        ),
        # Others want all of it: a SiLU's product, a second reader, the network's own output.
        ("a = Conv(x, w) g = Sigmoid(a) y = Mul(a, g)", "float[1,16,4,4] y", {}),
        ("a = Conv(x, w) y = Sigmoid(a) z = Relu(a)", "float[1,16,4,4] y, float[1,16,4,4] z", {}),
        ("a = Conv(x, w) y = Sigmoid(a) z = Softmax(a)", "float[1,16,4,4] y, float[1,16,4,4] z", {}),
        ("a = Conv(x, w) y = Sigmoid(a)", "float[1,16,4,4] y, float[1,16,4,4] a", {}),
        # What stores the shape of a Reshape is no value.
        (
            "a = Conv(x, w) b = Conv(x, w) c = Concat<axis=1>(a, b) y = Sigmoid(c)",
            "float[1,32,4,4] y",
            {"a": "Sigmoid", "b": "Sigmoid", "c": "Sigmoid"},
        ),
    ],
)
def test_readers_are_found_behind_what_moves(
    build: Build, lines: str, result: str, found: dict[str, str]
) -> None:
    known = {t: r for t, r in flat_readers(_graph(build, lines, result)).items() if t not in ("x", "y")}
    assert known == found


def test_the_part_that_is_told_apart() -> None:
    assert seen_part(-40.0, 6.0, "Softmax") == (6.0 - DEPTH, 6.0)
    assert seen_part(-3.0, 6.0, "Softmax") == (-3.0, 6.0)
    assert seen_part(-40.0, 60.0, "Sigmoid") == (-REACH, REACH)
    assert seen_part(-1.0, 2.0, "Sigmoid") == (-1.0, 2.0)


def test_cutting_costs_the_probabilities_nothing() -> None:
    logits = np.minimum(np.random.default_rng(0).normal(-12, 8, (200, 16)), 0)
    logits[:, 0] = np.random.default_rng(1).uniform(1, 8, 200)  # in each row something is likely
    low, high = seen_part(float(logits.min()), float(logits.max()), "Softmax")

    def softmax(x: Array) -> Array:
        e = np.exp(x - x.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    assert np.abs(softmax(np.clip(logits, low, high)) - softmax(logits)).max() < 5e-3


@pytest.mark.parametrize("tails", [True, False])
def test_ranges_are_cut_unless_asked_not_to(build: Build, scheme: Scheme, tails: bool) -> None:
    graph = _graph(build, "a = Conv(x, w) r = Reshape(a, s) y = Softmax<axis=1>(r)", "float[1,16,16] y")
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 8, 4, 4)).astype("f")} for i in range(3)]
    plan = make_plan(graph, scheme)
    seen = observe(graph, plan.sources, feeds, threads=1)
    params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX, tails=tails))
    low, high = params["a"].range
    assert high < DEPTH
    assert seen.histograms["a"].min < high - DEPTH - 1
    assert (high - low < 1.02 * DEPTH) is tails


@pytest.mark.parametrize(
    "lines",
    [
        "p = MatMul(x, x) y = Softmax(p)",
        "p = MatMul(x, x) a = Mul(p, k) b = Add(a, k) y = Softmax(b)",
    ],
)
def test_scores_of_an_attention_are_left_alone(build: Build, lines: str) -> None:
    used = {"k": np.array(0.5)} if "k)" in lines else {}
    graph = build(f"g (float[1,2,4,4] x) => (float[1,2,4,4] y) {{ {lines} }}", used)
    assert flat_readers(graph) == {}


def test_products_with_stored_weights_are_no_attention(build: Build) -> None:
    graph = build(
        "g (float[1,4,4] x) => (float[1,4,4] y) { p = MatMul(x, w) y = Softmax(p) }", {"w": np.ones((4, 4))}
    )
    assert flat_readers(graph) == {"p": "Softmax"}
