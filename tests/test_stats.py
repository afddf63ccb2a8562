from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.stats import count


def _graph(text: Any, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 21]> {text}')
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return infer_shapes(Graph(ir.from_proto(model)))


def _floats(*shape: Any) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "weights", "macs"),
    [
        # 6x6 outputs x 8 channels x 3x3x4 each, batch 2
        (
            "g (float[2,4,8,8] x) => (float[2,8,6,6] y) { y = Conv(x, w) }",
            {"w": _floats(8, 4, 3, 3)},
            2 * 36 * 8 * 36,
        ),
        (
            "g (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv<group=4>(x, w) }",
            {"w": _floats(4, 1, 3, 3)},
            36 * 4 * 9,
        ),
        # each of 4x3x3 inputs meets 2x2x5 weights; with 2 groups half the outputs
        (
            "g (float[1,4,3,3] x) => (float[1,5,6,6] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
            {"w": _floats(4, 5, 2, 2)},
            36 * 20,
        ),
        (
            "g (float[1,4,3,3] x) => (float[1,6,4,4] y) { y = ConvTranspose<group=2>(x, w) }",
            {"w": _floats(4, 3, 2, 2)},
            36 * 12,
        ),
        ("g (float[2,3] x) => (float[2,5] y) { y = Gemm<transB=1>(x, w) }", {"w": _floats(5, 3)}, 30),
        ("g (float[3,2] x) => (float[2,5] y) { y = Gemm<transA=1>(x, w) }", {"w": _floats(3, 5)}, 30),
        ("g (float[2,7,3] x) => (float[2,7,5] y) { y = MatMul(x, w) }", {"w": _floats(3, 5)}, 2 * 7 * 3 * 5),
        ("g (float[2,7,3] x, float[2,3,7] z) => (float[2,7,7] y) { y = MatMul(x, z) }", {}, 2 * 7 * 7 * 3),
        ("g (float[3] x) => (float[5] y) { y = MatMul(x, w) }", {"w": _floats(3, 5)}, 15),
        ("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", {}, 0),
    ],
)
def test_multiply_accumulates(text: Any, weights: Any, macs: Any) -> None:
    stats = count(_graph(text, **weights))
    assert stats.macs == macs
    assert stats.per_node[0].macs == macs


def test_a_whole_model() -> None:
    graph = _graph(
        """g (float[1,3,4,4] x) => (float[1,10] y) {
            [c] a = Conv(x, w, b) [r] h = Relu(a) [f] s = Reshape(h, to) [g1] t = Gemm(s, k)
            [g2] u = Gemm(t, k2) [g3] y = Gemm(u, k2) }""",
        w=_floats(2, 3, 3, 3), b=_floats(2), to=np.array([1, -1], np.int64),
        k=_floats(8, 10), k2=_floats(10, 10),
    )  # fmt: skip
    stats = count(graph)
    assert stats.parameters == 54 + 2 + 80 + 100
    assert stats.size_bytes == 4 * stats.parameters + 2 * 8
    assert stats.ops == {"Gemm": 3, "Conv": 1, "Relu": 1, "Reshape": 1}
    assert [(n.name, n.op, n.parameters, n.output_shape) for n in stats.per_node[:3]] == [
        ("c", "Conv", 56, (1, 2, 2, 2)),
        ("r", "Relu", 0, (1, 2, 2, 2)),
        ("f", "Reshape", 0, (1, 8)),
    ]
    assert sum(n.parameters for n in stats.per_node) == stats.parameters + 100, "k2 is shared by two nodes"
    assert stats.macs == 8 * 27 + 80 + 100 + 100
    # x: 192 bytes; a, h, s: 32; t, u, y: 40
    assert stats.activation_bytes == 192 + 3 * 32 + 3 * 40
    assert stats.peak_activation_bytes == 192 + 32


def test_the_peak_counts_what_waits_for_a_later_node() -> None:
    graph = _graph("g (float[100] x) => (float[100] y) { a = Relu(x) b = Neg(a) c = Neg(b) y = Add(c, a) }")
    # c is made while a waits and b is read
    assert count(graph).peak_activation_bytes == 3 * 400


def test_outputs_and_unused_tensors_count() -> None:
    graph = _graph(
        "g (float[10] x, float[1000] i) => (float[10] y, float[10] z) { y = Relu(x) d = Neg(x) z = Neg(y) }"
    )
    stats = count(graph)
    assert stats.activation_bytes == 4 * (10 + 1000 + 30)
    assert stats.peak_activation_bytes == 4 * 1020


def test_integer_weights_are_no_parameters() -> None:
    stats = count(_graph("g (float[2] x) => (float[2] y) { y = Expand(x, s) }", s=np.array([2], np.int64)))
    assert (stats.parameters, stats.size_bytes) == (0, 8)


def test_open_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="no static shape"):
        count(_graph("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
