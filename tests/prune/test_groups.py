"""Names, sites, order and reasons of channel groups."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.groups import Groups, Site, find_groups


def make(text: str, weights: dict[str, tuple[int, ...]], constants: dict[str, Any] | None = None) -> Graph:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21, "other" : 1]> net (float[1,3,4,4] x) => {text}'
    )
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    arrays |= {name: np.asarray(value) for name, value in (constants or {}).items()}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [re.sub("_(weight|bias)$", r".\1", name) for name in node.input]
    return infer_shapes(Graph(ir.from_proto(model)))


def reasons(groups: Groups) -> dict[str, str]:
    return {refusal.where: refusal.reason for refusal in groups.locked}


CHAIN = """(float[1,2,4,4] y) {
    a = Conv(x, stem_weight, stem_bias)  r = Relu(a)  d = Conv<group=4>(r, depth_weight)
    y = Conv(d, head_weight)
}"""
CHAIN_WEIGHTS = {
    "stem.weight": (4, 3, 1, 1),
    "stem.bias": (4,),
    "depth.weight": (4, 1, 1, 1),
    "head.weight": (2, 4, 1, 1),
}


def test_sites_of_a_chain() -> None:
    groups = find_groups(make(CHAIN, CHAIN_WEIGHTS))
    (group,) = groups.groups
    single = tuple((i,) for i in range(4))
    assert (group.name, group.size, group.kind) == ("stem", 4, "channels")
    assert group.producers == (
        Site("stem.weight", 0, "Conv_0", single),
        Site("stem.bias", 0, "Conv_0", single),
        Site("depth.weight", 0, "Conv_2", single),
    )
    assert group.consumers == (Site("head.weight", 1, "Conv_3", single),)
    assert [(s.tensor, s.axis, s.node) for s in group.activations] == [
        ("a", 1, "Conv_0"),
        ("r", 1, "Relu_1"),
        ("d", 1, "Conv_2"),
    ]
    assert groups.by_name["stem"] is group
    assert reasons(groups) == {"head.weight": "it reaches the output 'y', whose shape stays"}


def test_the_same_every_time() -> None:
    graph = make(CHAIN, CHAIN_WEIGHTS)
    assert find_groups(graph) == find_groups(graph) == find_groups(graph.copy())


def test_a_layer_whose_channels_part_ways_makes_several_groups() -> None:
    groups = find_groups(
        make(
            """(float[1,2,4,4] y, float[1,1,4,4] z) {
                a = Conv(x, w)  l, r = Split<axis=1>(a, parts)  y = Conv(l, u)
                b = Slice(r, zero, two, one)  c = Conv(b, v)  z = Conv(r, t)  k = Relu(c)
            }""",
            {"w": (7, 3, 1, 1), "u": (2, 3, 1, 1), "v": (2, 2, 1, 1), "t": (1, 4, 1, 1)},
            {"parts": np.array([3, 4]), "zero": np.array([0]), "two": np.array([2]), "one": np.array([1])},
        )
    )
    found = {group.name: (group.producers[0].positions, group.size) for group in groups.groups}
    assert found["Conv_0"] == (((0,), (1,), (2,)), 3)
    assert found["Conv_0#2"] == (((3,), (4,)), 2)
    assert found["Conv_0#3"] == (((5,), (6,)), 2)


def test_units_of_a_grouped_convolution() -> None:
    (first, second) = find_groups(
        make(
            "(float[1,2,4,4] y) { a = Conv(x, w)  g = Conv<group=2>(a, v)  y = Conv(g, u) }",
            {"w": (6, 3, 1, 1), "v": (4, 3, 1, 1), "u": (2, 4, 1, 1)},
        )
    ).groups
    assert first.producers[0].positions == ((0, 3), (1, 4), (2, 5))
    assert first.consumers == (Site("v", 1, "Conv_1", ((0,), (1,), (2,))),)
    assert second.producers[0].positions == ((0, 2), (1, 3))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("b = other.Strange(a)", "Strange 'Strange_1' is not followed"),
        ("b = NonZero(a)", "NonZero 'NonZero_1' is not followed"),
        ("b = Softmax<axis=1>(a)", "Softmax 'Softmax_1' mixes all positions along it"),
        ("b = ReduceSum<keepdims=1>(a, one)", "ReduceSum 'ReduceSum_1' mixes all positions along it"),
        ("b = LRN<size=3>(a)", "LRN 'LRN_1' mixes all positions along it"),
        ("b = ArgMax<axis=1>(a)", "ArgMax 'ArgMax_1' mixes all positions along it"),
    ],
)
def test_what_is_not_followed_stays_and_says_why(middle: str, reason: str) -> None:
    graph = make(
        f"(float[1,2,4,4] y) <float[1,4,4,4] b> {{ a = Conv(x, w)  {middle}"
        "  z = Cast<to=1>(b)  y = Conv(a, v) }",
        {"w": (4, 3, 1, 1), "v": (2, 4, 1, 1)},
        {"one": np.array([1])},
    )  # fmt: skip
    if "NonZero" in middle or "ReduceSum" in middle or "ArgMax" in middle:
        for node in graph.nodes:
            for out in node.outputs:
                if out.shape is None or not out.shape.is_static():
                    out.shape = ir.Shape([4, 1])
    groups = find_groups(graph)
    assert not groups.groups
    assert reasons(groups)["w"] == reason


def test_a_part_that_stays_is_counted() -> None:
    groups = find_groups(
        make(
            "(float[1,2,4,4] l, float[1,1,4,4] y) { a = Conv(x, w)  l, r = Split<axis=1>(a, p)"
            "  y = Conv(r, v) }",
            {"w": (5, 3, 1, 1), "v": (1, 3, 1, 1)},
            {"p": np.array([2, 3])},
        )
    )
    assert [group.size for group in groups.groups] == [3]
    assert reasons(groups)["w"] == "2 of 5 channels: it reaches the output 'l', whose shape stays"


def test_channels_that_only_go_together_stay() -> None:
    """A group convolution between two shuffles ties all channels of the first layer."""
    groups = find_groups(
        make(
            "(float[1,2,4,4] y) { a = Conv(x, w)  b = Conv<group=2>(a, v)  c = DepthToSpace<blocksize=2>(b)"
            "  d = SpaceToDepth<blocksize=2>(c)  y = Conv(d, u) }",
            {"w": (4, 3, 1, 1), "v": (4, 2, 1, 1), "u": (2, 4, 1, 1)},
        )
    )
    assert [group.name for group in groups.groups] == ["Conv_0"]
    assert "this position only" in reasons(groups)["v"]


def test_a_weight_that_makes_here_and_reads_there() -> None:
    """Encoder and decoder share a matrix: its second axis is made by the one and read by the other."""
    groups = find_groups(
        make(
            "(float[1,3,4,3] y) { a = MatMul(x, w)  t = Transpose<perm=[1,0]>(w)  y0 = MatMul(a, t)"
            "  b = Gemm<transB=0>(m, w)  c = Gemm<transB=1>(b, w)  z = ReduceMean<keepdims=0>(c)"
            "  y1 = MatMul(y0, v)  y = Add(y1, z) }",
            {"w": (4, 6), "m": (2, 4), "v": (4, 3)},
        )
    )
    group = groups.by_name["MatMul_0"]
    assert (group.size, [(s.tensor, s.axis) for s in group.producers]) == (6, [("w", 1)])
    assert [(s.tensor, s.axis) for s in group.consumers] == [("w", 1)]


def test_a_quantized_network_is_refused() -> None:
    groups = find_groups(
        make(
            "(float[1,2,4,4] y) { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
            "  y = Conv(d, w) }",
            {"w": (2, 3, 1, 1)},
            {"s": np.float32(0.1), "z": np.int8(0)},
        )
    )
    assert not groups.groups
    assert reasons(groups) == {"QuantizeLinear_0": "the network is quantized; prune it before, then quantize"}


def test_open_sizes_are_an_error() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
    )
    with pytest.raises(ModelError, match="no static shape"):
        find_groups(Graph(ir.from_proto(model)))
