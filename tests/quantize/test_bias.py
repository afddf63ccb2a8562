"""Bias correction: the mean error of an output goes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph, array
from edgekit.quantize.bias import add_to_biases, correct_biases, correctable, quantized_means
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.probe import channel_means
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import QParams
from edgekit.quantize.ranges import RangeOptions, choose_params, fixed_ranges
from edgekit.quantize.scheme import Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]

NETS = {
    "conv": "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2, b2)",
    "no bias": "a = Conv(x, w1) r = Relu(a) y = Conv(r, w2)",
    "3x3": "a = Conv(x, w1, b1) r = Relu(a) y = Conv <pads=[0,0,0,0]> (r, w3, b2)",
    "depthwise": "a = Conv(x, w1, b1) r = Relu(a) d = Conv <group=8> (r, wd, b1) y = Conv(d, w2, b2)",
    "grouped": "a = Conv(x, w1, b1) r = Relu(a) d = Conv <group=2> (r, wg, b1) y = Conv(d, w2, b2)",
    "silu": "a = Conv(x, w1, b1) s = Sigmoid(a) r = Mul(a, s) y = Conv(r, w2, b2)",
    "gemm": "a = Conv(x, w1, b1) r = Relu(a) f = Flatten(r) y = Gemm(f, wm, bm)",
    "gemm transposed": "a = Conv(x, w1, b1) r = Relu(a) f = Flatten(r) y = Gemm <transB=1> (f, wt)",
}
SHAPES = {
    "w1": (8, 3, 1, 1), "b1": (8,), "w2": (16, 8, 1, 1), "b2": (16,), "w3": (16, 8, 3, 3), "wd": (8, 1, 3, 3),
    "wg": (8, 4, 1, 1), "wm": (512, 16), "bm": (16,), "wt": (16, 512),
}  # fmt: skip


def _net(build: Build, label: str) -> Graph:
    lines = NETS[label]
    random = np.random.default_rng(0)
    constants = {
        k: random.standard_normal(v) * 2 / np.sqrt(np.prod(v[1:])) for k, v in SHAPES.items() if k in lines
    }
    # A few large weights in each row make the rounding of all others coarse.
    for weight in ("w1", "w2", "w3", "wt"):
        if weight in constants:
            constants[weight].reshape(constants[weight].shape[0], -1)[:, 0] *= 8
    size = {"3x3": 6, "depthwise": 6}.get(label, 8)
    shape = "1,16" if label.startswith("gemm") else f"1,16,{size},{size}"
    return build(f"g (float[1,3,8,8] x) => (float[{shape}] y) {{ {lines} }}", constants)


def _feeds(count: int = 24) -> list[dict[str, Array]]:
    """Images whose channels have a mean, as photographs do."""
    random = np.random.default_rng(1)
    mean = np.array([2.0, 1.0, -1.5]).reshape(1, 3, 1, 1)
    return [{"x": (random.standard_normal((1, 3, 8, 8)) + mean).astype(np.float32)} for _ in range(count)]


def _prepared(
    graph: Graph, scheme: Scheme, feeds: list[dict[str, Array]]
) -> tuple[Plan, dict[str, QParams], dict[str, Array]]:
    plan = make_plan(graph, scheme)
    wanted = [t for t in plan.sources if t not in fixed_ranges(graph, scheme, plan)]
    calibration = observe(graph, wanted, feeds)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX))
    means = channel_means(graph, sorted(set(correctable(graph, plan).values())), feeds)
    return plan, params, means


def _mean_error(graph: Graph, quantized: Graph, feeds: list[dict[str, Array]]) -> Array:
    """Mean error of each channel of ``y``, relative to the channel's spread."""
    first, second = (open_runner(g, threads=1, integer=False, optimize=False) for g in (graph, quantized))
    wanted = np.concatenate([first.run(f)["y"] for f in feeds])
    found = np.concatenate([second.run(f)["y"] for f in feeds])
    others = (0, *range(2, wanted.ndim))
    return np.asarray(np.abs((found - wanted).mean(others)))


