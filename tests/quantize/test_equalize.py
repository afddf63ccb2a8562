"""Equalized graphs compute what they did; small channels get larger."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph, Refusal, array
from edgekit.quantize.equalize import LIMIT, channel_ranges, concat_offset, equalize, find_pairs
from edgekit.quantize.histogram import BINS, Histogram
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
MakeValues = Callable[..., dict[str, Array]]

#: Activations between the two convolutions.
ACTIVATIONS = {
    "none": "t = Identity0",
    "relu": "t = Relu(a)",
    "leaky": "t = LeakyRelu <alpha=0.1> (a)",
    "prelu": "t = PRelu(a, slope)",
    "clip": "t = Clip(a, zero, six)",
    "silu": "s = Sigmoid(a) t = Mul(a, s)",
}
#: What stands between the activation and the end.
READERS = {
    "conv": "y = Conv(t, w2)",
    "conv3x3": "y = Conv <pads=[1,1,1,1]> (t, w3)",
    "depthwise": "y = Conv <group=8, pads=[1,1,1,1]> (t, wd)",
    "grouped": "y = Conv <group=2> (t, wg)",
    "two": "b = Conv(t, w2) c = Conv <group=8, pads=[1,1,1,1]> (t, wd) e = Conv(c, w5) y = Add(b, e)",
    "maxpool": "p = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (t) y = Conv(p, w2)",
    "averagepool": "p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (t) y = Conv(p, w2)",
    "concat": "q = Conv(x, w4) j = Concat <axis=1> (q, t) y = Conv(j, w6)",
    "concat of both": "q = Conv(x, w4) j = Concat <axis=1> (t, q) y = Conv(j, w6)",
    "nested": "q = Conv(x, w4) j = Concat <axis=1> (q, t) k = Concat <axis=-3> (q, j) y = Conv(k, w7)",
}
SHAPES = {
    "w1": (8, 3, 1, 1), "b1": (8,), "w2": (10, 8, 1, 1), "w3": (10, 8, 3, 3), "wd": (8, 1, 3, 3),
    "wg": (10, 4, 1, 1), "w4": (5, 3, 1, 1), "w5": (10, 8, 1, 1), "w6": (10, 13, 1, 1), "w7": (10, 18, 1, 1),
    "slope": (8, 1, 1),
}  # fmt: skip


def _net(build: Build, activation: str, reader: str, scales: Array | None = None, bias: bool = True) -> Graph:
    """``x -> Conv -> activation -> reader``; the first Conv's channels are scaled by ``scales``."""
    random = np.random.default_rng(0)
    constants = {k: random.standard_normal(v) / np.sqrt(np.prod(v[1:])) for k, v in SHAPES.items()}
    factors = np.geomspace(1, 0.02, 8) if scales is None else scales
    constants["w1"] *= factors.reshape(-1, 1, 1, 1)
    constants["b1"] *= factors
    constants["slope"] = np.abs(constants["slope"]) * 0.1
    constants |= {"zero": np.float32(0), "six": np.float32(60)}
    channels = 8 if reader == "depthwise" else 10
    read = READERS[reader]
    between = ACTIVATIONS[activation]
    if activation == "none":
        between, read = "", read.replace("(t", "(a").replace(", t)", ", a)")
    first = "a = Conv(x, w1, b1)" if bias else "a = Conv(x, w1)"
    text = f"g (float[1,3,8,8] x) => (float[1,{channels},8,8] y) {{ {first} {between} {read} }}"
    return build(text, {k: v for k, v in constants.items() if k in text})


def _histograms(expected: dict[str, Array]) -> dict[str, Histogram]:
    """Exact ranges; equalization does not look at the counts."""
    found = {}
    for name, stacked in expected.items():
        channels = np.moveaxis(stacked, 2, 0).reshape(stacked.shape[2], -1)
        low, high = float(channels.min()), float(channels.max())
        found[name] = Histogram(np.zeros(BINS), low, high, channels.min(1), channels.max(1))
    return found


