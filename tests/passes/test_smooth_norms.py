"""Outlying channels of normalizations move into the layers behind, and the network computes the same."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.smooth_norms import LIMIT, find_smoothable, smooth_norms
from edgekit.passes.verify import max_difference, random_feeds
from edgekit.session import open_runner

WIDTH, TOKENS = 8, 4
RNG = np.random.default_rng(0)
GAMMA = np.array([1, 1, 20, 1, 0.5, 1, 2, 1], np.float32)
#: Magnitudes of the channels behind GAMMA.
PEAKS = 3 * GAMMA


def parse(body: str, constants: dict[str, np.ndarray], inputs: str = "", outputs: str = "") -> Graph:
    """A graph over x [1, 4, 8] with ``constants`` as initializers."""
    shape = f"float[1,{TOKENS},{WIDTH}]"
    ends = f"({shape} x{inputs}) => ({outputs or shape + ' y'})"
    text = f'<ir_version: 10, opset_import: ["" : 21]> g {ends} {{{body}}}'
    model = ir.from_onnx_text(text)
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, data in constants.items():
        tensor = ir.tensor(data, name=name)
        value = values[name]
        value.const_value, value.shape = tensor, ir.Shape(data.shape)
        value.type = ir.TensorType(tensor.dtype)
        model.graph.register_initializer(value)
    return infer_shapes(Graph(model, ()))


def constants(*names: str) -> dict[str, np.ndarray]:
    known = {
        "gamma": GAMMA,
        "beta": RNG.standard_normal(WIDTH).astype(np.float32),
        "w": RNG.standard_normal((WIDTH, 6)).astype(np.float32),
        "v": RNG.standard_normal((5, WIDTH)).astype(np.float32),
        "up": RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "rows": np.array([TOKENS, WIDTH]),
    }
    return {name: known[name] for name in names}


def peaks(graph: Graph, tensor: str) -> np.ndarray:
    """Largest magnitudes of a tensor's channels on a random input."""
    looked = graph.copy()
    value = looked.values()[tensor]
    looked.model.graph.outputs.append(value)
    runner = open_runner(looked, threads=1)
    found = runner.run(random_feeds(graph.inputs, 0))[tensor]
    return np.asarray(np.abs(found).reshape(-1, WIDTH).max(0))


PLAIN = "n = LayerNormalization <axis = -1> (x, gamma, beta) y = MatMul (n, w)"
Y6 = f"float[1,{TOKENS},6] y"


def test_a_layer_takes_the_factors_and_the_result_stays() -> None:
    graph = parse(PLAIN, constants("gamma", "beta", "w"), outputs=Y6)
    result = smooth_norms(graph, {"n": PEAKS})
    assert max_difference(graph, result) < 1e-4
    before, after = peaks(graph, "n"), peaks(result, "n")
    assert after.max() / np.median(after) < 0.6 * before.max() / np.median(before)
    assert [node.op_type for node in result.nodes] == ["LayerNormalization", "MatMul"]
    assert result.history[-1].details["smoothed"].keys() == {"n"}
    assert np.array_equal(np.asarray(array(graph.values()["gamma"])), GAMMA)  # the input stays as it was


def test_a_gemm_behind_a_reshape_and_a_shortcut() -> None:
    """As BERT has it: the result is read by layers, directly and as rows, and skips to a sum."""
    body = """n = LayerNormalization <axis = -1> (x, gamma, beta)
        r = Reshape (n, rows)
        z = Gemm <transB = 1> (r, v)
        u = MatMul (n, up)
        y = Add (n, u)"""
    shape = f"float[1,{TOKENS},{WIDTH}] y, float[{TOKENS},5] z"
    graph = parse(body, constants("gamma", "beta", "v", "up", "rows"), outputs=shape)
    (found,) = find_smoothable(graph)
    assert {node.op_type for node in found.layers} == {"Gemm", "MatMul"}
    assert [node.op_type for node, _ in found.shortcuts] == ["Add"]
    result = smooth_norms(graph, {"n": PEAKS})
    assert max_difference(graph, result) < 1e-4
    assert sum(node.op_type == "Mul" for node in result.nodes) == 1
    kept = smooth_norms(graph, {"n": PEAKS}, shortcuts=False)
    assert kept.history[-1].details["smoothed"] == {}
    assert "reads it too" in kept.history[-1].refused[0].reason


def test_shared_weights_stay_for_others() -> None:
    body = PLAIN + " m = LayerNormalization <axis = -1> (x, gamma) z = MatMul (m, w)"
    graph = parse(body, constants("gamma", "beta", "w"), outputs=f"{Y6}, float[1,{TOKENS},6] z")
    result = smooth_norms(graph, {"n": PEAKS, "m": PEAKS}, only=["n"])
    assert result.history[-1].details["smoothed"].keys() == {"n"}
    assert max_difference(graph, result) < 1e-4


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_factors_are_bounded(strength: float) -> None:
    given = constants("gamma", "beta", "w")
    graph = parse(PLAIN, given, outputs=Y6)
    result = smooth_norms(graph, {"n": PEAKS * np.array([1e6, *[1] * 7])}, strength=strength)
    ratio = given["gamma"] / np.asarray(array(result.values()["gamma"]))
    assert ratio.max() <= LIMIT * 1.001
    assert ratio.min() >= 0.999 / LIMIT
    assert max_difference(graph, result) < 1e-3


def test_even_channels_are_left_alone() -> None:
    graph = parse(
        PLAIN, {**constants("gamma", "beta", "w"), "w": np.ones((WIDTH, 6), np.float32)}, outputs=Y6
    )
    result = smooth_norms(graph, {"n": np.ones(WIDTH)})
    assert result.history[-1].details["smoothed"] == {}
    assert smooth_norms(graph, {}).history[-1].details["smoothed"] == {}


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("y = LayerNormalization <axis = -1> (x, gamma, beta)", "", "an output"),
        ("n = LayerNormalization <axis = 1> (x, g2) y = MatMul (n, w)", Y6, "last axis"),
        ("g = Relu (s) n = LayerNormalization <axis = -1> (x, g) y = MatMul (n, w)", Y6, "computed"),
        ("n = LayerNormalization <axis = -1> (x, gamma, beta) y = Relu (n)", "", "no layer"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(body: str, outputs: str, reason: str) -> None:
    known = {**constants("gamma", "beta", "w"), "g2": np.ones((TOKENS, WIDTH), np.float32)}
    words = set(re.findall(r"\w+", body))
    used = {name: data for name, data in known.items() if name in words}
    graph = parse(body, used, inputs=f", float[{WIDTH}] s" if "(s)" in body else "", outputs=outputs)
    refused = smooth_norms(graph, {"n": PEAKS, "y": PEAKS}).history[-1].refused
    assert len(refused) == 1
    assert reason in refused[0].reason


def test_wrong_arguments_are_refused() -> None:
    graph = parse(PLAIN, constants("gamma", "beta", "w"), outputs=Y6)
    with pytest.raises(UsageError, match="share"):
        smooth_norms(graph, {}, strength=1.5)
    with pytest.raises(UsageError, match="3 ranges for 8 channels"):
        smooth_norms(graph, {"n": np.ones(3)})
