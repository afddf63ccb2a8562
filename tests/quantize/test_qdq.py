"""QDQ graphs: what they compute, and that ONNX Runtime runs every op of the scheme on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.graph import Graph, array
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qdq import insert_pairs, insert_qdq
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.ranges import RangeOptions, choose_params, fixed_ranges
from edgekit.quantize.scheme import Format, Scheme
from edgekit.registry import load_target
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
Reference = Callable[..., dict[str, Array]]
SCHEME = load_target("ort-cpu").scheme or Scheme(ops={})


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _weight(*shape: int, seed: int = 1) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:])))


@dataclass(frozen=True)
class _Net:
    """A network around one op: ``a = Conv(x)``, the op from ``a`` to ``m``, and a MAC behind it.

    Attributes:
        op: The lines of the op.
        after: The line behind it.
        shape: Shape of ``y``.
        constants: Of both.
    """

    op: str
    after: str = "y = Conv(m, w2)"
    shape: str = "1,16,8,8"
    constants: dict[str, Any] = field(default_factory=dict)

    def build(self, build: Build) -> Graph:
        lines = f"a = Conv(x, w1, b1) {self.op} {self.after}"
        text = f"g (float[1,3,8,8] x) => (float[{self.shape}] y) {{ {lines} }}"
        constants: dict[str, Any] = {"w1": _weight(8, 3, 1, 1), "b1": _weight(8, seed=2), **self.constants}
        if "w2" in self.after and "w2" not in constants:
            constants["w2"] = _weight(16, 8, 1, 1, seed=3)
        return build(text, constants)


def _product(rows: int) -> Array:
    return _weight(rows, 16, seed=3)


BOUNDS = {"lo": np.float32(-0.4), "hi": np.float32(0.7)}
ROI = {"roi": np.zeros(0, np.float32), "twice": np.array([1, 1, 2, 2], np.float32)}
NETS: dict[str, list[_Net]] = {
    "Conv": [
        _Net("m = Conv <pads=[1,1,1,1]> (a, w)", constants={"w": _weight(8, 8, 3, 3)}),
        _Net("m = Conv <group=8, pads=[1,1,1,1]> (a, w, b1)", constants={"w": _weight(8, 1, 3, 3)}),
        _Net("m = Conv <group=2> (a, w)", constants={"w": _weight(8, 4, 1, 1)}),
        _Net("c = Conv(a, w) m = Relu(c)", constants={"w": _weight(8, 8, 1, 1)}),
        _Net(
            "c = Conv(a, w) m = Clip(c, lo, hi)",
            constants={"w": _weight(8, 8, 1, 1), "lo": np.float32(0), "hi": np.float32(0.7)},
        ),
        _Net("c = Conv(a, w) m = Clip(c, lo, hi)", constants={"w": _weight(8, 8, 1, 1), **BOUNDS}),
    ],
    "MatMul": [
        _Net("m = Transpose <perm=[0,2,3,1]> (a)", "y = MatMul(m, w2)", "1,8,8,16", {"w2": _product(8)}),
        _Net("m = Sigmoid(a)", "y = MatMul(a, m)", "1,8,8,8"),
        _Net("p = MatMul(a, w) m = Sigmoid(p)", constants={"w": _weight(8, 8, seed=4)}),
    ],
    "Gemm": [
        _Net("m = Flatten(a)", "y = Gemm(m, w2, b)", "1,16", {"w2": _product(512), "b": _weight(16)}),
        _Net(
            "m = Flatten(a)",
            "y = Gemm <transB=1> (m, w2, b)",
            "1,16",
            {"w2": _product(512).T.copy(), "b": _weight(16)},
        ),
        _Net("m = Flatten(a)", "y = Gemm <transB=1> (m, w2)", "1,16", {"w2": _product(512).T.copy()}),
        _Net(
            "f = Flatten(a) g1 = Gemm(f, w, b) m = Sigmoid(g1)",
            "y = MatMul(m, w2)",
            "1,16",
            {"w": _weight(512, 8), "b": _weight(8), "w2": _product(8)},
        ),
    ],
    "Add": [
        _Net("b = Conv(x, w) m = Add(a, b)", constants={"w": _weight(8, 3, 1, 1, seed=5)}),
        _Net("b = Conv(x, w) s = Add(a, b) m = Relu(s)", constants={"w": _weight(8, 3, 1, 1, seed=5)}),
        _Net("m = Add(a, k)", constants={"k": _weight(8, 1, 1)}),
    ],
    "Mul": [
        _Net("s = Sigmoid(a) m = Mul(a, s)"),
        _Net("m = Mul(a, k)", constants={"k": _weight(8, 1, 1)}),
        _Net("m = Mul(a, k)", constants={"k": np.float32(2.5)}),
    ],
    "Sigmoid": [_Net("m = Sigmoid(a)")],
    "LeakyRelu": [_Net("m = LeakyRelu <alpha=0.1> (a)")],
    "Concat": [
        _Net(
            "b = Conv(x, w) m = Concat <axis=1> (a, b)",
            "y = Conv(m, w2)",
            "1,32,8,8",
            {"w": _weight(2, 3, 1, 1, seed=5), "w2": _weight(32, 10, 1, 1)},
        ),
        _Net(
            "r = Relu(a) b = Conv(x, w) m = Concat <axis=1> (r, b)",
            "y = Conv(m, w2)",
            "1,32,8,8",
            {"w": _weight(2, 3, 1, 1, seed=5), "w2": _weight(32, 10, 1, 1)},
        ),
        _Net(
            "r = Relu(a) b = Conv(x, w) q = Relu(b) m = Concat <axis=1> (r, q)",
            "y = Conv(m, w2)",
            "1,32,8,8",
            {"w": _weight(2, 3, 1, 1, seed=5), "w2": _weight(32, 10, 1, 1)},
        ),
        _Net(
            "r = Relu(a) b = Conv(x, w) q = Clip(b, lo, hi) m = Concat <axis=1> (r, q)",
            "y = Conv(m, w2)",
            "1,32,8,8",
            {"w": _weight(2, 3, 1, 1, seed=5), "w2": _weight(32, 10, 1, 1), **BOUNDS},
        ),
    ],
    "AveragePool": [_Net("m = AveragePool <kernel_shape=[2,2], strides=[2,2]> (a)", shape="1,16,4,4")],
    "GlobalAveragePool": [_Net("m = GlobalAveragePool(a)", shape="1,16,1,1")],
    "MaxPool": [_Net("m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)", shape="1,16,4,4")],
    "Resize": [
        _Net('m = Resize <mode="nearest"> (a, roi, twice)', shape="1,16,16,16", constants=ROI),
    ],
    "Reshape": [
        _Net("m = Reshape(a, s)", "y = MatMul(m, w2)", "1,8,16", {"s": _ints(1, 8, 64), "w2": _product(64)})
    ],
    "Transpose": [
        _Net("m = Transpose <perm=[0,2,3,1]> (a)", "y = MatMul(m, w2)", "1,8,8,16", {"w2": _product(8)})
    ],
    "Flatten": [_Net("m = Flatten(a)", "y = MatMul(m, w2)", "1,16", {"w2": _product(512)})],
    "Squeeze": [
        _Net("m = Squeeze(a, ax)", "y = MatMul(m, w2)", "8,8,16", {"ax": _ints(0), "w2": _product(8)})
    ],
    "Unsqueeze": [
        _Net("m = Unsqueeze(a, ax)", "y = MatMul(m, w2)", "1,1,8,8,16", {"ax": _ints(0), "w2": _product(8)})
    ],
    "Slice": [
        _Net(
            "m = Slice(a, from, to, ax)",
            "y = Conv(m, w2)",
            "1,32,8,8",
            {"from": _ints(0), "to": _ints(4), "ax": _ints(1), "w2": _weight(32, 4, 1, 1)},
        ),
    ],
    "Split": [
        _Net(
            "m, n = Split <axis=1, num_outputs=2> (a)",
            "c = Conv(m, w3) d = Conv(n, w4) e = Add(c, d) y = Conv(e, w2)",
            constants={"w3": _weight(8, 4, 1, 1), "w4": _weight(8, 4, 1, 1, seed=9)},
        ),
    ],
    "Gather": [_Net("m = Gather <axis=1> (a, i)", constants={"i": _ints(7, 6, 5, 4, 3, 2, 1, 0)})],
    "DepthToSpace": [
        _Net(
            "m = DepthToSpace <blocksize=2> (a)",
            "y = Conv(m, w2)",
            "1,64,16,16",
            {"w2": _weight(64, 2, 1, 1)},
        ),
    ],
}
CASES = [pytest.param(op, net, id=f"{op}-{i}") for op, nets in NETS.items() for i, net in enumerate(nets)]


@dataclass(frozen=True)
class _Quantized:
    graph: Graph
    plan: Plan
    params: dict[str, QParams]
    qdq: Graph
    feeds: list[dict[str, Array]]

    @property
    def weights(self) -> dict[str, Array]:
        """The rounded constants, read back out of the file."""
        found = {}
        for node in self.qdq.nodes:
            codes = array(node.inputs[0])
            if node.op_type == "DequantizeLinear" and codes is not None:
                name = str(node.outputs[0].name).removesuffix("_dequantized")
                scale, zero = np.asarray(array(node.inputs[1])), np.asarray(array(node.inputs[2]))
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                shape = [-1 if i == axis and scale.ndim else 1 for i in range(codes.ndim)]
                real = (codes.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)
                found[name] = np.asarray(real, np.float32)
        return found


def _quantized(graph: Graph, samples: MakeSamples, **plan_options: Any) -> _Quantized:
    plan = make_plan(graph, SCHEME, **plan_options)
    feeds = samples(graph, 4)
    wanted = [t for t in plan.sources if t not in fixed_ranges(graph, SCHEME, plan)]
    calibration = observe(graph, wanted, feeds)
    params = choose_params(graph, plan, SCHEME, calibration, RangeOptions(Calibrator.MINMAX))
    return _Quantized(graph, plan, params, insert_qdq(graph, plan, params, SCHEME), feeds)


def _run(graph: Graph, feed: dict[str, Array], *, integer: bool, optimize: bool = True) -> dict[str, Array]:
    return open_runner(graph, threads=1, integer=integer, optimize=optimize).run(feed)


def test_every_op_of_the_scheme_is_tried() -> None:
    assert set(NETS) == set(SCHEME.ops)


@pytest.mark.parametrize(("op", "net"), CASES)
def test_the_file_says_what_the_reference_computes(
    op: str, net: _Net, build: Build, samples: MakeSamples, reference: Reference
) -> None:
    made = _quantized(net.build(build), samples)
    assert any(n.op_type == op and n.name in made.plan.integer_nodes for n in made.graph.nodes)
    runner = open_runner(made.qdq, threads=1, integer=False, optimize=False)
    for feed in made.feeds:
        expected = reference(made.graph, made.plan, made.params, made.weights, feed)["y"]
        found = runner.run(feed)["y"]
        step = made.params["y"].scale if "y" in made.params else np.ptp(expected) / 255
        # A rounding may fall the other way here and there, no more.
        assert np.abs(found - expected).max() <= 2.01 * step
        assert np.abs(found - expected).mean() <= 0.1 * step


@pytest.mark.parametrize(("op", "net"), CASES)
def test_rounding_costs_little(op: str, net: _Net, build: Build, samples: MakeSamples) -> None:
    made = _quantized(net.build(build), samples)
    for feed in made.feeds:
        wanted = _run(made.graph, feed, integer=False)["y"]
        error = _run(made.qdq, feed, integer=False, optimize=False)["y"] - wanted
        assert (error**2).sum() < 10**-2.5 * (wanted**2).sum(), op


@pytest.mark.parametrize(("op", "net"), CASES)
def test_integer_kernels_compute_the_same(op: str, net: _Net, build: Build, samples: MakeSamples) -> None:
    made = _quantized(net.build(build), samples)
    for feed in made.feeds:
        expected = _run(made.qdq, feed, integer=False, optimize=False)["y"]
        found = _run(made.qdq, feed, integer=True)["y"]
        step = made.params["y"].scale if "y" in made.params else np.ptp(expected) / 255
        assert np.abs(found - expected).max() <= 2.01 * step, op


@pytest.mark.parametrize(("op", "net"), CASES)
def test_the_op_runs_on_an_integer_kernel(
    op: str, net: _Net, build: Build, samples: MakeSamples, tmp_path: Path
) -> None:
    target = load_target("ort-cpu")
    made = _quantized(net.build(build), samples)
    artifact = target.compile(target.lower(made.qdq), "int8", tmp_path)
    placement = target.placement(artifact.path)
    assert [(n.op, n.reason) for n in placement.left] == []
    assert placement.float_nodes == 0
    # Every node that the plan counts is one kernel, except those that another absorbs.
    assert placement.integer_nodes >= len(made.plan.integer_nodes) - len(made.plan.absorbed)


def test_weights_are_rounded_by_channel(build: Build, samples: MakeSamples) -> None:
    weight = _weight(8, 8, 1, 1) * np.geomspace(0.01, 10, 8).reshape(-1, 1, 1, 1)
    made = _quantized(_Net("m = Conv(a, w)", constants={"w": weight}).build(build), samples)
    top = np.abs(weight).max((1, 2, 3), keepdims=True)
    clipped = np.abs(made.weights["w"] - weight) / top
    assert clipped.max() <= 0.41  # a range is never cut below 0.6 of the largest
    assert np.median(clipped) <= 1 / 254
    values = made.qdq.values()
    assert values["w_quantized"].dtype == ir.DataType.INT8
    assert values["w_scale"].shape == ir.Shape([8])
    assert "w" not in values


def test_biases_have_the_scale_of_the_accumulator(build: Build, samples: MakeSamples) -> None:
    made = _quantized(_Net("m = Sigmoid(a)").build(build), samples)
    values = made.qdq.values()
    scale, codes = array(values["b1_scale"]), array(values["b1_quantized"])
    weight_scale = array(values["w1_scale"])
    assert scale is not None and codes is not None and weight_scale is not None  # noqa: PT018
    np.testing.assert_allclose(scale, weight_scale * np.float32(made.params["x"].scale), rtol=1e-6)
    assert codes.dtype == np.int32
    bias = np.asarray(array(made.graph.values()["b1"]))
    np.testing.assert_allclose(codes * scale, bias, atol=scale.max() / 2 * 1.001)


def test_a_bias_that_would_not_fit_its_codes(build: Build, samples: MakeSamples) -> None:
    weight = _weight(16, 8, 1, 1)
    weight[0] *= 1e-10
    bias = np.zeros(16)
    bias[0] = 3.0
    net = _Net("m = Sigmoid(a)", "y = Conv(m, w2, b2)", constants={"w2": weight, "b2": bias})
    made = _quantized(net.build(build), samples)
    for integer in (False, True):
        found = _run(made.qdq, made.feeds[0], integer=integer)["y"]
        np.testing.assert_allclose(found[:, 0], 3.0, atol=made.params["y"].scale)


def test_a_weight_that_two_nodes_share(build: Build, samples: MakeSamples) -> None:
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        a = Conv(x, w, b) r = Relu(a) m = Conv(r, w, b) y = Conv(m, w, b)
    }"""
    graph = build(text, {"w": _weight(16, 16, 1, 1), "b": 0.1 * _weight(16)})
    made = _quantized(graph, samples)
    assert not {"w", "b"} & set(made.qdq.values())
    for feed in made.feeds:
        wanted = _run(graph, feed, integer=False)["y"]
        for integer in (False, True):
            found = _run(made.qdq, feed, integer=integer)["y"]
            assert ((found - wanted) ** 2).sum() < 10**-2.5 * (wanted**2).sum()


