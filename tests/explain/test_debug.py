"""Every cause planted in a healthy network is named first; in the healthy one, none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.explain.cause import Cause
from edgekit.explain.debug import Explanation, explain
from edgekit.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]


def test_the_healthy_network_has_nothing_wrong(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    found = explained(net(weights), samples())

    assert [f for f in found.findings if f.cause is not Cause.SATURATION] == []
    assert found.db > 25
    assert "nothing is wrong" in found.sentence()


def test_evaluation_data_like_the_calibration_is_not_named(
    weights: Any, net: Any, samples: Any, explained: Any
) -> None:
    found = explained(net(weights), samples(), against=samples(seed=7))

    assert Cause.UNLIKE not in [f.cause for f in found.findings]
    assert Cause.FEW_IMAGES not in [f.cause for f in found.findings]


def test_an_outlier_channel(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    # Channel 3 is 200 times larger, and what reads it takes that back.
    weights["w1"][3] *= 200
    weights["b1"][3] *= 200
    weights["w2"][3] /= 200

    first = explained(net(weights), samples()).findings[0]

    assert (first.cause, first.where) == (Cause.CHANNEL, "ra")
    assert first.evidence["channel"] == 3
    assert first.evidence["noise_without_cause"] < 0.1 * first.evidence["noise"]
    assert first.effect_db is not None
    assert first.effect_db > 5


def test_a_range_clash_in_a_concat(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    # One branch is 300 times larger as a whole, and what reads it takes that back.
    for name in ("w3", "b3"):
        weights[name] *= 300
    weights["w7"][:12] /= 300

    found = explained(net(weights), samples())

    assert found.findings[0].cause is Cause.CONCAT
    assert found.findings[0].op == "Concat"
    assert found.findings[0].evidence["large"] == "rl"
    assert found.findings[0].evidence["small"] == "rr"
    assert "range clash in a Concat" in found.sentence()


def test_a_dead_range_from_one_image(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    feeds = samples()
    feeds[4] = {"x": feeds[4]["x"] * 60}

    first = explained(net(weights), feeds).findings[0]

    assert first.cause is Cause.FEW_IMAGES
    assert "sample 4" in first.evidence["samples"]


def test_a_pre_activation_tail(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    # Channel 5 lies far below zero, where SiLU is flat: nothing comes out of it.
    weights["b2"][5] = -300.0

    first = explained(net(weights), samples()).findings[0]

    assert (first.cause, first.where) == (Cause.TAIL, "d")
    assert first.evidence["wasted"] > 0.8


MASKED = """net (float[1,8,16] x) => (float[1,8,16] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kt = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, kt)
    s4 = Reshape(s, four)
    t = Add(s4, mask)
    a4 = Softmax(t)
    a = Reshape(a4, three)
    o = MatMul(a, v)
    h = MatMul(o, wo)
    r = Relu(h)
    y = MatMul(r, wp)
}"""


@pytest.mark.parametrize("never", [-1e9, -np.inf, -10000.0])
def test_minus_infinity(never: float, net: Any, explained: Any, scheme: Scheme) -> None:
    random = np.random.default_rng(0)
    constants: dict[str, Array] = {
        n: random.standard_normal((16, 16)) / 4 for n in ("wq", "wk", "wv", "wo", "wp")
    }
    constants |= {"four": np.array([1, 1, 8, 8]), "three": np.array([1, 8, 8])}
    constants["mask"] = np.where(np.tril(np.ones((8, 8))), 0.0, never).reshape(1, 1, 8, 8)
    graph = net(constants, MASKED)
    feeds = [{"x": 2 * random.standard_normal((1, 8, 16)).astype(np.float32)} for _ in range(12)]
    softmax = scheme.ops["Sigmoid"]
    other = scheme.model_copy(update={"ops": {**scheme.ops, "Softmax": softmax}})

    first = explained(graph, feeds, other=other).findings[0]

    assert first.cause is Cause.INFINITY


def _per_tensor(scheme: Scheme) -> Scheme:
    rule = scheme.ops["Conv"].model_copy(update={"weight_axis": None})
    return scheme.model_copy(update={"ops": {**scheme.ops, "Conv": rule}})


def test_depthwise_weights_with_one_scale(
    weights: Any, net: Any, samples: Any, explained: Any, scheme: Scheme
) -> None:
    # Every other filter is 100 times smaller, and what reads it makes up for that.
    weights["w1"][::2] *= 100
    weights["b1"][::2] *= 100
    weights["w2"][::2] /= 100

    found = explained(net(weights), samples(), other=_per_tensor(scheme))

    named = [f for f in found.findings if f.cause is Cause.PER_TENSOR]
    assert [f.op for f in named] == ["Conv"]
    assert named[0].evidence["noise_per_channel"] < 0.1 * named[0].evidence["noise"]


def test_one_scale_is_no_cause_where_the_filters_are_alike(
    weights: Any, net: Any, samples: Any, explained: Any, scheme: Scheme
) -> None:
    found = explained(net(weights), samples(), other=_per_tensor(scheme))

    assert not {Cause.PER_TENSOR, Cause.ONE_SCALE} & {f.cause for f in found.findings}


def test_saturation_on_cpus_without_vnni(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    # All inputs of a node at the end of their range, all its weights at the end of theirs.
    weights["b1"] = np.full(16, 50.0)
    weights["w3"] = np.abs(weights["w3"]) * 0 + 0.3
    weights["w4"] = weights["w3"].copy()
    weights["w2"] = np.full_like(weights["w2"], 0.3)

    found = explained(net(weights), samples())

    named = [f for f in found.findings if f.cause is Cause.SATURATION]
    assert named
    assert named[0].evidence["share"] > 0.5
    assert named[0].effect_db is None


def test_no_saturation_in_the_healthy_network(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    assert explained(net(weights), samples()).saturation == {}


def test_calibration_unlike_evaluation_data(weights: Any, net: Any, samples: Any, explained: Any) -> None:
    quiet = [{"x": 0.2 * f["x"]} for f in samples()]

    first = explained(net(weights), quiet, against=samples(seed=3)).findings[0]

    assert first.cause is Cause.UNLIKE
    assert first.evidence["samples_beyond"] > 0.9


def test_a_qdq_graph_alone(weights: Any, net: Any, samples: Any, setting: Any) -> None:
    weights["w1"][3] *= 200
    weights["b1"][3] *= 200
    weights["w2"][3] /= 200

    found = explain(replace(setting(net(weights), samples()), original=None))

    assert found.findings[0].cause is Cause.CHANNEL
    assert found.weights_db is None


def test_shares_add_up_and_the_answer_is_the_same_twice(
    weights: Any, net: Any, samples: Any, explained: Callable[..., Explanation]
) -> None:
    weights["b2"][5] = -300.0
    weights["w1"][3] *= 200
    weights["b1"][3] *= 200
    weights["w2"][3] /= 200

    once, twice = (explained(net(weights), samples()) for _ in range(2))

    assert sum(once.shares.values()) == pytest.approx(1.0)
    assert {Cause.TAIL, Cause.CHANNEL} <= set(once.shares)
    assert once == twice
