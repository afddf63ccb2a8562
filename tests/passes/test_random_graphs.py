"""Random small networks of any opset, through every pass and the whole line."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.capture import clean
from edgekit.graph import OPSET, Graph
from edgekit.passes.edit import static_shape
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.remove_identities import remove_identities
from edgekit.passes.remove_unused import remove_unused
from edgekit.passes.upgrade_opset import upgrade_opset
from edgekit.passes.verify import max_difference, random_feeds
from edgekit.session import open_runner

PASSES = [
    fold_constants,
    upgrade_opset,
    remove_identities,
    fold_batchnorm,
    remove_unused,
    name_nodes,
    infer_shapes,
]
LAYERS = [
    "Conv", "BatchNormalization", "Relu", "Concat", "Add", "Softmax", "Dropout", "Identity", "MaxPool",
    "Squeeze", "ReduceMean", "Scale", "Flatten", "Split", "ShapeChain", "Dead",
]  # fmt: skip


class _Builder:
    """Appends layers to a network whose main tensor is always (1, channels, height, width)."""

    def __init__(self, opset: int, seed: int) -> None:
        self.opset, self.random = opset, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape, self.last, self.earlier = (3, 8, 8), "x", [("x", (3, 8, 8))]

    def weight(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def floats(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.weight(self.random.uniform(low, high, shape).astype(np.float32))

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        named = {} if len(self.nodes) % 3 else {"name": f"node{len(self.nodes)}"}
        self.nodes.append(onnx.helper.make_node(op, inputs, names, **named, **attributes))
        return names

    def axes(self, op: str, value: str, axes: list[int], since: int, **attributes: Any) -> str:
        """An operator whose axes became an input in opset ``since``."""
        if self.opset < since:
            return self.node(op, [value], axes=axes, **attributes)[0]
        return self.node(op, [value, self.weight(np.array(axes, np.int64))], **attributes)[0]

    def add(self, layer: str) -> None:
        c, h, w = self.shape
        if layer == "Conv":
            groups = c if c % 2 and self.random.random() < 0.5 else 1
            out = c if groups > 1 else int(self.random.integers(1, 6))
            bias = [self.floats(out)] if self.random.random() < 0.5 else []
            (name,) = self.node(
                "Conv", [self.last, self.floats(out, c // groups, 3, 3), *bias], pads=[1] * 4, group=groups
            )
            self.take(name, (out, h, w))
        elif layer == "BatchNormalization":
            stats = [self.floats(c), self.floats(c), self.floats(c), self.floats(c, low=0.1, high=2)]
            self.take(self.node(layer, [self.last, *stats])[0], self.shape)
        elif layer in ("Relu", "Identity"):
            self.take(self.node(layer, [self.last])[0], self.shape)
        elif layer == "Dropout":
            old: dict[str, Any] = {"ratio": 0.3} if self.opset < 12 else {}
            self.take(self.node(layer, [self.last], **old)[0], self.shape)
        elif layer == "Softmax":
            axis = int(self.random.integers(1, 4))
            self.take(self.node(layer, [self.last], axis=axis)[0], self.shape)
        elif layer == "Concat":
            others = [(n, s) for n, s in self.earlier if s[1:] == (h, w)]
            name, shape = others[int(self.random.integers(len(others)))]
            if shape[0] + c <= 12:
                self.take(self.node("Concat", [self.last, name], axis=1)[0], (c + shape[0], h, w))
        elif layer == "Add":
            others = [(n, s) for n, s in self.earlier if s == self.shape]
            if others:
                self.take(self.node("Add", [self.last, others[0][0]])[0], self.shape)
        elif layer == "MaxPool" and min(h, w) > 1:
            (name,) = self.node("MaxPool", [self.last], kernel_shape=[2, 2], strides=[2, 2])
            self.take(name, (c, h // 2, w // 2))
        elif layer == "Squeeze":
            name = self.axes("Squeeze", self.last, [0], 13)
            self.take(self.axes("Unsqueeze", name, [0], 13), self.shape)
        elif layer == "ReduceMean":
            mean = self.axes("ReduceMean", self.last, [2, 3], 18, keepdims=1)
            self.take(self.node("Sub", [self.last, mean])[0], self.shape)
        elif layer == "Scale":
            (factor,) = self.node("Add", [self.floats(c, 1, 1), self.floats(1)])
            self.take(self.node("Mul", [self.last, factor])[0], self.shape)
        elif layer == "Split" and c % 2 == 0:
            count: dict[str, Any] = {"num_outputs": 2} if self.opset >= 18 else {}
            a, b = self.node("Split", [self.last], 2, axis=1, **count)
            self.take(self.node("Concat", [b, a], axis=1)[0], self.shape)
        elif layer in ("Flatten", "ShapeChain"):
            self.reshape_and_back(layer)
        elif layer == "Dead":
            self.node("Neg", [self.last])

    def reshape_and_back(self, layer: str) -> None:
        (shape,) = self.node("Shape", [self.last])
        if layer == "Flatten":
            (flat,) = self.node("Flatten", [self.last])
        else:
            (batch,) = self.node("Gather", [shape, self.weight(np.array([0], np.int64))])
            (to,) = self.node("Concat", [batch, self.weight(np.array([-1], np.int64))], axis=0)
            (flat,) = self.node("Reshape", [self.last, to])
        self.take(self.node("Reshape", [flat, shape])[0], self.shape)

    def take(self, name: str, shape: tuple[int, int, int]) -> None:
        self.last, self.shape = name, shape
        self.earlier.append((name, shape))

    def graph(self, batch: int | str = 1) -> Graph:
        (self.last,) = self.node("Neg", [self.last])
        extra = self.earlier[len(self.earlier) // 2][0]
        outputs = [self.last] if extra == "x" else [self.last, extra]
        info = onnx.helper.make_tensor_value_info
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                self.nodes,
                "random",
                [info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
                [info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
                self.weights,
            ),
            opset_imports=[onnx.helper.make_opsetid("", self.opset)],
            ir_version=8,
        )
        return Graph(ir.from_proto(model))


networks = st.tuples(
    st.integers(11, OPSET), st.lists(st.sampled_from(LAYERS), min_size=1, max_size=9), st.integers(0, 2**16)
)


def _build(network: tuple[int, list[str], int], batch: int | str = 1) -> Graph:
    opset, layers, seed = network
    builder = _Builder(opset, seed)
    for layer in layers:
        builder.add(layer)
    return builder.graph(batch)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(networks)
def test_each_pass_keeps_the_result_and_its_input(network: tuple[int, list[str], int]) -> None:
    graph = infer_shapes(_build(network))
    for run in PASSES:
        before = graph.to_bytes()
        after = run(graph)
        assert graph.to_bytes() == before, f"{run.__name__} changed its input"
        assert len(after.history) == len(graph.history) + 1
        assert max_difference(graph, after) < 1e-4, run.__name__
        graph = after


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(networks)
def test_the_whole_line_keeps_the_result_and_leaves_nothing_open(network: tuple[int, list[str], int]) -> None:
    original = _build(network, batch="N")
    graph = clean(original)
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    assert all(static_shape(value) is not None for value in graph.values().values())
    names = [node.name for node in graph.nodes]
    assert all(names)
    assert len(set(names)) == len(names)
    ops = {node.op_type for node in graph.nodes}
    assert not ops & {"Shape", "Gather", "Constant", "Dropout"}
    feeds = random_feeds(graph.inputs, seed=3)
    expected = open_runner(original, threads=1).run(feeds)
    found = open_runner(graph, threads=1).run(feeds)
    assert list(expected) == list(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, rtol=1e-4)
