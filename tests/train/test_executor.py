"""Whole graphs in the executor against ONNX Runtime, batches, training and the way back to a graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekit.capture import capture
from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.passes.verify import random_feeds
from edgekit.session import open_runner
from edgekit.train.executor import Executor, check_batch, ops_table, torch_module
from edgekit.train.ops.base import supported_ops

Arrays = dict[str, np.ndarray[Any, Any]]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SHARED = Path(__file__).parents[3] / "shared" / "models"


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    constants: Arrays | None = None,
) -> Graph:
    """A graph of float32 inputs and outputs at opset 21, with inner shapes inferred."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def difference(graph: Graph, executor: Executor, seed: int = 1) -> float:
    """Largest difference to ONNX Runtime, relative to the largest value."""
    feeds = random_feeds(graph.inputs, seed)
    expected = open_runner(graph, threads=1).run(feeds)
    with torch.no_grad():
        found = executor(tensors(feeds))
    assert set(found) == set(expected)
    return max(
        float(np.abs(found[name].numpy() - value).max() / max(np.abs(value).max(), 1e-6))
        for name, value in expected.items()
    )


class Residual(nn.Module):
    """Convolutions, a depthwise one, a skip, a shuffle of channels, attention over cells, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Conv2d(8, 8, 1)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.gelu = nn.GELU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(x + self.point(self.depthwise(x)))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = nn.functional.interpolate(self.up(nn.functional.max_pool2d(x, 3, 2, 1)), scale_factor=0.5)
        cells = self.norm(torch.cat([self.token.expand(n, -1, -1), x.flatten(2).transpose(1, 2)], 1))
        q, k, v = self.qkv(cells).reshape(n, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) / 2).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(n, -1, 8)
        out: Tensor = self.head(self.gelu(cells + mixed)[:, 0])
        return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = Residual().eval()
    path = tmp_path_factory.mktemp("net") / "residual.onnx"
    program = torch.onnx.export(net, (torch.randn(1, 3, 16, 16),), dynamo=True, verbose=False, optimize=False)
    assert program is not None
    program.save(path)
    return path


@pytest.fixture(scope="module")
def residual(exported: Path) -> Graph:
    return capture(str(exported)).graph


def test_a_net_with_everything_matches_onnx_runtime(residual: Graph) -> None:
    executor = Executor(residual).eval()
    assert difference(residual, executor, 0) < 1e-4
    assert difference(residual, executor, 1) < 1e-4


def test_a_batch_gives_what_single_samples_give(residual: Graph) -> None:
    executor = Executor(residual)
    feeds = [tensors(random_feeds(residual.inputs, seed)) for seed in (0, 1)]
    assert check_batch(executor, feeds)
    assert executor.training


def test_every_weight_gets_a_gradient_and_training_lowers_the_loss(residual: Graph) -> None:
    executor = Executor(residual).train()
    name = residual.inputs[0].name
    output = residual.outputs[0].name
    torch.manual_seed(0)
    x, target = torch.randn(4, 3, 16, 16), torch.randn(4, 5)
    optimizer = torch.optim.Adam(executor.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (executor({name: x})[output] - target).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        if len(losses) == 1:
            assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in executor.weights().values())
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    # The graph that comes back computes what was trained, and the one that went in has not changed.
    trained = executor.to_graph()
    assert difference(trained, executor.eval()) < 1e-4
    assert difference(residual, executor) > 1e-2
    assert difference(residual, Executor(residual).eval()) < 1e-4


def test_parameters_carry_onnx_names_in_the_state_dict(residual: Graph) -> None:
    executor = Executor(residual)
    assert "point.weight" in executor.state_dict()
    assert executor.weight("point.weight") is executor.get_parameter("point.weight")
    keys = executor.state_dict()
    for name, key in executor.parameter_names.items():
        assert key in keys, name
    with pytest.raises(ModelError, match="no parameter 'nothing'"):
        executor.weight("nothing")


def test_names_that_torch_cannot_use_get_a_name_near_them() -> None:
    names = ["weight", "a", "a.b", "training", "x..y", "graph.bias"]
    nodes, last = [], "x"
    for i, name in enumerate(names):
        nodes.append(helper.make_node("Mul", [last, name], [f"y{i}"], name=f"n{i}"))
        last = f"y{i}"
    graph = make(nodes, {"x": [1, 3]}, {last: [1, 3]}, {n: normal(3, seed=i) for i, n in enumerate(names)})
    executor = Executor(graph)
    assert list(executor.weights()) == names
    assert len(set(executor.parameter_names.values())) == len(names)
    assert set(executor.parameter_names.values()) == set(executor.state_dict())
    assert difference(graph, executor) < 1e-6


def test_a_copy_trains_apart_from_its_original(residual: Graph) -> None:
    executor = Executor(residual)
    twin = copy.deepcopy(executor)
    with torch.no_grad():
        twin.weight("point.weight").zero_()
    assert executor.weight("point.weight").abs().sum() > 0
    assert difference(residual, executor.eval()) < 1e-4
    assert difference(residual, twin.eval()) > 1e-3


def test_the_executor_moves_and_changes_type(residual: Graph) -> None:
    executor = Executor(residual).eval().double()
    feeds = {n: t.double() for n, t in tensors(random_feeds(residual.inputs, 0)).items()}
    found = executor(feeds)
    assert all(t.dtype == torch.float64 for t in found.values())
    assert {t.device.type for t in Executor(residual).to("meta").buffers()} <= {"meta"}


def test_inner_tensors_are_handed_out_as_they_are_without_fusion() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Sigmoid", ["r"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["s", "r"], ["y"], name="gate"),
    ]
    graph = make(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 3, 4, 4]}, {"w": normal(3, 2, 1, 1)})
    executor = Executor(graph)
    feeds = random_feeds(graph.inputs, 0)
    inner = open_runner(graph, threads=1, extra_outputs=["c", "s"]).run(feeds)
    found = executor(tensors(feeds), keep=["c", "s", "w"])
    for name in ("c", "s", "y"):
        np.testing.assert_allclose(found[name].detach().numpy(), inner[name], rtol=1e-5, atol=1e-6)
    assert list(found) == ["y", "c", "s", "w"]
    assert float(found["c"].detach().min()) < 0
    plain = executor(tensors(feeds))["y"]
    torch.testing.assert_close(plain, found["y"])
    with pytest.raises(ModelError, match=r"no tensor named \['q'\]"):
        executor(tensors(feeds), keep=["q"])


@pytest.mark.parametrize("first", ["relu", "clip", "leaky", "hardswish", "gelu"])
def test_fused_functions_have_the_gradient_of_their_parts(first: str) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv")]
    if first == "relu":
        nodes.append(helper.make_node("Relu", ["c"], ["y"], name="a"))
    elif first == "clip":
        nodes.append(helper.make_node("Clip", ["c", "low", "high"], ["y"], name="a"))
    elif first == "leaky":
        nodes.append(helper.make_node("LeakyRelu", ["c"], ["y"], name="a", alpha=0.1))
    elif first == "hardswish":
        nodes.append(helper.make_node("HardSigmoid", ["c"], ["h"], name="a", alpha=1 / 6, beta=0.5))
        nodes.append(helper.make_node("Mul", ["h", "c"], ["y"], name="b"))
    else:
        nodes += [
            helper.make_node("Div", ["c", "root"], ["d"], name="a"),
            helper.make_node("Erf", ["d"], ["e"], name="b"),
            helper.make_node("Add", ["e", "one"], ["p"], name="c"),
            helper.make_node("Mul", ["c", "p"], ["m"], name="d"),
            helper.make_node("Mul", ["m", "half"], ["y"], name="e"),
        ]
    constants = {
        "w": normal(3, 2, 1, 1),
        "low": np.array(-0.5, np.float32),
        "high": np.array(0.7, np.float32),
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    graph = make(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 3, 4, 4]}, constants)
    assert difference(graph, Executor(graph), 0) < 1e-5
    fused, apart = Executor(graph).double(), Executor(graph).double()
    inner = [o for n in nodes for o in n.output if o != "y"]
    x = torch.from_numpy(normal(1, 2, 4, 4, seed=3)).double()
    one, other = fused({"x": x})["y"], apart({"x": x}, keep=inner)["y"]
    assert type(one.grad_fn) is not type(other.grad_fn) or first in ("relu", "clip")
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(fused.weight("w").grad, apart.weight("w").grad)


def test_batch_normalization_follows_the_data_in_training_mode_only() -> None:
    nodes = [helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], name="bn")]
    constants = {
        "g": normal(3),
        "b": normal(3, seed=1),
        "m": np.zeros(3, np.float32),
        "v": np.ones(3, np.float32),
    }
    graph = make(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}, constants)
    executor = Executor(graph)
    reference = nn.BatchNorm2d(3)
    x = torch.from_numpy(normal(6, 3, 4, 4, seed=2)) * 3 + 1
    with torch.no_grad():
        reference.weight.copy_(torch.from_numpy(constants["g"]))
        reference.bias.copy_(torch.from_numpy(constants["b"]))
    torch.testing.assert_close(executor({"x": x})["y"], reference(x))
    torch.testing.assert_close(executor.eval()({"x": x})["y"], reference.eval()(x))
    assert set(executor.weights()) == {"g", "b"}
    trained = executor.to_graph()
    assert reference.running_mean is not None
    mean = array(trained.values()["m"])
    assert mean is not None
    np.testing.assert_allclose(mean, reference.running_mean.numpy(), rtol=1e-5)
    assert not array(graph.values()["m"]).any()  # type: ignore[union-attr]


def test_a_net_captured_without_folding_trains_its_normalizations(exported: Path) -> None:
    graph = capture(str(exported), fold=False).graph
    executor = Executor(graph).train()
    assert difference(graph, executor.eval()) < 1e-4
    before = {name: tensor.clone() for name, tensor in executor.named_buffers() if "running" in name}
    assert len(before) == 4
    executor.train()({graph.inputs[0].name: torch.randn(4, 3, 16, 16)})
    changed = dict(executor.named_buffers())
    assert all(not torch.equal(changed[name], tensor) for name, tensor in before.items())
    assert difference(executor.to_graph(), executor.eval()) < 1e-4


def test_settings_masks_and_grids_are_not_trained() -> None:
    nodes = [
        helper.make_node("Clip", ["x", "low"], ["a"], name="clip"),
        helper.make_node("Add", ["a", "grid"], ["b"], name="grid_add"),
        helper.make_node("Mul", ["b", "half"], ["c"], name="scale"),
        helper.make_node("Add", ["c", "bias"], ["d"], name="bias_add"),
        helper.make_node("MatMul", ["d", "counts"], ["y"], name="expectation"),
    ]
    constants: Arrays = {
        "low": np.array(-1, np.float32),
        "grid": np.array([[0.5, 1.5, 2.5]], np.float32),
        "half": np.array([0.3], np.float32),
        "bias": normal(3),
        "counts": np.arange(3, dtype=np.float32)[:, None],
    }
    graph = make(nodes, {"x": [1, 3]}, {"y": [1, 1]}, constants)
    assert list(Executor(graph).weights()) == ["bias"]


def quantized(scale: float = 0.1) -> Graph:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], name="wdq", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], name="conv"),
    ]
    constants: Arrays = {
        "s": np.array(scale, np.float32),
        "z": np.array(-3, np.int8),
        "w": np.random.default_rng(0).integers(-127, 128, (3, 2, 1, 1)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03], np.float32),
    }
    return make(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 3, 4, 4]}, constants)


def test_a_pair_of_quantizers_passes_the_gradient_inside_its_range() -> None:
    graph = quantized()
    executor = Executor(graph)
    assert not executor.weights()
    assert difference(graph, executor, 0) < 1e-5
    x = torch.linspace(-20, 20, 32).reshape(1, 2, 4, 4).requires_grad_()
    executor({"x": x})["y"].sum().backward()
    assert x.grad is not None
    inside = (x >= -12.5) & (x <= 13)
    assert bool((x.grad[inside] != 0).all())
    assert bool((x.grad[~inside] == 0).all())


def test_learned_scales_get_the_gradient_of_lsq_and_are_written_back() -> None:
    graph = quantized()
    executor = Executor(graph, learn_scales=True)
    assert set(executor.weights()) == {"s", "ws"}
    x = torch.linspace(-20, 20, 32).reshape(1, 2, 4, 4)
    fake = executor({"x": x}, keep=["d"])["d"]
    fake.sum().backward()
    ratio = x / 0.1
    codes = (ratio.round() - 3).clamp(-128, 127) + 3
    expected = torch.where((ratio >= -125.5) & (ratio <= 130.5), codes - ratio, codes).sum()
    torch.testing.assert_close(executor.weight("s").grad, expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        executor.weight("s").fill_(0.2)
    assert float(array(executor.to_graph().values()["s"])) == pytest.approx(0.2)  # type: ignore[arg-type]
    assert difference(executor.to_graph(), executor) < 1e-5


def test_shapes_in_the_graph_follow_the_batch_wherever_its_axis_is() -> None:
    constants = {
        "w": normal(6, 6),
        "shape": np.array([5, 2, 3], np.int64),
        "joined": np.array([5, 1, 6], np.int64),
        "back": np.array([1, 30], np.int64),
        "more": np.array([[0, 1, 2]], np.float32),
        "wide": np.array([1, 3], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="m"),
        helper.make_node("Transpose", ["m"], ["t"], name="t", perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["r"], name="r"),
        helper.make_node("Softmax", ["r"], ["sm"], name="sm"),
        helper.make_node("Reshape", ["sm", "joined"], ["u"], name="u"),
        helper.make_node("Transpose", ["u"], ["v"], name="v", perm=[1, 0, 2]),
        helper.make_node("Reshape", ["v", "back"], ["f"], name="f"),
        helper.make_node("Expand", ["more", "wide"], ["e"], name="e"),
        helper.make_node("Concat", ["f", "e"], ["y"], name="y", axis=1),
    ]
    graph = make(nodes, {"x": [1, 5, 6]}, {"y": [1, 33]}, constants)
    executor = Executor(graph)
    assert difference(graph, executor, 0) < 1e-5
    assert check_batch(executor, [{"x": torch.from_numpy(normal(1, 5, 6, seed=s))} for s in (0, 1)])


def test_a_graph_that_mixes_its_samples_does_not_pass_the_batch_check() -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=1)]
    graph = make(nodes, {"x": [1, 4]}, {"y": [1, 4]}, {"axes": np.array([0], np.int64)})
    feeds = [{"x": torch.full((1, 4), float(i))} for i in range(2)]
    assert not check_batch(Executor(graph), feeds)


def test_nodes_without_a_kernel_are_all_named() -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["x", "x"], ["a"], name="suppress"),
        helper.make_node("Cast", ["a"], ["b"], name="cast", to=1),
        helper.make_node("RandomNormalLike", ["b"], ["y"], name="noise"),
    ]
    graph = make(nodes, {"x": [1, 4, 4]}, {"y": [1, 3]})
    with pytest.raises(ModelError, match=r"'suppress'.*'noise'"):
        Executor(graph)


def test_wrong_feeds_are_refused() -> None:
    graph = make([helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": [1, 4]}, {"y": [1, 4]})
    executor = Executor(graph)
    with pytest.raises(ModelError, match="input 'x' is missing"):
        executor({})
    with pytest.raises(ModelError, match=r"shape \[1, 5\]"):
        executor({"x": torch.zeros(1, 5)})


def test_torch_module_takes_inputs_by_position(residual: Graph) -> None:
    module = torch_module(residual)
    x = torch.randn(2, 3, 16, 16)
    found = module(x)
    assert isinstance(found, Tensor)
    assert found.shape == (2, 5)
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], name="s", axis=1, num_outputs=2)]
    two = torch_module(make(nodes, {"x": [1, 4]}, {"a": [1, 2], "b": [1, 2]}))
    assert [t.shape for t in two(torch.zeros(3, 4))] == [(3, 2), (3, 2)]
    with pytest.raises(ModelError, match="takes 1 inputs, got 2"):
        module(x, x)


def test_the_table_has_a_row_for_every_kernel() -> None:
    rows = ops_table()
    assert [(r["domain"], r["op"]) for r in rows] == list(supported_ops())
    assert next(r for r in rows if r["op"] == "GlobalLpPool")["tested"]


def test_the_default_model_matches_onnx_runtime() -> None:
    graph = capture("edgekit.models.yolo:build", input_shapes={"images": (1, 3, 256, 256)}).graph
    assert difference(graph, Executor(graph).eval()) < 1e-4


@pytest.mark.parametrize("name", ["mobilefacenet.onnx", "yolox_nano.onnx"])
def test_real_networks_match_onnx_runtime(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    graph = capture(str(path)).graph
    executor = Executor(graph).eval()
    assert difference(graph, executor) < 1e-4
    feeds = [tensors(random_feeds(graph.inputs, seed)) for seed in (1, 3)]
    assert check_batch(executor, feeds)
