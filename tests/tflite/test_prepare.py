"""The float network before quantization: only operators that TFLite has integer kernels for, same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgekit.tflite.lower.lower  # noqa: F401  (fills the registry)
from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.quantize import Options, quantize
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.tflite.lower.registry import LOWERINGS
from edgekit.tflite.package import write_package
from edgekit.tflite.prepare import prepare

IMAGE, TOKENS = "float[1,3,8,8] x", "float[1,6,16] x"
SILU = "ag = Sigmoid(a) as = Mul(a, ag)"
PLAIN = {
    "relu": ("a = Conv(x, w) b = Relu(a) y = Conv(b, u)", IMAGE),
    "silu": (f"a = Conv(x, w) {SILU} y = Conv(as, u)", IMAGE),
    "classifier": (
        "a = Conv(x, w) b = Clip(a, zero, six) c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)"
        " p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, linear)",
        IMAGE,
    ),
    "residual": ("a = Conv(x, w) b = Relu(a) c = Conv(b, u) r = Conv(b, u) y = Add(c, r)", IMAGE),
}
NORM = """m = ReduceMean(h, last) d = Sub(h, m) q = Pow(d, two) v = ReduceMean(q, last) e = Add(v, epsilon)
    s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) t = Add(g, beta)"""
GELU = "e = Div(h, root2) f = Erf(e) p = Add(f, one) m = Mul(h, p) t = Mul(m, half)"
MADE = {
    "layer norm": "h = MatMul(x, m1) t = LayerNormalization <axis=-1> (h, gamma, beta) y = MatMul(t, m2)",
    "layer norm, spelled out": f"h = MatMul(x, m1) {NORM} y = MatMul(t, m2)",
    "gelu, spelled out": f"h = MatMul(x, m1) {GELU} y = MatMul(t, m2)",
    "hard swish, spelled out": (
        "h = MatMul(x, m1) e = Add(h, three) f = Clip(e, zero, six) p = Div(f, six) t = Mul(h, p)"
        " y = MatMul(t, m2)"
    ),
    "hard sigmoid": "h = MatMul(x, m1) t = HardSigmoid <alpha=0.166667, beta=0.5> (h) y = MatMul(t, m2)",
    "block": f"""h = MatMul(x, m1) {NORM} k = MatMul(t, m2) l = Add(k, x)
        o = MatMul(l, m3) e1 = Div(o, root2) f1 = Erf(e1) p1 = Add(f1, one) r1 = Mul(o, p1) z1 = Mul(r1, half)
        y = MatMul(z1, m4)""",
}
NUMBERS = {
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "root2": 2**0.5,
    "epsilon": 1e-5,
}
SHAPES = {"w": (8, 3, 3, 3), "u": (8, 8, 3, 3), "linear": (8, 5)}


def build(lines: str, inputs: str) -> Graph:
    rng = np.random.default_rng(0)
    outputs = (
        "float[a,b] y" if "Gemm" in lines else "float[a,b,c,d] y" if "Conv" in lines else "float[a,b,c] y"
    )
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {lines} }}'
    model = onnx.parser.parse_model(text)
    arrays: dict[str, Any] = {name: np.float32(value) for name, value in NUMBERS.items()}
    arrays |= {name: rng.normal(size=shape) / 3 for name, shape in SHAPES.items()}
    arrays |= {f"m{i}": rng.normal(size=(16, 16)) / 4 for i in range(1, 5)}
    arrays |= {"gamma": 1 + rng.normal(size=16) / 4, "beta": rng.normal(size=16) / 4}
    used = {name for node in model.graph.node for name in node.input}
    for name, values in arrays.items():
        if name in used:
            tensor = onnx.numpy_helper.from_array(np.asarray(values, np.float32), name)
            model.graph.initializer.append(tensor)
    if "last" in used:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return infer_shapes(Graph(ir.from_proto(model)))


def samples(graph: Graph) -> list[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    return [{s.name: rng.normal(size=s.shape).astype(np.float32) for s in graph.inputs} for _ in range(4)]


def ops(graph: Graph) -> set[str]:
    return {node.op_type for node in graph.nodes}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_network_is_returned_as_the_very_same_object(name: str) -> None:
    graph = build(*PLAIN[name])
    assert prepare(graph) is graph
    for target in ("litert", "ethos-u", "tflm"):
        assert load_target(target).prepare(graph) is graph  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MADE)
def test_operators_are_taken_apart_and_outputs_stay(name: str) -> None:
    graph = build(MADE[name], TOKENS)
    before = graph.sha256()
    prepared = prepare(graph)
    assert graph.sha256() == before, "the graph that was given stays as it is"
    assert ops(prepared) - {"Reciprocal"} <= set(LOWERINGS)
    roots = [n.inputs[0].producer() for n in prepared.nodes if n.op_type == "Reciprocal"]  # type: ignore[union-attr]
    assert all(root is not None and root.op_type == "Sqrt" for root in roots), "RSQRT is one operator"
    assert not {"Erf", "Pow", "LayerNormalization", "HardSigmoid"} & ops(prepared)
    assert (prepared.inputs, prepared.outputs) == (graph.inputs, graph.outputs)
    for feed in samples(graph):
        expected = open_runner(graph, threads=1, optimize=False).run(feed)["y"]
        got = open_runner(prepared, threads=1, optimize=False).run(feed)["y"]
        np.testing.assert_allclose(got, expected, atol=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", MADE)
def test_every_change_is_in_the_history_and_a_second_time_changes_nothing(name: str) -> None:
    graph = build(MADE[name], TOKENS)
    prepared = prepare(graph)
    assert prepared is not graph
    assert prepared.history[: len(graph.history)] == graph.history
    assert len(prepared.history) > len(graph.history)
    assert prepare(prepared) is prepared
    values = [v for node in prepared.nodes for v in node.outputs if v.name]
    assert all(v.shape is not None and v.shape.is_static() and v.dtype is not None for v in values)


@pytest.mark.parametrize("target", ["litert", "ethos-u", "tflm"])
def test_what_is_prepared_has_integer_kernels_all_the_way(tmp_path: Path, target: str) -> None:
    """Without float in between: quantized, lowered, and close to what the float network computes."""
    pytest.importorskip("ai_edge_litert")
    from edgekit.tflite.interpreter import Kernels
    from edgekit.tflite.package import open_package

    graph = build(MADE["block"], TOKENS)
    prepared = prepare(graph)
    scheme = load_target(target).scheme
    assert scheme is not None
    feeds = samples(graph)
    options = Options(calibrator="minmax", max_raised=0, correct_biases=False)
    made = quantize(prepared, scheme, lambda: feeds, options, threads=1).graph
    package = write_package(made, "net", tmp_path)
    assert {t.dtype.value for t in package.model.tensors.values()} <= {"int8", "int32"}
    assert {"RSQRT", "GELU", "FULLY_CONNECTED"} <= set(package.model.counts())
    runner = open_package(package.path, kernels=Kernels.REFERENCE)
    exact = open_runner(made, threads=1, optimize=False)
    wanted = open_runner(graph, threads=1, optimize=False)
    for feed in feeds:
        found, step = runner.run(feed)["y"], package.io.outputs[0].scale
        assert step is not None
        assert np.abs(found - exact.run(feed)["y"]).max() <= 6.01 * step
        expected = wanted.run(feed)["y"]
        assert np.sqrt(np.mean((found - expected) ** 2)) < 0.2 * expected.std()


@pytest.mark.parametrize("name", ["layer norm", "gelu, spelled out"])
def test_without_it_the_network_cannot_be_written(tmp_path: Path, name: str) -> None:
    """What the rewrites are for: quantized as it is, the network has float nodes between integer ones."""
    graph = build(MADE[name], TOKENS)
    scheme = load_target("ethos-u").scheme
    assert scheme is not None
    options = Options(calibrator="minmax", max_raised=0, correct_biases=False)
    made = quantize(graph, scheme, lambda: samples(graph), options, threads=1).graph
    with pytest.raises(ModelError, match=r"LayerNormalization|Erf"):
        write_package(made, "net", tmp_path)
    assert list(tmp_path.iterdir()) == []
