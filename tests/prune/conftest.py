"""Small networks to prune."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.data.base import Sample
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes

SIZE = 8


class Given:
    """Samples held in memory."""

    def __init__(self, feeds: list[dict[str, np.ndarray[Any, Any]]]) -> None:
        self.feeds = feeds
        self.count = len(feeds)

    def __iter__(self) -> Iterator[Sample]:
        return iter(Sample(str(i), feed) for i, feed in enumerate(self.feeds))


def residual_net(widths: tuple[int, int] = (16, 24), classes: int = 5, norm: bool = False) -> Graph:
    """conv - relu - [conv - relu - depthwise - conv + x] - relu - conv - concat(both) - pool - gemm.

    Input ``x`` [1, 3, 8, 8], output ``y`` [1, classes]; with ``norm`` a BatchNormalization behind the stem.
    """
    a, b = widths
    random = np.random.default_rng(3)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return np.asarray(values, np.float32)

    arrays = {
        "stem.weight": weight(a, 3, 3, 3), "stem.bias": weight(a, 1)[:, 0],
        "inner.weight": weight(b, a, 1, 1), "inner.bias": weight(b, 1)[:, 0],
        "deep.weight": weight(b, 1, 3, 3), "deep.bias": weight(b, 1)[:, 0],
        "back.weight": weight(a, b, 1, 1), "side.weight": weight(b, a, 3, 3),
        "head.weight": weight(classes, a + b), "head.bias": weight(classes, 1)[:, 0],
    }  # fmt: skip
    first = [_conv("stem", ["x", "stem.weight", "stem.bias"], "s0" if norm else "s", pads=[1, 1, 1, 1])]
    if norm:
        arrays |= {f"bn.{k}": np.abs(weight(a, 1)[:, 0]) + 0.5 for k in ("scale", "var")}
        arrays |= {f"bn.{k}": weight(a, 1)[:, 0] for k in ("bias", "mean")}
        order = ["bn.scale", "bn.bias", "bn.mean", "bn.var"]
        first.append(helper.make_node("BatchNormalization", ["s0", *order], ["s"], name="bn"))
    nodes = [
        *first,
        helper.make_node("Relu", ["s"], ["sr"], name="stem_relu"),
        _conv("inner", ["sr", "inner.weight", "inner.bias"], "i"),
        helper.make_node("Relu", ["i"], ["ir"], name="inner_relu"),
        _conv("deep", ["ir", "deep.weight", "deep.bias"], "d", pads=[1, 1, 1, 1], group=b),
        _conv("back", ["d", "back.weight"], "k"),
        helper.make_node("Add", ["sr", "k"], ["j"], name="join"),
        helper.make_node("Relu", ["j"], ["jr"], name="join_relu"),
        _conv("side", ["jr", "side.weight"], "e", pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["jr", "e"], ["c"], name="both", axis=1),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["y"], name="head", transB=1),
    ]
    return make_graph(nodes, [("x", (1, 3, SIZE, SIZE))], [("y", (1, classes))], arrays)


def make_graph(
    nodes: list[Any],
    inputs: list[tuple[str, tuple[int, ...]]],
    outputs: list[tuple[str, tuple[int, ...]]],
    arrays: dict[str, np.ndarray[Any, Any]],
) -> Graph:
    def infos(specs: list[tuple[str, tuple[int, ...]]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in specs]

    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "net", infos(inputs), infos(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _conv(name: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", inputs, [output], name=name, **attributes)


def random_feeds(count: int, seed: int = 0) -> list[dict[str, np.ndarray[Any, Any]]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def net() -> Graph:
    return residual_net()


@pytest.fixture
def normed() -> Graph:
    """The same with a BatchNormalization behind the first convolution."""
    return residual_net(norm=True)


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray[Any, Any]]]:
    return random_feeds(12)


@pytest.fixture
def samples(feeds: list[dict[str, np.ndarray[Any, Any]]]) -> Given:
    return Given(feeds)
