"""Small networks to prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.data.base import Sample
from edgekit.graph import Graph, array
from edgekit.passes.edit import set_constant
from edgekit.passes.infer_shapes import infer_shapes

Array = np.ndarray[Any, Any]
SIZE = 8


class Given:
    """Samples held in memory."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
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

    def weight(*shape: int) -> Array:
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
    outputs: list[tuple[str, tuple[int, ...] | None]],
    arrays: dict[str, Array],
) -> Graph:
    def infos(specs: Sequence[tuple[str, tuple[int, ...] | None]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in specs]

    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "net", infos(inputs), infos(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _conv(name: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", inputs, [output], name=name, **attributes)


def random_feeds(count: int, seed: int = 0) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


def build(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], output: str, arrays: dict[str, Array]
) -> Graph:
    """A graph with one output, whose shape is inferred."""
    return make_graph(nodes, list(inputs.items()), [(output, None)], arrays)


def constant(graph: Graph, name: str) -> Array:
    found = array(graph.model.graph.initializers[name])
    assert found is not None
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds_for(graph: Graph, count: int = 20, seed: int = 5) -> list[dict[str, Array]]:
    return [{i.name: normal(seed + k, *i.shape) for i in graph.inputs} for k in range(count)]


def disturbed(graph: Graph, *names: str, seed: int = 9) -> Graph:
    """The same with noise on some weights."""
    result = graph.copy()
    for name in names:
        value = result.model.graph.initializers[name]
        old = array(value)
        assert old is not None
        set_constant(value, old + 0.3 * normal(seed, *old.shape))
    return result


def single(op: str, weight: Array, x: tuple[int, ...], *, bias: int = 0, **attributes: Any) -> Graph:
    """One node ``y = op(x, w, b)``."""
    arrays = {"w": weight} | ({"b": normal(2, bias)} if bias else {})
    node = helper.make_node(op, ["x", *arrays], ["y"], name="node", **attributes)
    return build([node], {"x": x}, "y", arrays)


LAYERS: dict[str, Graph] = {
    "plain": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5, pads=[1, 1, 1, 1]),
    "no padding": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5),
    "stride": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5, strides=[2, 1], pads=[1, 0, 1, 2]),
    "dilation": single(
        "Conv", normal(1, 5, 3, 3, 2), (1, 3, 9, 8), bias=5, dilations=[2, 3], pads=[2, 1, 0, 1]
    ),
    "grouped": single("Conv", normal(1, 6, 2, 3, 3), (1, 4, 9, 8), bias=6, group=2, pads=[1, 1, 1, 1]),
    "depthwise": single("Conv", normal(1, 4, 1, 3, 3), (1, 4, 9, 8), bias=4, group=4, pads=[1, 1, 1, 1]),
    "depthwise, twofold": single("Conv", normal(1, 8, 1, 3, 3), (1, 4, 9, 8), group=4),
    "one dimension": single("Conv", normal(1, 5, 3, 3), (1, 3, 40), bias=5, strides=[2], pads=[1, 1]),
    "three dimensions": single("Conv", normal(1, 2, 2, 2, 2, 2), (1, 2, 5, 6, 4), bias=2),
    "transposed": single("ConvTranspose", normal(1, 3, 5, 3, 3), (1, 3, 7, 6), bias=5, strides=[2, 2]),
    "transposed, padded": single(
        "ConvTranspose", normal(1, 3, 5, 4, 3), (1, 3, 7, 6), bias=5, strides=[2, 3], pads=[1, 0, 2, 1],
        dilations=[1, 2], output_padding=[1, 0],
    ),
    "transposed, depthwise": single(
        "ConvTranspose", normal(1, 4, 1, 2, 2), (1, 4, 6, 6), bias=4, strides=[2, 2], group=4
    ),
    "gemm": single("Gemm", normal(1, 5, 7), (1, 7), bias=5, transB=1),
    "gemm, not transposed": single("Gemm", normal(1, 7, 5), (1, 7), bias=5),
    "matmul": single("MatMul", normal(1, 7, 5), (1, 11, 7)),
}  # fmt: skip


def wide_then_narrow(redundant: bool) -> Graph:
    """x [1, 3, 8, 8] - conv to 8 - conv to 6 - conv to 4; when redundant, 8 channels span 4."""
    first = normal(1, 8, 3, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], name="first"),
        helper.make_node("Conv", ["p", "b"], ["q"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["q"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "c", "cb"], ["y"], name="third"),
    ]
    if redundant:  # three inputs and a constant span all eight channels
        first[4:] = np.tensordot(normal(8, 4, 4), first[:4], 1)
    arrays = {
        "a": first, "ab": normal(2, 8), "b": normal(3, 6, 8, 3, 3),
        "c": normal(4, 4, 6, 1, 1), "cb": normal(5, 4),
    }  # fmt: skip
    return build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)


def residual(op: str = "Relu") -> Graph:
    """y = f(conv1(x) + conv3(f(conv2(x))))."""
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], name="one"),
        helper.make_node("Conv", ["x", "b", "bb"], ["q"], name="two"),
        helper.make_node("Relu", ["q"], ["r"], name="act"),
        helper.make_node("Conv", ["r", "c", "cb"], ["s"], name="three"),
        helper.make_node("Add", ["p", "s"], ["t"], name="join"),
        helper.make_node(op, ["t"], ["y"], name="out"),
    ]
    arrays = {
        "a": normal(1, 4, 3, 1, 1), "ab": normal(2, 4), "b": normal(3, 64, 3, 1, 1), "bb": normal(4, 64),
        "c": normal(5, 4, 64, 1, 1) / 8, "cb": normal(6, 4),
    }  # fmt: skip
    return build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)


class Refitting:
    """What the tests of refitting build their networks with."""

    build = staticmethod(build)
    constant = staticmethod(constant)
    normal = staticmethod(normal)
    feeds_for = staticmethod(feeds_for)
    disturbed = staticmethod(disturbed)
    wide_then_narrow = staticmethod(wide_then_narrow)
    residual = staticmethod(residual)
    layers = LAYERS


@pytest.fixture
def nets() -> Refitting:
    return Refitting()


@pytest.fixture(params=LAYERS)
def one_layer(request: pytest.FixtureRequest) -> Graph:
    """A network of one layer; every kind of layer in turn."""
    return LAYERS[request.param]


@pytest.fixture
def net() -> Graph:
    return residual_net()


@pytest.fixture
def normed() -> Graph:
    """The same with a BatchNormalization behind the first convolution."""
    return residual_net(norm=True)


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    return random_feeds(12)


@pytest.fixture
def samples(feeds: list[dict[str, Array]]) -> Given:
    return Given(feeds)