@pytest.mark.parametrize("label", NETS)
def test_the_mean_error_goes_away(label: str, build: Build, scheme: Scheme) -> None:
    # Coarse weights, so that their rounding is what is seen.
    graph, feeds = _net(build, label), _feeds()
    plan, params, means = _prepared(graph, scheme, feeds)
    plain = insert_qdq(graph, plan, params, scheme)
    weights = insert_qdq(correct_biases(graph, plan, scheme, means), plan, params, scheme)
    seen = quantized_means(graph, plain, plan, feeds)
    full = insert_qdq(correct_biases(graph, plan, scheme, means, seen), plan, params, scheme)
    before, after, last = (_mean_error(graph, g, feeds).mean() for g in (plain, weights, full))
    assert after < 0.8 * before
    assert last < 0.6 * before


def test_the_shift_is_that_of_the_formula(build: Build, scheme: Scheme) -> None:
    """With the input known exactly, the corrected weights' mean output is the float one."""
    graph, feeds = _net(build, "conv"), _feeds()
    plan, _, means = _prepared(graph, scheme, feeds)
    corrected = correct_biases(graph, plan, scheme, means)
    quantized = insert_qdq(graph, plan, _prepared(graph, scheme, feeds)[1], scheme).values()
    for node in ("a", "y"):
        weight = {"a": "w1", "y": "w2"}[node]
        bias = {"a": "b1", "y": "b2"}[node]
        real = np.asarray(array(graph.values()[weight]), np.float64)[:, :, 0, 0]
        codes, scale = (
            np.asarray(array(quantized[f"{weight}_{p}"]), np.float64) for p in ("quantized", "scale")
        )
        rounded = codes[:, :, 0, 0] * scale[:, None]
        mean = means[{"a": "x", "y": "r"}[node]]
        new = np.asarray(array(corrected.values()[f"{node}.node.bias_corrected"]), np.float64)
        old = np.asarray(array(graph.values()[bias]), np.float64)
        np.testing.assert_allclose(rounded @ mean + new, real @ mean + old, atol=1e-5)


@pytest.mark.parametrize("label", [n for n in NETS if n != "silu"])
def test_means_behind_quantized_activations(label: str, build: Build, scheme: Scheme) -> None:
    """``E[x']`` against rounding the float tensors one by one."""
    graph, feeds = _net(build, label), _feeds(6)
    plan, params, _ = _prepared(graph, scheme, feeds)
    found = quantized_means(graph, insert_qdq(graph, plan, params, scheme), plan, feeds)
    reads = correctable(graph, plan)
    assert set(found) == set(reads.values())
    inner = [t for t in found if t != "x"]
    runner = open_runner(graph, threads=1, optimize=False, extra_outputs=inner)
    outputs = [{**f, **runner.run(f)} for f in feeds]
    for tensor, mean in found.items():
        rounded = np.concatenate([params[tensor].round_trip(o[tensor].astype(np.float64)) for o in outputs])
        axis = 1 if rounded.ndim == 4 else rounded.ndim - 1
        expected = rounded.mean(tuple(a for a in range(rounded.ndim) if a != axis))
        np.testing.assert_allclose(mean, expected, atol=0.02 * params[tensor].scale)
        plain = np.concatenate([o[tensor] for o in outputs]).mean(
            tuple(a for a in range(rounded.ndim) if a != axis)
        )
        assert not np.allclose(mean, plain, atol=1e-6)


def test_means_behind_a_silu_hold_the_noise_of_its_parts(build: Build, scheme: Scheme) -> None:
    graph, feeds = _net(build, "silu"), _feeds(6)
    plan, params, _ = _prepared(graph, scheme, feeds)
    found = quantized_means(graph, insert_qdq(graph, plan, params, scheme), plan, feeds)
    runner = open_runner(graph, threads=1, optimize=False, extra_outputs=["a"])
    total = []
    for feed in feeds:
        a = params["a"].round_trip(runner.run(feed)["a"].astype(np.float64))
        s = params["s"].round_trip(1 / (1 + np.exp(-a)))
        total.append(params["r"].round_trip(a * s).mean((0, 2, 3)))
    np.testing.assert_allclose(found["r"], np.mean(total, 0), atol=0.02 * params["r"].scale)


