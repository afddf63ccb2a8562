"""A healthy small network, and one trouble at a time planted into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.explain.cause import Cause
from edgekit.explain.debug import Explanation, Setting, explain
from edgekit.explain.plain import finite_masks, quantize_plainly
from edgekit.graph import Graph
from edgekit.passes.name_nodes import name_nodes
from edgekit.quantize.scheme import Scheme
from edgekit.registry import load_target

Array = np.ndarray[Any, Any]

NET = """net (float[1,3,16,16] x) => (float[1,10] y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
    ra = Relu(a)
    d = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=16>(ra, w2, b2)
    s = Sigmoid(d)
    sd = Mul(d, s)
    l = Conv<kernel_shape=[1,1]>(sd, w3, b3)
    rl = Relu(l)
    r = Conv<kernel_shape=[1,1]>(sd, w4, b4)
    rr = Relu(r)
    j = Concat<axis=1>(rl, rr)
    g = Conv<kernel_shape=[1,1], group=24>(j, w7, b7)
    e = Conv<kernel_shape=[1,1]>(g, w5, b5)
    re = Relu(e)
    p = GlobalAveragePool(re)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w6, b6)
}"""


def _weights(seed: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {
        "w1": (16, 3, 3, 3),
        "w2": (16, 1, 3, 3),
        "w3": (12, 16, 1, 1),
        "w4": (12, 16, 1, 1),
        "w5": (24, 24, 1, 1),
        "w6": (10, 24),
        "w7": (24, 1, 1, 1),
    }
    found: dict[str, Array] = {}
    for name, shape in shapes.items():
        # Rows of equal length, so that no channel stands out by chance.
        rows = random.standard_normal((shape[0], int(np.prod(shape[1:]))))
        rows *= 1.2 / np.linalg.norm(rows, axis=1, keepdims=True)
        found[name] = rows.reshape(shape)
        found["b" + name[1:]] = 0.1 * random.standard_normal(shape[0])
    return found


def _build(weights: Mapping[str, Array], text: str = NET) -> Graph:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, data in weights.items():
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return name_nodes(Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))))


def _samples(count: int = 24, shape: Sequence[int] = (1, 3, 16, 16), seed: int = 1) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal(tuple(shape)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="session")
def scheme() -> Scheme:
    found = load_target("ort-cpu").scheme
    assert found is not None
    return found


@pytest.fixture
def weights() -> dict[str, Array]:
    return _weights()


@pytest.fixture
def net() -> Callable[..., Graph]:
    return _build


@pytest.fixture
def text() -> str:
    """The network in the text form of ONNX."""
    return NET


@pytest.fixture
def samples() -> Callable[..., list[dict[str, Array]]]:
    return _samples


@pytest.fixture
def setting(scheme: Scheme) -> Callable[..., Setting]:
    """``setting(graph, feeds, against=…, scheme=…)``."""

    def make(
        graph: Graph,
        feeds: Sequence[dict[str, Array]],
        *,
        against: Sequence[dict[str, Array]] = (),
        other: Scheme | None = None,
    ) -> Setting:
        original, _ = finite_masks(graph)
        quantized = quantize_plainly(original, other or scheme, feeds, {}, threads=1)
        looked_at = list(against or feeds)
        names = tuple(f"sample {i}" for i in range(len(looked_at)))
        return Setting(quantized, original, looked_at, names, looked_at[1::4], bool(against), 1)

    return make


@pytest.fixture
def explained(setting: Callable[..., Setting]) -> Callable[..., Explanation]:
    def run(*args: Any, **options: Any) -> Explanation:
        return explain(setting(*args, **options))

    return run


@pytest.fixture
def causes() -> Callable[[Explanation], list[Cause]]:
    return lambda found: [f.cause for f in found.findings]
