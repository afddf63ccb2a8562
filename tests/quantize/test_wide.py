"""Tensors raised to 16-bit integers: which nodes run wide, and what the graph then computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph, array
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.scheme import Format, OpRule, Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]

SCHEME = Scheme(
    activation=Format.INT8,
    raised=Format.INT16,
    ops={
        "Conv": OpRule(weight_axis=0, fuses=("Relu",)),
        "MatMul": OpRule(weight_axis=-1, fuses=("Add",)),
        "Add": OpRule(),
        "Mul": OpRule(),
        "Sigmoid": OpRule(range=(0.0, 255 / 256), wide_range=(-1.0, 32767 / 32768)),
        "PRelu": OpRule(wide=False),
        "MaxPool": OpRule(moves=True),
        "Reshape": OpRule(moves=True),
    },
)
CHAIN = "a = Conv(x, w1) b = Conv(a, w2) c = Conv(b, w3) y = Conv(c, w4)"


def _chain(build: Build, lines: str = CHAIN, **more: Any) -> Graph:
    random = np.random.default_rng(0)
    weights = {k: random.standard_normal((8, 3 if k == "w1" else 8, 1, 1)) / 3 for k in ("w1", "w2", "w3")}
    weights["w4"] = random.standard_normal((16, 8, 1, 1)) / 3
    used = {k: v for k, v in {**weights, **more}.items() if k in lines}
    return build(f"g (float[1,3,8,8] x) => (float[1,16,8,8] y) {{ {lines} }}", used)


def _quantized(
    graph: Graph, samples: Sequence[dict[str, Array]], raised: Sequence[str], scheme: Scheme = SCHEME
) -> tuple[Graph, Plan, dict[str, QParams]]:
    plan = make_plan(graph, scheme, raised=raised)
    seen = observe(graph, unknown_ranges(graph, scheme, plan, {}), samples, threads=1)
    params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX))
    return insert_qdq(graph, plan, params, scheme), plan, params


def _names(nodes: frozenset[str]) -> set[str]:
    return {n.removesuffix(".node") for n in nodes}


def test_a_raised_tensor_makes_its_neighbours_wide(build: Build) -> None:
    plan = make_plan(_chain(build), SCHEME, raised=["b"])
    assert _names(plan.wide_nodes) == {"b", "c"}
    assert _names(plan.integer_nodes) == {"a", "b", "c", "y"}
    assert plan.formats == {
        "a": (Format.INT8, Format.INT16),  # written at 8 bits, read at 16
        "b": (Format.INT16,),
        "c": (Format.INT16, Format.INT8),
    }


def test_nothing_is_wide_without_raised_tensors(build: Build) -> None:
    plan = make_plan(_chain(build), SCHEME)
    assert not plan.wide_nodes
    assert not plan.formats


def test_movers_carry_a_raised_tensor_on(build: Build) -> None:
    lines = (
        "a = Conv(x, w1) b = Conv(a, w2) m = MaxPool <kernel_shape=[1,1]> (b) c = Conv(m, w3) y = Conv(c, w4)"
    )
    plan = make_plan(_chain(build, lines), SCHEME, raised=["b"])
    assert _names(plan.wide_nodes) == {"b", "m", "c"}
    assert plan.formats["m"] == plan.formats["b"] == (Format.INT16,)


def test_an_op_without_a_wide_kernel_stays_at_8_bits(build: Build) -> None:
    lines = "a = Conv(x, w1) b = Conv(a, w2) p = PRelu(b, s) c = Conv(p, w3) y = Conv(c, w4)"
    plan = make_plan(_chain(build, lines, s=np.full((8, 1, 1), 0.2)), SCHEME, raised=["b"])
    assert _names(plan.wide_nodes) == {"b"}
    assert plan.formats["b"] == (Format.INT16, Format.INT8)
    assert "p" not in plan.formats


def test_16_bits_have_no_zero_point_and_hold_all_that_was_seen() -> None:
    params = activation_params(-1.0, 3.0, Format.INT16)
    assert params.zero_point == 0
    assert params.scale == pytest.approx(3.0 / 32767)
    assert activation_params(-1.0, 32767 / 32768, Format.INT16).scale == 2.0**-15


@pytest.mark.parametrize("raised", [["b"], ["a", "b"], ["x"], ["b", "y"]])
def test_the_graph_computes_what_it_says(build: Build, samples: MakeSamples, raised: list[str]) -> None:
    graph = _chain(build)
    feeds = samples(graph)
    quantized, plan, params = _quantized(graph, feeds, raised)
    got = open_runner(quantized, threads=1, optimize=False).run(feeds[0])["y"]
    value = feeds[0]["x"]
    view: dict[str, Array] = {"x": value}
    order = [("x", None), ("a", "w1"), ("b", "w2"), ("c", "w3"), ("y", "w4")]
    for tensor, weight in order:
        if weight is not None:
            w = _stored(quantized, weight)
            value = np.einsum("oi,nihw->nohw", w[:, :, 0, 0], value)
        forms = plan.formats.get(tensor, (Format.INT8,))
        for form in forms:  # one after the other: the second format comes from the codes of the first
            p = params[tensor]
            p = p.wide if p.wide is not None and p.wide.format is form else p
            assert p.format is form
            value = p.round_trip(value).astype(np.float32)
        view[tensor] = value
    # Sums in another order may fall on the other side of a rounding boundary.
    assert np.abs(got - view["y"]).max() <= 1.01 * (params["y"].wide or params["y"]).scale
    assert (got == view["y"]).mean() > 0.95


def _stored(graph: Graph, weight: str) -> Array:
    values = graph.values()
    codes, scale = array(values[f"{weight}_quantized"]), array(values[f"{weight}_scale"])
    assert codes is not None
    assert scale is not None
    return np.asarray(codes * scale.reshape(-1, 1, 1, 1), np.float32)


def test_raising_brings_the_outputs_nearer(build: Build, samples: MakeSamples) -> None:
    graph = _chain(build)
    feeds = samples(graph)
    exact = open_runner(graph, threads=1).run(feeds[0])["y"]
    errors = []
    for raised in ([], ["b"], ["x", "a", "b", "c", "y"]):
        quantized, _, _ = _quantized(graph, feeds, raised)
        errors.append(float(np.square(open_runner(quantized, threads=1).run(feeds[0])["y"] - exact).mean()))
    assert errors[0] > errors[1] > errors[2]


def test_a_sigmoid_has_the_scale_that_its_kernels_have(build: Build, samples: MakeSamples) -> None:
    lines = "a = Conv(x, w1) s = Sigmoid(a) m = Mul(a, s) c = Conv(m, w2) y = Conv(c, w4)"
    graph = _chain(build, lines)
    _, _, params = _quantized(graph, samples(graph), ["a"])
    assert params["s"].wide is None
    assert params["s"].format is Format.INT16
    assert params["s"].scale == 2.0**-15
    _, _, params = _quantized(graph, samples(graph), [])
    assert (params["s"].scale, params["s"].zero_point) == (2.0**-8, -128)


def test_a_matmul_absorbs_its_bias(build: Build, samples: MakeSamples) -> None:
    random = np.random.default_rng(1)
    graph = build(
        "g (float[1,5,8] x) => (float[1,5,6] y) { h = MatMul(x, w) y = Add(b, h) }",
        {"w": random.standard_normal((8, 6)), "b": random.standard_normal(6)},
    )
    plan = make_plan(graph, SCHEME)
    assert plan.absorbed == {"h.node": "y.node"}
    assert plan.tensors == ("x", "y")
    other = build(
        "g (float[1,5,8] x) => (float[1,5,6] y) { h = MatMul(x, w) y = Add(b, h) }",
        {"w": random.standard_normal((8, 6)), "b": random.standard_normal((5, 6))},
    )
    assert make_plan(other, SCHEME).absorbed == {}


def test_a_network_that_takes_codes_moves_its_input_in_integers(build: Build) -> None:
    graph = build(
        "g (float[1,12,4] x) => (float[1,4,2,2] y) { r = Reshape(x, s) y = Conv(r, w) }",
        {"s": np.array([1, 12, 2, 2]), "w": np.ones((4, 12, 1, 1))},
    )
    assert "r.node" in make_plan(graph, SCHEME).float_nodes
    taken = SCHEME.model_copy(update={"integer_inputs": True})
    assert "r.node" in make_plan(graph, taken).integer_nodes
