"""Small graphs for the tests of quantization, and what they compute, worked out the slow way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph
from edgekit.quantize.plan import Plan, data_inputs
from edgekit.quantize.qparams import QParams
from edgekit.quantize.scheme import Scheme
from edgekit.registry import load_target
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


def _build(text: str, constants: Mapping[str, Any] | None = None) -> Graph:
    """A graph from the text form of ONNX, without its header; each node is called like its first output."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, data in (constants or {}).items():
        data = np.asarray(data)
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    for node in model.graph.node:
        node.name = f"{node.output[0]}.node"
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))


def _samples(graph: Graph, count: int = 4, seed: int = 0) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    return [
        {i.name: random.standard_normal(i.shape).astype(np.float32) for i in graph.inputs}
        for _ in range(count)
    ]


def _values(graph: Graph, feeds: Sequence[Feeds]) -> dict[str, Array]:
    """Every float tensor of the graph, stacked over the samples; nothing optimized."""
    names = [n for n, v in graph.values().items() if v.dtype == ir.DataType.FLOAT and not v.is_initializer()]
    computed = [n for n in names if not graph.values()[n].is_graph_input()]
    runner = open_runner(graph, threads=1, optimize=False, extra_outputs=computed)
    found = [{**feed, **runner.run(feed)} for feed in feeds]
    return {n: np.stack([f[n] for f in found]) for n in names}


def _fake_quantized(values: Array, params: QParams) -> Array:
    low, high = params.format.limits
    codes = np.clip(np.rint(values.astype(np.float64) / params.scale) + params.zero_point, low, high)
    return np.asarray((codes - params.zero_point) * params.scale, np.float32)


def _reference(
    graph: Graph, plan: Plan, params: Mapping[str, QParams], weights: Mapping[str, Array], feed: Feeds
) -> dict[str, Array]:
    """What the quantized graph should compute: one node after the other in float, on rounded tensors.

    ``weights`` are the rounded constants. An integer node reads rounded tensors; a float node reads the float
    tensor where there is one, that is, where no integer node writes it.
    """
    plain: dict[str, Array] = {n: np.asarray(v) for n, v in feed.items()}
    rounded = {n: _fake_quantized(v, params[n]) for n, v in plain.items() if n in params}
    for value in graph.model.graph.initializers.values():
        assert value.const_value is not None
        plain[str(value.name)] = weights.get(str(value.name), value.const_value.numpy())
    for node in graph.nodes:
        integer = str(node.name) in plan.integer_nodes
        read = {str(v.name): plain[str(v.name)] for v in node.inputs if v is not None}
        if integer:
            given = {str(v.name) for v in data_inputs(node)}
            read |= {n: rounded[n] for n in read if n in rounded and n in given}
        for name, result in _run_node(node, read).items():
            plain[name] = result
            if name in params:
                rounded[name] = _fake_quantized(result, params[name])
                plain[name] = rounded[name] if integer else result
    return plain


def _run_node(node: ir.Node, read: Mapping[str, Array]) -> dict[str, Array]:
    proto = ir.to_proto(node)
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in read.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
    model = helper.make_model(
        helper.make_graph([proto], "one", inputs, outputs), opset_imports=[helper.make_opsetid("", 21)]
    )
    model.ir_version = 10
    return open_runner(model.SerializeToString(), threads=1, optimize=False).run(read)


def _random_net(seed: int) -> Graph:
    """Convolutions, activations, joins and, at times, matrix products behind them, drawn by ``seed``."""
    return _RandomNet(seed).build()