def test_a_weight_that_a_float_node_shares(build: Build, samples: MakeSamples) -> None:
    text = """g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[8,8,1,1] z) {
        a = Conv(x, w) y = Conv(a, w) z = Neg(w)
    }"""
    graph = build(text, {"w": _weight(8, 8, 1, 1) * 3})
    made = _quantized(graph, samples, raised=["y"])
    found = _run(made.qdq, made.feeds[0], integer=True)
    np.testing.assert_array_equal(found["z"], -np.asarray(array(graph.values()["w"])))


def test_outputs_keep_their_names(build: Build, samples: MakeSamples) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,8,8,8] a, float[1,16,8,8] y) {
        a = Conv(x, w1) y = Conv(a, w2)
    }"""
    graph = build(text, {"w1": _weight(8, 3, 1, 1), "w2": _weight(16, 8, 1, 1)})
    made = _quantized(graph, samples)
    assert [o.name for o in made.qdq.outputs] == ["a", "y"]
    assert [o.shape for o in made.qdq.outputs] == [o.shape for o in graph.outputs]
    for feed in made.feeds:
        wanted, found = _run(graph, feed, integer=False), _run(made.qdq, feed, integer=True)
        for name in ("a", "y"):
            assert np.abs(found[name] - wanted[name]).max() < 6 * made.params[name].scale
            # It is the rounded tensor that leaves the network.
            codes = found[name] / made.params[name].scale
            np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)


def test_float_readers_of_an_integer_result_read_what_is_there(build: Build, samples: MakeSamples) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,16,8,8] y, float[1,8,8,8] z) {
        a = Conv(x, w1) z = Tanh(a) y = Conv(a, w2)
    }"""
    graph = build(text, {"w1": _weight(8, 3, 1, 1), "w2": _weight(16, 8, 1, 1)})
    made = _quantized(graph, samples)
    tanh = next(n for n in made.qdq.nodes if n.op_type == "Tanh")
    assert tanh.inputs[0] is not None
    assert tanh.inputs[0].name == "a_dequantized"


