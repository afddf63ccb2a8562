"""Small graphs and their plain quantization, for the tests of quantization-aware training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import all_weight_scales
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.scheme import Format, OpRule, Scheme

Array = np.ndarray[Any, Any]

_SCHEME = Scheme(
    activation=Format.INT8,
    raised=Format.INT16,
    ops={
        "Conv": OpRule(weight_axis=0, fuses=("Relu", "Clip")),
        "MatMul": OpRule(weight_axis=-1, fuses=("Add",)),
        "Gemm": OpRule(weight_axis=0, fuses=("Relu",)),
        "Add": OpRule(fuses=("Relu",)),
        "Mul": OpRule(),
        "Sigmoid": OpRule(range=(0.0, 255 / 256), wide_range=(-1.0, 32767 / 32768)),
        "Softmax": OpRule(range=(0.0, 255 / 256), wide_range=(-1.0, 32767 / 32768)),
        "GlobalAveragePool": OpRule(),
    }
    | {op: OpRule(moves=True) for op in ("Concat", "MaxPool", "Reshape", "Transpose", "Flatten")},
)


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


def _samples(graph: Graph, count: int = 8, seed: int = 0) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    return [
        {i.name: random.standard_normal(i.shape).astype(np.float32) for i in graph.inputs}
        for _ in range(count)
    ]


def _quantization(
    graph: Graph,
    *,
    scheme: Scheme | None = None,
    raised: Sequence[str] = (),
    chosen: Mapping[str, tuple[float, float]] | None = None,
) -> Quantization:
    """By the largest values seen on eight samples; ``chosen`` overrides ranges."""
    scheme = scheme or _SCHEME
    plan = make_plan(graph, scheme, raised=raised)
    seen = observe(graph, unknown_ranges(graph, scheme, plan, {}), _samples(graph), threads=1)
    params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX, chosen=chosen or {}))
    return Quantization(graph, plan, params, scheme, all_weight_scales(graph, scheme))


@pytest.fixture(scope="session")
def build_graph() -> Callable[..., Graph]:
    return _build


@pytest.fixture(scope="session")
def make_feeds() -> Callable[..., list[dict[str, Array]]]:
    return _samples


@pytest.fixture(scope="session")
def quantization() -> Callable[..., Quantization]:
    return _quantization


@pytest.fixture(scope="session")
def integer_scheme() -> Scheme:
    return _SCHEME