def _spread(stacked: Array) -> float:
    """Largest channel over smallest."""
    ranges = np.abs(np.moveaxis(stacked, 2, 0).reshape(stacked.shape[2], -1)).max(1)
    return float(ranges.max() / ranges.min())


def _compare(graph: Graph, other: Graph, feeds: list[dict[str, Array]], tolerance: float = 1e-4) -> None:
    runners = [open_runner(g, threads=1) for g in (graph, other)]
    for feed in feeds:
        wanted, found = (r.run(feed) for r in runners)
        assert list(wanted) == list(found)
        for name, signal in wanted.items():
            np.testing.assert_allclose(
                found[name], signal, atol=tolerance * np.abs(signal).max(), err_msg=name
            )


def _tensor(activation: str) -> str:
    return "a" if activation == "none" else "t"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_network_computes_the_same(
    activation: str, reader: str, bias: bool, build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    graph = _net(build, activation, reader, bias=bias)
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    tensor = _tensor(activation)
    only: Collection[str] | None = [tensor] if activation == "silu" else None
    result = equalize(graph, _histograms(before), only)
    assert tensor in result.history[-1].details["raised"]
    _compare(graph, result, feeds)
    after = values(result, feeds)
    assert _spread(after[tensor]) < 0.5 * _spread(before[tensor])
    # The largest channel still sets the step: nothing has been made larger than it was.
    top = np.abs(before[tensor]).max()
    joined = max(np.abs(before[j]).max() for j in ("j", "k", tensor) if j in before)
    assert top * 0.999 <= np.abs(after[tensor]).max() <= joined * 1.001
    assert ("t.restore" in {n.name for n in result.nodes}) is (activation == "silu")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    logs=st.lists(st.floats(-4, 1), min_size=8, max_size=8),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    reader=st.sampled_from(sorted(READERS)),
)
def test_any_scales(
    logs: list[float], activation: str, reader: str, build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    graph = _net(build, activation, reader, 10.0 ** np.array(logs))
    feeds = samples(graph, 3)
    before = values(graph, feeds)
    tensor = _tensor(activation)
    result = equalize(graph, _histograms(before), [tensor])
    _compare(graph, result, feeds)
    after = values(result, feeds)
    gain = np.abs(after[tensor]).max((0, 1, 3, 4)) / np.maximum(
        np.abs(before[tensor]).max((0, 1, 3, 4)), 1e-12
    )
    assert (gain >= 0.999).all()
    assert (gain <= LIMIT * 1.001).all()


def test_a_depthwise_reader_lets_all_channels_fill_the_range(
    build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    graph = _net(build, "relu", "depthwise")
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    assert _spread(before["t"]) > 30
    after = values(equalize(graph, _histograms(before)), feeds)
    ranges = np.abs(after["t"]).max((0, 1, 3, 4))
    expected = np.minimum(np.abs(before["t"]).max((0, 1, 3, 4)) * LIMIT, ranges.max())
    np.testing.assert_allclose(ranges, expected, rtol=1e-3)


def test_other_readers_share_the_burden(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    graph = _net(build, "relu", "conv")
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    result = equalize(graph, _histograms(before))
    after = values(result, feeds)

    def columns(g: Graph) -> Array:
        weight = np.abs(np.asarray(array(g.values()["w2"])))
        return np.asarray((weight / weight.max(1, keepdims=True)).max((0, 2, 3)))

    # Activations come closer together, and columns do not drift apart by more than activations came closer.
    assert 3 < _spread(after["t"]) < 25
    assert columns(result).max() / columns(result).min() < _spread(before["t"]) / 3


def test_channels_below_a_ceiling_stay_below_it(
    build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    graph = _net(build, "clip", "depthwise")
    initializer = graph.model.graph.initializers["six"]
    assert initializer.const_value is not None
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    top = float(before["t"].max())
    low = build_with_ceiling(build, top * 1.05)
    before = values(low, feeds)
    result = equalize(low, _histograms(before))
    after = values(result, feeds)
    small = np.abs(before["t"]).max((0, 1, 3, 4)) < 0.7 * top
    assert np.abs(after["t"]).max((0, 1, 3, 4))[small].max() <= 0.801 * top * 1.05
    _compare(low, result, feeds)


def build_with_ceiling(build: Build, ceiling: float) -> Graph:
    graph = _net(build, "clip", "depthwise")
    data = {k: np.asarray(array(v)) for k, v in graph.model.graph.initializers.items()}
    text = """g (float[1,3,8,8] x) => (float[1,8,8,8] y) {
        a = Conv(x, w1, b1) t = Clip(a, zero, six) y = Conv <group=8, pads=[1,1,1,1]> (t, wd)
    }"""
    return build(text, {**data, "six": np.float32(ceiling)})


def test_branches_of_a_concat_come_together(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    """A whole branch fifty times smaller is raised to the size of the other."""
    graph = _net(build, "relu", "concat", np.full(8, 0.02))
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    ratio = np.abs(before["q"]).max() / np.abs(before["t"]).max()
    assert ratio > 20
    result = equalize(graph, _histograms(before))
    after = values(result, feeds)
    assert np.abs(after["q"]).max() / np.abs(after["t"]).max() < ratio / 4
    _compare(graph, result, feeds)


def test_shared_weights(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    text = """g (float[1,8,6,6] x) => (float[1,8,6,6] y) {
        a = Conv(x, w, b) t = Relu(a) c = Conv(t, w, b) u = Relu(c) y = Conv(u, w)
    }"""
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 8, 1, 1)) * np.geomspace(1, 0.02, 8).reshape(-1, 1, 1, 1)
    graph = build(text, {"w": weight, "b": 0.1 * random.standard_normal(8) * np.geomspace(1, 0.02, 8)})
    feeds = samples(graph, 4)
    before = values(graph, feeds)
    result = equalize(graph, _histograms(before))
    assert set(result.history[-1].details["raised"]) == {"t", "u"}
    _compare(graph, result, feeds)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("a = Conv(x, w) t = Relu(a) y = Add(t, t)", "Add 'y.node' reads 't' and takes no scale per channel"),
        ("y = Conv(x, w)", "'y' is an output of the graph"),
        ("a = Conv(x, w) t = Clip(a, one, six) y = Conv(t, v)", "its Clip does not start at zero"),
        ("a = Conv(x, w) t = Clip(a, zero) y = Conv(t, v)", "its Clip does not start at zero"),
        ("a = Conv(x, w) s = Sigmoid(x) t = Mul(a, s) y = Conv(t, v)", "Mul 't.node' reads 'a'"),
        (
            "a = Conv(x, w) s = Sigmoid(a) t = Mul(a, s) z = Exp(s) u = Add(t, z) y = Conv(u, v)",
            "gates another tensor",
        ),
        ("a = Conv(x, w) t = Tanh(a) y = Conv(t, v)", "Tanh 't.node' reads 'a'"),
        (
            "a = Conv(x, w) t = Relu(a) j = Concat <axis=2> (t, t) k = Slice(j, f, e, d) y = Conv(k, v)",
            "Concat 'j.node'",
        ),
        ("a = Conv(x, w) y = Conv(x, v)", "nothing reads 'a'"),
    ],
)
def test_refusals_say_why(lines: str, reason: str, build: Build) -> None:
    constants = {
        "w": np.ones((3, 3, 1, 1)), "v": np.ones((3, 3, 1, 1)), "zero": np.float32(0), "one": np.float32(1),
        "six": np.float32(6), "f": np.array([0]), "e": np.array([8]), "d": np.array([2]),
    }  # fmt: skip
    text = f"g (float[1,3,8,8] x) => (float[1,3,8,8] y) {{ {lines} }}"
    graph = build(text, constants)
    refused: list[Refusal] = []
    pairs = find_pairs(graph, refused)
    assert not [p for p in pairs if p.writer.outputs[0].name == "a"]
    assert any(reason in r.reason for r in refused), refused


def test_what_cannot_be_is_left_alone_and_reported(
    build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    text = "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Conv(x, w) t = Tanh(a) y = Conv(t, w) }"
    graph = build(text, {"w": np.ones((3, 3, 1, 1)) * np.geomspace(1, 0.01, 3).reshape(-1, 1, 1, 1)})
    result = equalize(graph, _histograms(values(graph, samples(graph, 2))))
    assert result.sha256() == graph.sha256()
    change = result.history[-1]
    assert change.details["raised"] == {}
    assert {r.where for r in change.refused} == {"a.node", "y.node"}


def test_silus_are_treated_only_when_asked(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    graph = _net(build, "silu", "conv")
    histograms = _histograms(values(graph, samples(graph, 2)))
    assert equalize(graph, histograms).history[-1].details["raised"] == {}
    assert set(equalize(graph, histograms, ["t"]).history[-1].details["raised"]) == {"t"}
    assert equalize(graph, histograms, []).history[-1].details["raised"] == {}


def test_even_channels_and_unseen_tensors_are_left_alone(
    build: Build, samples: MakeSamples, values: MakeValues
) -> None:
    graph = _net(build, "relu", "depthwise")
    assert equalize(graph, {}).sha256() == graph.sha256()
    histograms = _histograms(values(graph, samples(graph, 2)))
    even = np.ones(8, np.float32)
    histograms["t"] = Histogram(np.zeros(BINS), 0.0, 1.0, 0 * even, even)
    assert equalize(graph, histograms).sha256() == graph.sha256()


def test_the_graph_is_not_touched(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    graph = _net(build, "silu", "nested")
    before = graph.sha256()
    equalize(graph, _histograms(values(graph, samples(graph, 2))), ["t"])
    assert graph.sha256() == before


def test_where_a_tensor_starts_in_a_concat(build: Build) -> None:
    text = "g (float[1,3,4,4] a, float[1,5,4,4] b) => (float[1,13,4,4] y) { y = Concat <axis=1> (a, b, b) }"
    node = next(build(text).nodes)
    assert [concat_offset(node, i) for i in range(3)] == [0, 3, 8]
    text = "g (float[1,3,4,4] a, float[1,3,4,4] b) => (float[1,3,8,4] y) { y = Concat <axis=2> (a, b) }"
    assert concat_offset(next(build(text).nodes), 1) is None


def test_channel_ranges() -> None:
    found = channel_ranges(Histogram(np.zeros(4), -3, 2, np.array([-3.0, -1.0]), np.array([1.0, 2.0])))
    assert found.tolist() == [3.0, 2.0]


def test_no_channel_is_lowered(build: Build, samples: MakeSamples, values: MakeValues) -> None:
    """A channel that the readers hardly look at could be lowered; it would lose steps."""
    graph = _net(build, "relu", "conv", np.r_[np.full(4, 0.05), np.ones(4)])
    data = {k: np.array(array(v)) for k, v in graph.model.graph.initializers.items()}
    data["w2"][:, 5] *= 0.001
    text = "g (float[1,3,8,8] x) => (float[1,10,8,8] y) { a = Conv(x, w1, b1) t = Relu(a) y = Conv(t, w2) }"
    graph = build(text, data)
    feeds = samples(graph, 3)
    before = values(graph, feeds)
    after = values(equalize(graph, _histograms(before)), feeds)
    first, second = (np.abs(v["t"]).max((0, 1, 3, 4)) for v in (before, after))
    assert (second >= first * 0.999).all()
    assert (second > first * 1.5).any()
