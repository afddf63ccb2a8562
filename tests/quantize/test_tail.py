"""Networks whose tail runs on integers too, and those that compute in 16 bits throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.quantize.plan import make_plan
from edgekit.quantize.quantize import Options, quantize
from edgekit.quantize.ranges import fixed_ranges
from edgekit.quantize.scheme import Format, OpRule, Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]

NPU = Scheme(
    raised=Format.UINT16,
    tail="integer",
    integer_inputs=True,
    ops={
        "Conv": OpRule(weight_axis=0, fuses=("Relu",)),
        "Mul": OpRule(),
        "Sigmoid": OpRule(range=(0.0, 255 / 256), wide_range=(0.0, 65535 / 65536)),
        "Concat": OpRule(moves=True),
        "Reshape": OpRule(moves=True),
    },
)
A16 = NPU.model_copy(update={"activation": Format.UINT16, "raised": Format.FLOAT32, "max_raised": 0})
#: Two convs, then a detector's end: boxes are scaled, scores squashed, both joined.
HEAD = """
a = Conv<pads=[1,1,1,1]>(x, w1)
b = Conv(a, w2)
c = Conv(a, w3)
d = Mul(b, k)
e = Sigmoid(c)
f = Concat<axis=1>(d, e)
y = Reshape(f, s)
"""


@pytest.fixture
def head(build: Build) -> Graph:
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)) / 5,
        "w2": random.standard_normal((8, 8, 1, 1)) / 3,
        "w3": random.standard_normal((8, 8, 1, 1)) / 3,
        "k": np.array(32.0),
        "s": np.array([1, 16, 64], np.int64),
    }
    return build(f"g (float[1,3,8,8] x) => (float[1,16,64] y) {{ {HEAD} }}", weights)


def test_an_integer_tail_runs_in_the_raised_format_from_the_last_convolutions_on(head: Graph) -> None:
    plan = make_plan(head, NPU)
    assert not plan.float_nodes
    assert {n.removesuffix(".node") for n in plan.wide_nodes} == {"b", "c", "d", "e", "f", "y"}
    assert plan.formats["a"] == (Format.UINT8, Format.UINT16)
    assert plan.formats["y"] == (Format.UINT16,)
    assert "x" not in plan.formats


def test_a_float_tail_is_what_it_was(head: Graph) -> None:
    plan = make_plan(head, NPU.model_copy(update={"tail": "float"}))
    assert {n.removesuffix(".node") for n in plan.float_nodes} == {"d", "e", "f", "y"}
    assert not plan.wide_nodes


def test_a_tail_that_only_moves_keeps_its_8_bits(build: Build) -> None:
    weights = {"w": np.ones((16, 3, 1, 1)), "s": np.array([1, 16, 64], np.int64)}
    graph = build("g (float[1,3,8,8] x) => (float[1,16,64] y) { a = Conv(x, w) y = Reshape(a, s) }", weights)
    plan = make_plan(graph, NPU)
    assert not plan.wide_nodes
    assert not plan.float_nodes


def test_what_has_no_rule_stays_in_float_and_so_does_nothing_else(build: Build) -> None:
    weights = {"w": np.ones((4, 3, 1, 1))}
    graph = build(
        "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { a = Conv(x, w) b = Sigmoid(a) y = Erf(b) }", weights
    )
    plan = make_plan(graph, NPU)
    assert {n.removesuffix(".node") for n in plan.float_nodes} == {"y"}
    assert "b" in {n.removesuffix(".node") for n in plan.wide_nodes}


@pytest.mark.parametrize("scheme", [NPU, A16])
def test_made_up_ranges_give_codes_everywhere(head: Graph, scheme: Scheme) -> None:
    quantized = with_made_up_ranges(head, scheme)
    kinds = {"QuantizeLinear": 2}
    zeros = [n.inputs[kinds[n.op_type]] for n in quantized.nodes if n.op_type in kinds]
    formats = {str(v.dtype) for v in zeros if v is not None}
    assert formats == ({"UINT8", "UINT16"} if scheme is NPU else {"UINT16"})
    assert [n.op_type for n in quantized.nodes][-1] == "DequantizeLinear"
    out = open_runner(quantized, threads=1).run({"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert out["y"].shape == (1, 16, 64)


def test_the_tail_in_16_bits_is_better_than_in_8(head: Graph, samples: MakeSamples) -> None:
    drawn = samples(head, 6)
    eight = NPU.model_copy(update={"raised": Format.FLOAT32})
    found = {s.raised: quantize(head, s, lambda: drawn, Options(max_raised=0)) for s in (NPU, eight)}
    assert found[Format.UINT16].db > found[Format.FLOAT32].db + 3


def test_16_bits_throughout_need_no_search_and_lose_next_to_nothing(
    head: Graph, samples: MakeSamples
) -> None:
    drawn = samples(head, 6)
    found = quantize(head, A16, lambda: drawn)
    assert found.db > 40
    assert not found.raised
    assert len(found.rungs) <= 4
    assert fixed_ranges(head, A16, found.plan)["e"] == (0.0, 65535 / 65536)


def test_what_keeps_its_range_is_joined_with_a_scale_of_its_own(head: Graph) -> None:
    ops = {**NPU.ops, "Sigmoid": NPU.ops["Sigmoid"].model_copy(update={"keeps_range": True})}
    plan = make_plan(head, NPU.model_copy(update={"ops": ops}))
    assert plan.groups["e"] == "e"
    assert "f" in plan.sources
    assert make_plan(head, NPU).groups["e"] == "d"


@pytest.mark.parametrize(("lower", "absorbed"), [(0.0, True), (-1.0, False)])
def test_where_kernels_clip_at_zero_no_other_clip_is_absorbed(
    build: Build, lower: float, absorbed: bool
) -> None:
    weights = {"w": np.ones((16, 3, 1, 1)), "lo": np.array(lower), "hi": np.array(6.0)}
    text = "g (float[1,3,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) y = Clip(a, lo, hi) }"
    graph = build(text, weights)
    ops = {"Conv": OpRule(weight_axis=0, fuses=("Clip",)), "Clip": OpRule()}
    scheme = Scheme(clips_at_zero=True, tail="integer", ops=ops)
    assert bool(make_plan(graph, scheme).absorbed) is absorbed
    assert make_plan(graph, scheme.model_copy(update={"clips_at_zero": False})).absorbed