class _RandomNet:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {
            "zero": np.float32(0),
            "six": np.float32(6),
            "minus": np.float32(-1),
        }
        self.size = int(self.random.choice([1, 5, 8]))
        self.channels = int(self.random.choice([3, 4, 16]))
        self.first = self.channels
        self.last = "x"
        self.same = ["x"]  # tensors of the shape of the last one

    def build(self) -> Graph:
        entry = self.size
        self.conv()
        for _ in range(int(self.random.integers(2, 7))):
            getattr(
                self, self.random.choice(["conv", "relu", "clip", "cut", "silu", "add", "concat", "pool"])
            )()
        rank = int(self.random.integers(2, 5))
        if rank == 4:
            self.conv(32)
        else:
            self.flatten(rank)
        text = "\n".join(self.lines)
        shape = f"float[1,{self.first},{entry},{entry}]"
        used = {k: v for k, v in self.constants.items() if k in text}
        return _build(f"g ({shape} x) => (float[{','.join('abcd'[:rank])}] {self.last}) {{ {text} }}", used)

    def add_line(self, right: str) -> str:
        self.last = f"t{len(self.lines)}"
        self.lines.append(f"{self.last} = {right}")
        return self.last

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return name

    def conv(self, out: int = 0) -> None:
        kernel, group = int(self.random.choice([1, 3])), 1
        if not out:
            out = int(self.random.choice([2, 7, 16]))
        elif self.random.random() < 0.2:
            group = out = self.channels
        weight = self.weight(out, self.channels // group, kernel, kernel)
        bias = f", {self.weight(out)}" if self.random.random() < 0.5 else ""
        pad = kernel // 2
        self.add_line(f"Conv <group={group}, pads=[{pad},{pad},{pad},{pad}]> ({self.last}, {weight}{bias})")
        self.channels, self.same = out, [self.last]

    def keep(self, right: str) -> None:
        self.same.append(self.add_line(right))

    def relu(self) -> None:
        self.keep(f"Relu({self.last})")

    def clip(self) -> None:
        self.keep(f"Clip({self.last}, zero, six)")

    def cut(self) -> None:
        self.keep(f"Clip({self.last}, minus, six)")

    def silu(self) -> None:
        source = self.last
        gate = self.add_line(f"Sigmoid({source})")
        self.keep(f"Mul({source}, {gate})")

    def add(self) -> None:
        self.keep(f"Add({self.last}, {self.random.choice(self.same)})")

    def concat(self) -> None:
        other = str(self.random.choice(self.same))
        self.add_line(f"Concat <axis=1> ({self.last}, {other})")
        self.channels, self.same = 2 * self.channels, [self.last]

    def pool(self) -> None:
        if self.size >= 4:
            self.add_line(f"MaxPool <kernel_shape=[2,2], strides=[2,2]> ({self.last})")
            self.size, self.same = self.size // 2, [self.last]

    def flatten(self, rank: int) -> None:
        shape = [1, self.channels, self.size**2] if rank == 3 else [1, self.channels * self.size**2]
        self.constants["shape"] = np.array(shape, np.int64)
        self.add_line(f"Reshape({self.last}, shape)")
        self.add_line(f"MatMul({self.last}, {self.weight(shape[-1], 70)})")


@pytest.fixture(scope="session")
def build() -> Callable[..., Graph]:
    return _build


@pytest.fixture(scope="session")
def samples() -> Callable[..., list[dict[str, Array]]]:
    """Seeded samples of standard normal values for a graph's inputs: ``samples(graph, count, seed)``."""
    return _samples


@pytest.fixture(scope="session")
def values() -> Callable[..., dict[str, Array]]:
    """Every float tensor, stacked over the samples: ``values(graph, feeds)``."""
    return _values


@pytest.fixture(scope="session")
def reference() -> Callable[..., dict[str, Array]]:
    """What a quantized graph should compute: ``reference(graph, plan, params, weights, feed)``."""
    return _reference


@pytest.fixture(scope="session")
def random_net() -> Callable[[int], Graph]:
    return _random_net


@pytest.fixture(scope="session")
def scheme() -> Scheme:
    """The number formats of ONNX Runtime's CPU provider."""
    found = load_target("ort-cpu").scheme
    assert found is not None
    return found