def test_only_integer_nodes_with_stored_weights(build: Build, scheme: Scheme) -> None:
    text = """g (float[1,8,8,8] x, float[16,8,1,1] v) => (float[1,16,8,8] y, float[1,16,8,8] z) {
        a = Conv(x, w) t = Exp(a) y = Conv(t, u) z = Conv(t, v)
    }"""
    graph = build(text, {"w": np.ones((8, 8, 1, 1)), "u": np.ones((16, 8, 1, 1))})
    plan = make_plan(graph, scheme, raised=["x"])
    assert correctable(graph, plan) == {"y.node": "t"}
    assert "its weights are computed" in plan.float_nodes["z.node"]


def test_adding_to_biases(build: Build) -> None:
    text = """g (float[1,8,8,8] x) => (float[1,8,8,8] y) {
        a = Conv(x, w, b) c = Conv(a, w, b) y = Conv(c, w)
    }"""
    random = np.random.default_rng(0)
    graph = build(text, {"w": 0.1 * random.standard_normal((8, 8, 1, 1)), "b": random.standard_normal(8)})
    before = graph.sha256()
    shift = random.standard_normal(8)
    result = add_to_biases(graph, {"a.node": shift, "y.node": 2 * shift})
    assert graph.sha256() == before
    feed = {"x": random.standard_normal((1, 8, 8, 8)).astype(np.float32)}
    first = open_runner(graph, threads=1, optimize=False, extra_outputs=["a", "c"]).run(feed)
    second = open_runner(result, threads=1, optimize=False, extra_outputs=["a", "c"]).run(feed)
    column = shift.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(second["a"], first["a"] + column, atol=1e-5)
    weight = np.asarray(array(graph.values()["w"]))[:, :, 0, 0].astype(np.float64)
    # The bias that the second Conv shares with the first is what it was.
    moved = (weight @ shift).reshape(1, -1, 1, 1)
    np.testing.assert_allclose(second["c"], first["c"] + moved, atol=1e-5)
    last = (weight @ weight @ shift + 2 * shift).reshape(1, -1, 1, 1)
    np.testing.assert_allclose(second["y"], first["y"] + last, atol=1e-5)


def test_the_change_says_how_much(build: Build, scheme: Scheme) -> None:
    graph, feeds = _net(build, "conv"), _feeds(2)
    plan, _, means = _prepared(graph, scheme, feeds)
    change = correct_biases(graph, plan, scheme, means).history[-1]
    assert change.pass_name == "correct_biases"
    assert change.summary.startswith("2 biases corrected for the rounding of weights, by up to ")


@pytest.mark.parametrize("label", ["conv", "grouped", "gemm", "gemm transposed"])
def test_the_bias_for_given_means(label: str, build: Build, scheme: Scheme) -> None:
    """``b + W E[x] - W' E[x']``, worked out with a network of one pixel."""
    graph, feeds = _net(build, label), _feeds(2)
    plan, params, means = _prepared(graph, scheme, feeds)
    random = np.random.default_rng(3)
    seen = {t: m + random.standard_normal(m.shape) for t, m in means.items()}
    corrected = correct_biases(graph, plan, scheme, means, seen)
    rounded = insert_qdq(graph, plan, params, scheme).values()
    for node in graph.nodes:
        if node.name not in correctable(graph, plan):
            continue
        weight = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        real = np.asarray(array(graph.values()[weight]), np.float64)
        codes, scale = (
            np.asarray(array(rounded[f"{weight}_{p}"]), np.float64) for p in ("quantized", "scale")
        )
        axis = 1 if label == "gemm" and node.op_type == "Gemm" else 0
        other = codes * scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        tensor = correctable(graph, plan)[str(node.name)]
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        a, b = (_one_pixel(w, m, axis, groups) for w, m in ((real, means[tensor]), (other, seen[tensor])))
        new = np.asarray(array(corrected.values()[f"{node.name}.bias_corrected"]), np.float64)
        given = array(node.inputs[2]) if len(node.inputs) > 2 else None
        old = np.zeros(len(new)) if given is None else given.astype(np.float64)
        np.testing.assert_allclose(new, old + a - b, atol=1e-4)


def _one_pixel(weight: Array, mean: Array, axis: int, groups: int) -> Array:
    if weight.ndim == 2:
        return np.asarray(weight @ mean if axis == 0 else mean @ weight)
    rows, per_group = weight.shape[0] // groups, weight.shape[1]
    found = []
    for row in range(weight.shape[0]):
        first = row // rows * per_group
        found.append(sum(weight[row, i].sum() * mean[first + i] for i in range(per_group)))
    return np.array(found)
