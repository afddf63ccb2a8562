"""Small networks, their int8 form, and a comparison of what ONNX Runtime and LiteRT make of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgekit.graph import Graph
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.scheme import Format, Scheme
from edgekit.session import open_runner
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.lower.lower import Lowered, lower
from edgekit.tflite.split import split
from edgekit.tflite.write import write_model

Array = np.ndarray[Any, Any]

_MOVES = (
    *("Concat", "AveragePool", "MaxPool", "GlobalMaxPool", "Resize", "Reshape", "Transpose", "Flatten"),
    *("Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Pad", "Expand"),
)
_PLAIN = (
    *("Mul", "Sub", "LeakyRelu", "PRelu", "HardSwish", "Relu", "Clip", "GlobalAveragePool", "ReduceMean"),
    *("Gelu", "Max", "Min", "Pow", "Div", "Sqrt", "Reciprocal", "Neg"),
)
SCHEME = Scheme.model_validate(
    {
        "activation": "int8",
        "ops": {
            "Conv": {"weight_axis": 0, "fuses": ["Relu", "Clip"]},
            "ConvTranspose": {"weight_axis": 1},
            "MatMul": {"weight_axis": -1},
            "Gemm": {"weight_axis": 0},
            "Add": {"fuses": ["Relu", "Clip"]},
            "Sigmoid": {"range": [0.0, 0.99609375]},
            "Softmax": {"range": [0.0, 0.99609375]},
            "Tanh": {"range": [-1.0, 0.9921875]},
            **{op: {} for op in _PLAIN},
            **{op: {"moves": True} for op in _MOVES},
        },
    }
)


@dataclass
class Net:
    """A network that is written down node by node."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, *shape: int, name: str = "x", kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, values: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def op(self, kind: str, *inputs: str, n: int = 1, **attributes: Any) -> Any:
        """Add a node; its output, or a list of them for ``n`` > 1."""
        label = f"{kind}_{len(self.nodes)}"
        outputs = [f"{label}_out{i}" if n > 1 else f"{label}_out" for i in range(n)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=label, **attributes))
        return outputs if n > 1 else outputs[0]

    def conv(self, x: str, inner: int, outer: int, kernel: Sequence[int] = (3, 3), **attributes: Any) -> str:
        group = attributes.get("group", 1)
        weight = self.rng.normal(0, 1, (outer, inner // group, *kernel)) / np.sqrt(
            np.prod(kernel) * inner / group
        )
        bias = self.rng.normal(0, 0.3, outer)
        return str(self.op("Conv", x, self.const(weight), self.const(bias), **attributes))

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def graph(self, *outputs: str) -> Graph:
        """The network; outputs may also be nodes' results that other nodes read."""
        made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        body = helper.make_graph(self.nodes, "net", self.inputs, made, self.constants)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return Graph(ir.from_proto(shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)))


@dataclass
class Agreement:
    """What came out.

    Attributes:
        lowered: The TFLite model.
        steps: Largest difference of codes over all outputs, relative to the largest magnitude for floats.
        counts: Operators.
    """

    lowered: Lowered
    steps: float
    counts: dict[str, int]


def feeds_of(graph: Graph, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.normal(0, 1, spec.shape).astype(np.float32)
        if spec.dtype == np.float32
        else rng.integers(0, 5, spec.shape).astype(spec.dtype)
        for spec in graph.inputs
    }


def to_int8(graph: Graph, *, tail: bool = False, scheme: Scheme = SCHEME) -> Graph:
    """The QDQ form, with the ranges of one random sample.

    Args:
        graph: A float graph.
        tail: Let the arithmetic before the outputs stay in float, as quantization does; else a convolution of
            no effect is put behind each output, so that everything before it is quantized.
        scheme: Number formats.
    """
    plan = make_plan(graph, scheme)
    seen = open_runner(graph, threads=1, extra_outputs=plan.tensors).run(feeds_of(graph))
    seen.update(feeds_of(graph))
    ranges: dict[str, tuple[float, float]] = {}
    values = graph.values()
    for tensor in plan.tensors:
        node = values[tensor].producer()
        rule = None if node is None else scheme.ops.get(node.op_type)
        low, high = float(seen[tensor].min()), float(seen[tensor].max())
        if rule is not None and rule.range is not None:
            low, high = rule.range
        group = plan.groups[tensor]
        known = ranges.get(group, (low, high))
        ranges[group] = (min(low, known[0]), max(high, known[1]))
    params: dict[str, QParams] = {
        t: activation_params(*ranges[plan.groups[t]], Format(scheme.activation)) for t in plan.tensors
    }
    return insert_qdq(graph, plan, params, scheme)


def compare(
    graph: Graph,
    *,
    kernels: Kernels = Kernels.REFERENCE,
    io: str = "quantized",
    avoid: Collection[str] = (),
) -> Agreement:
    """Lower a float or QDQ graph and run it beside ONNX Runtime."""
    parts = split(graph)
    lowered = lower(parts.body, io=io, avoid=avoid)  # type: ignore[arg-type]
    feeds = feeds_of(graph)
    if parts.front is not None:
        given = {s.name: feeds[s.name] for s in parts.front.inputs}
        feeds.update(open_runner(parts.front, threads=1, optimize=False).run(given))
    stored = {
        b.name: np.ascontiguousarray(_codes(feeds[b.name], b).transpose(b.axes)) for b in lowered.inputs
    }
    outputs = LiteRt(write_model(lowered.model), kernels).run(stored)
    names = [b.name for b in lowered.outputs]
    given = {s.name: feeds[s.name] for s in graph.inputs}
    runner = open_runner(graph, threads=1, optimize=False, integer=False, extra_outputs=names)
    wanted, steps = runner.run(given), 0.0
    for b in lowered.outputs:
        made = outputs[b.name].transpose(np.argsort(b.axes)).reshape(b.logical)
        expected = _codes(wanted[b.name], b)
        assert made.shape == expected.shape
        gap = np.abs(made.astype(np.float64) - expected.astype(np.float64)).max()
        if b.scale is None and made.dtype == np.float32:
            gap /= max(1e-6, float(np.abs(expected).max()))
        steps = max(steps, float(gap))
    return Agreement(lowered, steps, lowered.model.counts())


def _codes(values: Array, binding: Any) -> Array:
    if binding.scale is None:
        return values.astype(binding.dtype.value)
    info = np.iinfo(binding.dtype.value)
    codes = np.round(values / np.float32(binding.scale)) + binding.zero_point
    return np.asarray(np.clip(codes, info.min, info.max), binding.dtype.value)


@pytest.fixture
def net() -> Callable[..., Net]:
    return Net


@pytest.fixture
def int8() -> Callable[..., Graph]:
    return to_int8


@pytest.fixture
def agree() -> Callable[..., Agreement]:
    return compare
