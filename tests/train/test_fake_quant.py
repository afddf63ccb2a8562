"""The trainable form of a quantized graph: what it computes is what is exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.scheme import Format, Scheme
from edgekit.session import open_runner
from edgekit.train.executor import Executor
from edgekit.train.fake_quant import Trainable, learnable_groups, make_trainable

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
Quantize = Callable[..., Quantization]
MakeFeeds = Callable[..., list[dict[str, Array]]]


def weight(*shape: int, seed: int = 1) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:])))


#: Input shape, output shape, nodes, weights, tensors in 16 bits.
NETS: dict[str, tuple[str, str, str, dict[str, Any], tuple[str, ...]]] = {
    "conv relu": (
        "1,3,8,8", "1,6,8,8", "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2)",
        {"w1": weight(8, 3, 1, 1), "b1": weight(8), "w2": weight(6, 8, 1, 1)}, (),
    ),
    "depthwise": (
        "1,4,8,8", "1,16,8,8",
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w1, b1) r = Clip(a, low, high) y = Conv(r, w2, b2)",
        {"w1": weight(4, 1, 3, 3), "b1": weight(4), "w2": weight(16, 4, 1, 1), "b2": weight(16),
         "low": np.float32(0), "high": np.float32(6)}, (),
    ),
    "residual": (
        "1,8,8,8", "1,6,8,8",
        "a = Conv(x, w1, b1) r = Relu(a) b = Conv(r, w2, b2) s = Add(b, r) t = Relu(s) y = Conv(t, w3)",
        {"w1": weight(8, 8, 1, 1), "b1": weight(8), "w2": weight(8, 8, 1, 1, seed=2), "b2": weight(8, seed=3),
         "w3": weight(6, 8, 1, 1, seed=4)}, (),
    ),
    "silu": (
        "1,3,8,8", "1,6,8,8", "a = Conv(x, w1, b1) g = Sigmoid(a) s = Mul(a, g) y = Conv(s, w2)",
        {"w1": 3 * weight(8, 3, 1, 1), "b1": weight(8), "w2": weight(6, 8, 1, 1)}, (),
    ),
    "concat": (
        "1,3,8,8", "1,6,4,4",
        "a = Conv(x, w1) r = Relu(a) b = Conv(x, w2) s = Relu(b) c = Concat<axis=1>(r, s) "
        "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = Conv(m, w3)",
        {"w1": weight(4, 3, 1, 1), "w2": 2 * weight(4, 3, 1, 1, seed=2), "w3": weight(6, 8, 1, 1)}, (),
    ),
    "gemm": (
        "1,3,8,8", "1,5",
        "a = Conv(x, w1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, w2, b2)",
        {"w1": weight(40, 3, 1, 1), "w2": weight(5, 40), "b2": weight(5)}, (),
    ),
    "attention": (
        "1,6,16", "1,6,40",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose<perm=[0,2,1]>(k) "
        "m = MatMul(q, t) s = Softmax<axis=-1>(m) o = MatMul(s, v) p = MatMul(o, wo) y = Add(p, bo)",
        {"wq": weight(16, 16), "wk": weight(16, 16, seed=2), "wv": weight(16, 16, seed=3),
         "wo": weight(16, 40, seed=4), "bo": weight(40)}, (),
    ),
    "16 bits": (
        "1,3,8,8", "1,6,8,8",
        "a = Conv(x, w1) b = Conv(a, w2, b2) c = Conv(b, w3) d = Add(c, a) y = Conv(d, w4)",
        {"w1": weight(8, 3, 1, 1), "w2": weight(8, 8, 1, 1, seed=2), "b2": weight(8),
         "w3": weight(8, 8, 1, 1, seed=3), "w4": weight(6, 8, 1, 1, seed=4)}, ("b",),
    ),
}  # fmt: skip


def net(build: Build, name: str) -> Graph:
    given, made, nodes, constants, _ = NETS[name]
    return build(f"g (float[{given}] x) => (float[{made}] y) {{ {nodes} }}", constants)


def moved(trainable: Trainable, amount: float = 0.05) -> Executor:
    """An executor with every parameter changed by some percent, and no whole number of codes."""
    executor = Executor(trainable.graph).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in executor.weights().values():
            noise = torch.rand(value.shape, generator=random) * 2 - 1
            value.add_(noise * amount * (value.abs().mean() if value.abs().sum() else 1.0))
    return executor


def compare(executor: Executor, deployed: Graph, feeds: list[dict[str, Array]]) -> dict[str, Array]:
    """By quantized activation, how many steps trained and exported network are apart, over all samples."""
    steps = {}
    for node in deployed.nodes:
        producer = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        )
        if producer is not None:
            scale = array(node.inputs[1])
            assert scale is not None
            steps[str(node.outputs[0].name)] = float(scale)
    outputs = {str(v.name) for v in deployed.model.graph.outputs}
    runner = open_runner(deployed, threads=1, optimize=False, extra_outputs=sorted(set(steps) - outputs))
    found: dict[str, list[Array]] = {tensor: [] for tensor in steps}
    for feed in feeds:
        expected = runner.run(feed)
        with torch.no_grad():
            trained = executor({k: torch.from_numpy(v) for k, v in feed.items()}, keep=list(steps))
        for tensor, step in steps.items():
            found[tensor].append((trained[tensor].numpy() - expected[tensor]) / step)
    return {tensor: np.concatenate([f.ravel() for f in parts]) for tensor, parts in found.items()}


@pytest.mark.parametrize("learn", [False, True], ids=["fixed scales", "learned scales"])
@pytest.mark.parametrize("name", NETS)
def test_the_exported_network_is_the_trained_one(
    name: str, learn: bool, build_graph: Build, quantization: Quantize, make_feeds: MakeFeeds
) -> None:
    graph = net(build_graph, name)
    start = quantization(graph, raised=NETS[name][4])
    assert bool(start.plan.wide_nodes) == (name == "16 bits")
    trainable = make_trainable(start, learn_scales=learn)
    executor = moved(trainable)
    end = trainable.export(executor.to_graph())
    apart = compare(executor, end.deployed(), make_feeds(graph, 4, seed=9))
    assert "y" in apart
    for tensor, steps in apart.items():
        assert np.abs(steps).max() < 1.01, tensor
        assert (np.abs(steps) > 0.01).mean() < 0.01, tensor
    # It is another network by now, and in another place where scales moved.
    before = compare(executor, start.deployed(), make_feeds(graph, 4, seed=9))
    assert np.abs(before["y"]).max() > 2
    scaled = {t for t in start.params if start.params[t].scale != end.params[t].scale}
    assert bool(scaled) == learn


@pytest.mark.parametrize("name", NETS)
def test_untrained_it_is_the_deployed_network(
    name: str, build_graph: Build, quantization: Quantize, make_feeds: MakeFeeds
) -> None:
    graph = net(build_graph, name)
    start = quantization(graph, raised=NETS[name][4])
    trainable = make_trainable(start, learn_scales=True)
    apart = compare(Executor(trainable.graph).eval(), start.deployed(), make_feeds(graph, 3))
    assert max(np.abs(steps).max() for steps in apart.values()) < 1.01
    assert trainable.export(trainable.graph).deployed().sha256() == start.deployed().sha256()


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_weight_bias_and_scale(
    name: str, build_graph: Build, quantization: Quantize, make_feeds: MakeFeeds
) -> None:
    graph = net(build_graph, name)
    trainable = make_trainable(quantization(graph, raised=NETS[name][4]), learn_scales=True)
    executor = Executor(trainable.graph)
    given = {k: torch.from_numpy(v) for k, v in make_feeds(graph, 1)[0].items()}
    executor(given)["y"].square().sum().backward()
    constants = {k for k, v in NETS[name][3].items() if np.ndim(v)}
    assert constants <= set(executor.weights())
    assert set(trainable.thetas.values()) <= set(executor.weights())
    for label, value in executor.weights().items():
        assert value.grad is not None, label
        assert float(value.grad.abs().sum()) > 0, label


def test_a_weight_is_clipped_as_its_codes_are(build_graph: Build, quantization: Quantize) -> None:
    graph = net(build_graph, "conv relu")
    trainable = make_trainable(quantization(graph))
    executor = Executor(trainable.graph)
    with torch.no_grad():
        executor.weight("w1").fill_(-10.0)
    trained = executor({"x": torch.zeros(1, 3, 8, 8)}, keep=["w1_dequantized"])["w1_dequantized"]
    scales = trainable.start.scales["a.node"]
    np.testing.assert_allclose(trained.detach().numpy()[:, 0, 0, 0], -127 * scales, rtol=1e-6)
    end = trainable.export(executor.to_graph()).deployed()
    codes = array(end.model.graph.initializers["w1_quantized"])
    assert codes is not None
    assert (codes == -127).all()


def test_scales_get_the_gradient_of_lsq(build_graph: Build, quantization: Quantize) -> None:
    graph = net(build_graph, "conv relu")
    trainable = make_trainable(quantization(graph), learn_scales=True)
    executor = Executor(trainable.graph)
    executor({"x": torch.ones(1, 3, 8, 8)}, keep=["w2_dequantized"])["w2_dequantized"].sum().backward()
    found = executor.weight(trainable.thetas["weight", "y.node"]).grad
    scale = torch.from_numpy(trainable.start.scales["y.node"])
    ratio = torch.from_numpy(weight(6, 8, 1, 1)).float().flatten(1) / scale[:, None]
    slope = torch.where(ratio.abs() <= 127.5, ratio.round() - ratio, ratio.sign() * 127)
    expected = slope.sum(1) / np.sqrt(8 * 127) * scale
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_scales_that_an_op_fixes_are_not_learned(build_graph: Build, quantization: Quantize) -> None:
    learned = {name: learnable_groups(quantization(net(build_graph, name))) for name in NETS}
    assert learned["silu"] == ["a", "s", "y"]  # neither the input nor the sigmoid
    assert learned["depthwise"] == ["y"]  # Clip states the end of its range
    assert learned["attention"] == ["q", "k", "v", "m", "o", "y"]
    wide = learnable_groups(quantization(net(build_graph, "16 bits"), raised=["b"]))
    assert not {"b", "a"} & set(wide)


def test_a_group_shares_one_scale(build_graph: Build, quantization: Quantize) -> None:
    start = quantization(net(build_graph, "concat"))
    trainable = make_trainable(start, learn_scales=True)
    groups = [owner for kind, owner in trainable.thetas if kind == "activation"]
    assert groups == ["r", "y"]
    end = trainable.export(moved(trainable).to_graph())
    assert len({end.params[t].scale for t in ("r", "s", "c", "m")}) == 1
    assert end.params["r"].scale != start.params["r"].scale
    assert end.params["x"] == start.params["x"]


def test_constants_that_count_are_not_trained(build_graph: Build, quantization: Quantize) -> None:
    graph = build_graph(
        "g (float[1,16,4,4] x) => (float[1,40,4,4] y) { a = Conv(x, bins) y = Conv(a, w2) }",
        {"bins": np.arange(16).reshape(1, 16, 1, 1).astype(np.float32), "w2": weight(40, 1, 1, 1)},
    )
    trainable = make_trainable(quantization(graph))
    assert trainable.weights == ("w2",)
    assert trainable.frozen == ("a.node",)
    assert set(Executor(trainable.graph).weights()) == {"w2"}


def test_a_weight_of_two_nodes_is_one_parameter(
    build_graph: Build, quantization: Quantize, make_feeds: MakeFeeds
) -> None:
    graph = build_graph(
        "g (float[1,8,4,4] x) => (float[1,8,4,4] y) { a = Conv(x, w, b) y = Conv(a, w, b) }",
        {"w": weight(8, 8, 1, 1), "b": weight(8)},
    )
    trainable = make_trainable(quantization(graph), learn_scales=True)
    executor = moved(trainable)
    assert {"w", "b"} <= set(executor.weights())
    end = trainable.export(executor.to_graph())
    apart = compare(executor, end.deployed(), make_feeds(graph, 2, seed=4))
    assert max(np.abs(steps).max() for steps in apart.values()) < 1.01


def test_a_network_without_integer_nodes_is_refused(
    build_graph: Build, quantization: Quantize, integer_scheme: Scheme
) -> None:
    nothing = replace(quantization(net(build_graph, "conv relu")), scheme=Scheme(ops={}))
    empty = quantization(nothing.work, scheme=nothing.scheme)
    with pytest.raises(ModelError, match="nothing in it runs on integers") as caught:
        make_trainable(empty)
    assert "no integer kernel for Conv" in str(caught.value)
    assert integer_scheme.wide is Format.INT16
