from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.graph import array
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.verify import max_difference


def _held(value: Any) -> Any:
    return array(value)


def _norm(channels: Any, seed: Any = 0) -> Any:
    random = np.random.default_rng(seed)
    ranges = {"g": (-2, 2), "b": (-1, 1), "m": (-1, 1), "v": (0.01, 3)}
    return {name: random.uniform(*r, channels).astype(np.float32) for name, r in ranges.items()}


BN = "BatchNormalization<epsilon=0.01>(c, g, b, m, v)"


@pytest.mark.parametrize(
    ("layer", "channels", "shapes"),
    [
        ("Conv(x, w)", 6, {"w": (6, 4, 3, 3)}),
        ("Conv(x, w, bias)", 6, {"w": (6, 4, 3, 3), "bias": (6,)}),
        ("Conv<group=2>(x, w, bias)", 6, {"w": (6, 2, 3, 3), "bias": (6,)}),
        ("ConvTranspose(x, w)", 6, {"w": (4, 6, 3, 3)}),
        ("ConvTranspose<group=2, strides=[2,2]>(x, w, bias)", 6, {"w": (4, 3, 3, 3), "bias": (6,)}),
        ("ConvTranspose<group=4>(x, w)", 8, {"w": (4, 2, 2, 2)}),
    ],
)
def test_convolutions_take_the_normalization_in(
    make_graph: Callable[..., Any], weights: Any, layer: Any, channels: Any, shapes: Any
) -> None:
    constants = {**_norm(channels), **{name: weights(*shape) for name, shape in shapes.items()}}
    graph = infer_shapes(
        make_graph(
            f"g (float[1,4,6,6] x) => (float[1,{channels},H,W] y) {{ c = {layer} n = {BN} y = Relu(n) }}",
            constants,
        )
    )
    before = graph.to_bytes()
    folded = fold_batchnorm(graph)
    assert [n.op_type for n in folded.nodes] == [layer.split("(")[0].split("<")[0], "Relu"]
    assert max_difference(graph, folded) < 1e-4
    assert graph.to_bytes() == before
    (conv, _) = folded.nodes
    assert conv.outputs[0].name == "n", "named after the tensor that it now makes"
    assert conv.inputs[1] is folded.values()["w"]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), ()])
def test_gemm_takes_the_normalization_in(
    make_graph: Callable[..., Any], weights: Any, alpha: Any, beta: Any, transposed: Any, bias: Any
) -> None:
    constants = {**_norm(5), "w": weights(*((5, 3) if transposed else (3, 5)))}
    if bias is not None:
        constants["bias"] = weights(*bias).reshape(bias)
    inputs = "x, w" if bias is None else "x, w, bias"
    graph = infer_shapes(
        make_graph(
            f"""g (float[2,3] x) => (float[2,5] y) {{
                c = Gemm<alpha={alpha}, beta={beta}, transB={transposed}>({inputs}) y = {BN} }}""",
            constants,
        )
    )
    folded = fold_batchnorm(graph)
    assert [n.op_type for n in folded.nodes] == ["Gemm"]
    assert [o.name for o in folded.outputs] == ["y"]
    assert max_difference(graph, folded) < 1e-4


def test_a_new_bias_is_named_like_its_layer(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = make_graph(
        "g (float[1,4,6,6] x) => (float[1,6,4,4] y) { c = Conv(x, stem) y = " + BN + " }",
        {**_norm(6), "stem": weights(6, 4, 3, 3)},
    )
    graph.model.graph.initializers["stem"].name = "stem.weight"
    folded = fold_batchnorm(graph)
    assert {"stem.weight", "stem.bias"} <= set(folded.model.graph.initializers)


def test_a_shared_weight_is_left_to_the_other_layer(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = infer_shapes(
        make_graph(
            f"""g (float[1,4,6,6] x) => (float[1,4,4,4] y, float[1,4,4,4] z) {{
                c = Conv(x, w, bias) y = {BN} z = Conv(x, w, bias) }}""",
            {**_norm(4), "w": weights(4, 4, 3, 3), "bias": weights(4)},
        )
    )
    folded = fold_batchnorm(graph)
    assert np.array_equal(_held(folded.values()["w"]), _held(graph.values()["w"]))
    assert max_difference(graph, folded) < 1e-4


def test_two_normalizations_in_a_row_fold_both(make_graph: Callable[..., Any], weights: Any) -> None:
    graph = infer_shapes(
        make_graph(
            f"""g (float[1,4,6,6] x) => (float[1,6,4,4] y) {{
                c = Conv(x, w) n = {BN} y = {BN.replace("(c", "(n")} }}""",
            {**_norm(6), "w": weights(6, 4, 3, 3)},
        )
    )
    folded = fold_batchnorm(graph)
    assert [n.op_type for n in folded.nodes] == ["Conv"]
    assert max_difference(graph, folded) < 1e-4


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (f"c = Conv(x, w) [bn] y = {BN} z = Relu(c)", ("y", "z"), "'c' is also used by 1 other"),
        (f"c = Conv(x, w) [bn] y = {BN}", ("y", "c"), "'c' is an output"),
        (f"c = Relu(x) [bn] y = {BN}", ("y",), "follows Relu"),
        (f"[bn] y = {BN.replace('(c', '(x')}", ("y",), "follows an input"),
        (f"k = Mul(w, w) c = Conv(x, k) [bn] y = {BN}", ("y",), "computed, not constant"),
    ],
)
def test_what_cannot_be_folded_is_refused_with_the_reason(
    make_graph: Callable[..., Any], weights: Any, body: Any, outputs: Any, reason: Any
) -> None:
    results = ", ".join(f"float[1,4,A{i},B{i}] {name}" for i, name in enumerate(outputs))
    graph = make_graph(
        f"g (float[1,4,6,6] x) => ({results}) {{ {body} }}", {**_norm(4), "w": weights(4, 4, 3, 3)}
    )
    folded = fold_batchnorm(graph)
    change = folded.history[-1]
    assert change.summary == "folded 0 of 1 batch normalizations"
    assert change.refused[0].where == "bn"
    assert reason in change.refused[0].reason
    assert folded.to_bytes() == graph.to_bytes()


def test_a_variance_below_zero_is_refused(make_graph: Callable[..., Any], weights: Any) -> None:
    constants = {**_norm(4), "v": np.full(4, -1, np.float32), "w": weights(4, 4, 3, 3)}
    graph = make_graph(f"g (float[1,4,6,6] x) => (float[1,4,4,4] y) {{ c = Conv(x, w) y = {BN} }}", constants)
    assert "variance" in fold_batchnorm(graph).history[-1].refused[0].reason