def test_float_readers_of_a_float_result_keep_it(build: Build, samples: MakeSamples) -> None:
    text = """g (float[1,8,8,8] x) => (float[1,16,8,8] y, float[1,8,8,8] z) {
        a = Tanh(x) z = Exp(a) y = Conv(a, w2)
    }"""
    graph = build(text, {"w2": _weight(16, 8, 1, 1)})
    made = _quantized(graph, samples)
    reads = {n.op_type: n.inputs[0].name for n in made.qdq.nodes if n.inputs[0] is not None}
    assert (reads["Exp"], reads["Conv"]) == ("a", "a_dequantized")
    feed = made.feeds[0]
    np.testing.assert_allclose(
        _run(made.qdq, feed, integer=True)["z"], _run(graph, feed, integer=False)["z"], rtol=1e-5
    )


def test_the_float_graph_is_not_touched(build: Build, samples: MakeSamples) -> None:
    graph = NETS["Concat"][0].build(build)
    before = graph.sha256()
    made = _quantized(graph, samples)
    assert graph.sha256() == before
    assert made.qdq.history[-1].pass_name == "insert_qdq"
    assert len(made.qdq.history) == len(graph.history) + 1


def test_formats_are_the_schemes(build: Build, samples: MakeSamples) -> None:
    graph = NETS["Sigmoid"][0].build(build)
    scheme = SCHEME.model_copy(update={"activation": Format.INT8})
    plan = make_plan(graph, scheme)
    params = {t: activation_params(-4.0, 4.0, Format.INT8) for t in plan.tensors}
    values = insert_qdq(graph, plan, params, scheme).values()
    assert values["a_quantized"].dtype == ir.DataType.INT8
    assert values["a_zero_point"].dtype == ir.DataType.INT8


@pytest.mark.parametrize("tensor", ["x", "a", "m"])
def test_a_single_pair_rounds_one_tensor_for_all_of_its_readers(
    tensor: str, build: Build, samples: MakeSamples
) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,8,8,8] y, float[1,3,8,8] z) {
        a = Conv(x, w) m = Sigmoid(a) y = Mul(a, m) z = Neg(x)
    }"""
    graph = build(text, {"w": _weight(8, 3, 1, 1)})
    params = activation_params(-2.0, 2.0, Format.UINT8)
    paired = insert_pairs(graph, {tensor: params})
    assert sum(n.op_type == "QuantizeLinear" for n in paired.nodes) == 1
    feed = samples(graph, 1)[0]
    runner = open_runner(graph, threads=1, extra_outputs=["a", "m"])
    plain = {**feed, **runner.run(feed)}
    plain[tensor] = params.round_trip(plain[tensor])
    if tensor == "x":
        plain |= runner.run({"x": plain["x"].astype(np.float32)})
    elif tensor == "a":
        plain["m"] = 1 / (1 + np.exp(-plain["a"]))
    found = _run(paired, feed, integer=False)
    np.testing.assert_allclose(found["y"], plain["a"] * plain["m"], atol=1e-4)
    np.testing.assert_allclose(found["z"], -plain["x"], atol=1e-5)
