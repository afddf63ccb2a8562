"""The roofline estimate: what it counts, and in which order it puts networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit.errors import ModelError, UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Method
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.pricing import as_is, moved_bytes
from edgekit.quantize.plan import MAC_OPS, make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.scheme import Format, OpRule, Scheme
from edgekit.stats import count
from edgekit.targets.qnn_htp.cost import HtpCost
from edgekit.targets.qnn_htp.estimate import HtpEstimate, estimate
from edgekit.targets.qnn_htp.layers import live_bytes, read_network
from edgekit.targets.qnn_htp.profiles import load_htp

_PROFILE = load_htp("v75")
_SCHEME = Scheme(
    activation=Format.UINT8,
    raised=Format.UINT16,
    integer_inputs=True,
    ops={
        "Conv": OpRule(weight_axis=0, fuses=("Relu",)),
        "Sigmoid": OpRule(),
        "Mul": OpRule(),
        "MaxPool": OpRule(moves=True),
        "Concat": OpRule(moves=True),
    },
)


def _graph(
    nodes: list[NodeProto],
    shape: tuple[int, ...],
    weights: dict[str, tuple[int, ...]],
    output: str,
) -> Graph:
    """A float graph from ``x`` to ``output``."""
    arrays = [numpy_helper.from_array(np.full(s, 0.01, np.float32), n) for n, s in weights.items()]
    proto = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        arrays,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _detector(width: int, side: int) -> Graph:
    """Dense, depthwise and pointwise convolutions, a SiLU, a pool, a join and a head."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem"], ["a"], name="stem", strides=[2, 2], pads=[1] * 4),
        node("Sigmoid", ["a"], ["s"], name="gate"),
        node("Mul", ["a", "s"], ["b"], name="silu"),
        node("Conv", ["b", "deep"], ["c"], name="deep", pads=[1] * 4, group=width),
        node("Relu", ["c"], ["d"], name="relu"),
        node("Conv", ["d", "point"], ["e"], name="point"),
        node("MaxPool", ["e"], ["f"], name="pool", kernel_shape=[5, 5], pads=[2] * 4),
        node("Concat", ["e", "f"], ["g"], name="join", axis=1),
        node("Conv", ["g", "head", "bias"], ["y"], name="head", strides=[2, 2], pads=[1] * 4),
    ]
    weights = {
        "stem": (width, 3, 3, 3),
        "deep": (width, 1, 3, 3),
        "point": (width, width, 1, 1),
        "head": (2 * width, 2 * width, 3, 3),
        "bias": (2 * width,),
    }
    return _graph(nodes, (1, 3, side, side), weights, "y")


def _quantized(graph: Graph, scheme: Scheme = _SCHEME, *, raised: tuple[str, ...] = ()) -> Graph:
    plan = make_plan(graph, scheme, raised=raised)
    params = {
        name: activation_params(0.0, 0.99, plan.formats.get(name, (scheme.activation,))[0])
        for name in plan.tensors
    }
    return insert_qdq(graph, plan, params, scheme)


def _row(found: HtpEstimate, name: str) -> dict[str, Any]:
    return next(row for row in found.layers if row["name"] == name)


def test_three_widths_and_two_resolutions_come_in_the_order_of_macs_and_bytes() -> None:
    points = []
    for width in (32, 64, 96):
        for side in (64, 128):
            graph = _detector(width, side)
            found = estimate(graph, _PROFILE)
            stats = count(graph)
            points.append((stats.macs, stats.activation_bytes + stats.parameters, found))
    for left in points:
        for right in points:
            if left[0] < right[0] and left[1] < right[1]:
                assert left[2].latency.value < right[2].latency.value
    by_width = [estimate(_detector(width, 128), _PROFILE).latency.value for width in (32, 64, 96)]
    assert by_width == sorted(by_width)


def test_the_order_is_the_same_in_qdq_form() -> None:
    values = [
        estimate(_quantized(_detector(width, side)), _PROFILE).latency.value
        for width, side in ((32, 64), (64, 64), (64, 128), (96, 128))
    ]
    assert values == sorted(values)
    assert len(set(values)) == 4


@pytest.mark.parametrize("name", ["v68", "v69", "v73", "v75", "v79"])
def test_a_later_processor_is_estimated_faster(name: str) -> None:
    names = ["v68", "v69", "v73", "v75", "v79", "v81"]
    newer = names[names.index(name) + 1]
    graph = _detector(96, 128)
    assert estimate(graph, load_htp(newer)).latency.value < estimate(graph, load_htp(name)).latency.value


def test_a_dense_convolution_by_hand() -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", pads=[1] * 4)
    graph = _graph([node], (1, 40, 64, 64), {"w": (70, 40, 3, 3), "b": (70,)}, "y")
    found = estimate(graph, _PROFILE)
    macs = 64 * 64 * 9 * 64 * 96  # 40 and 70 channels padded
    weights = 9 * 64 * 96 + 4 * 70
    # Inputs and outputs of the network come from and go to memory, unpadded.
    ddr = weights + 64 * 64 * (40 + 70)
    cycles = max(macs / 16384, ddr / _PROFILE.ddr_bytes_per_cycle)
    assert found.layers == (
        {
            "name": "conv",
            "op": "Conv",
            "cycles": int(np.ceil(cycles)),
            "bound": "matrix",
            "macs": 64 * 64 * 9 * 40 * 70,
            "utilization": pytest.approx(40 * 70 / (64 * 96), rel=1e-4),
        },
    )
    assert found.memory["weights"] == weights
    assert found.memory["DDR traffic"] == ddr
    assert found.latency.value == pytest.approx(1e3 * np.ceil(cycles) / _PROFILE.clock_hz)


def test_sixteen_bits_halve_the_rate_and_double_the_bytes() -> None:
    graph = _detector(64, 128)
    narrow, wide = estimate(graph, _PROFILE), estimate(graph, _PROFILE, item=2)
    for name, bound in (("point", "matrix"), ("head", "matrix"), ("gate", "vector")):
        assert (_row(wide, name)["bound"], _row(narrow, name)["bound"]) == (bound, bound)
        assert _row(wide, name)["cycles"] == pytest.approx(2 * _row(narrow, name)["cycles"], rel=1e-3)
    assert wide.memory["largest activation"] == 2 * narrow.memory["largest activation"]
    assert wide.memory["weights"] == narrow.memory["weights"]


def test_a_raised_tensor_makes_its_reader_slower() -> None:
    graph = _detector(64, 128)
    plain, mixed = (estimate(_quantized(graph, raised=raised), _PROFILE) for raised in ((), ("d",)))
    assert _row(mixed, "point")["cycles"] == pytest.approx(2 * _row(plain, "point")["cycles"], rel=1e-3)
    assert mixed.latency.value > plain.latency.value


def test_depthwise_runs_on_the_vector_unit() -> None:
    found = estimate(_detector(64, 128), _PROFILE)
    row = _row(found, "deep")
    assert (row["op"], row["bound"]) == ("Conv+Relu", "vector")
    assert row["cycles"] == 64 * 64 * 9 * 64 // _PROFILE.vector_bytes_per_cycle
    assert row["utilization"] < 0.05


def test_what_does_not_fit_the_vtcm_is_spilled_both_ways() -> None:
    graph = _detector(96, 256)
    network = read_network(graph)
    peak = max(live_bytes(network))
    roomy = _PROFILE.model_copy(update={"vtcm_bytes": peak})
    tight = _PROFILE.model_copy(update={"vtcm_bytes": peak - 1000})
    fits, spills = estimate(graph, roomy), estimate(graph, tight)
    assert fits.memory["spilled"] == 0
    assert fits.memory["peak activations"] == peak
    assert spills.memory["spilled"] >= 1000
    extra = spills.memory["DDR traffic"] - fits.memory["DDR traffic"]
    assert extra >= 2 * spills.memory["spilled"]
    none = estimate(graph, _PROFILE.model_copy(update={"vtcm_bytes": 1}))
    assert none.latency.value > spills.latency.value >= fits.latency.value


def test_a_qdq_graph_has_the_layers_of_its_float_form_and_its_ends() -> None:
    graph = _detector(32, 64)
    plain, coded = estimate(graph, _PROFILE), estimate(_quantized(graph), _PROFILE)
    ends = {row["name"] for row in coded.layers} - {row["name"] for row in plain.layers}
    assert ends == {"x_QuantizeLinear", "y_DequantizeLinear"}
    assert {row["name"]: row.get("macs") for row in plain.layers}.items() <= {
        row["name"]: row.get("macs") for row in coded.layers
    }.items()
    assert coded.memory["weights"] == plain.memory["weights"]
    assert coded.left == ()


def test_float_nodes_are_named_and_not_counted() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first", pads=[1] * 4),
        node("Erf", ["a"], ["e"], name="erf"),
        node("Abs", ["e"], ["b"], name="abs"),
        node("Conv", ["b", "w"], ["y"], name="second", pads=[1] * 4),
    ]
    graph = _quantized(_graph(nodes, (1, 32, 32, 32), {"w": (32, 32, 3, 3)}, "y"))
    found = estimate(graph, _PROFILE)
    assert found.left == ("erf", "abs")
    assert any("'erf' (Erf), 'abs' (Abs)" in text for text in found.assumptions)
    assert {"erf", "abs"}.isdisjoint(row["name"] for row in found.layers)
    assert {"a_DequantizeLinear", "b_QuantizeLinear"} <= {row["name"] for row in found.layers}


def test_the_bias_of_a_product_and_the_activation_behind_it_are_one_layer() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="product"),
        node("Add", ["a", "b"], ["c"], name="bias"),
        node("Sigmoid", ["c"], ["d"], name="gate"),
        node("Add", ["d", "x"], ["y"], name="sum"),
    ]
    graph = _graph(nodes, (1, 16, 64), {"w": (64, 64), "b": (64,)}, "y")
    fused = {**_SCHEME.ops, "MatMul": OpRule(weight_axis=-1, fuses=("Add",)), "Add": OpRule()}
    plain = estimate(graph, _PROFILE)
    coded = estimate(_quantized(graph, _SCHEME.model_copy(update={"ops": fused})), _PROFILE)
    assert [row["name"] for row in plain.layers if row["op"] == "MatMul+Add"] == ["product"]
    assert {row["name"] for row in plain.layers} == {"product", "gate", "sum"}
    # The tail stays in float here; all that counts is that the bias has no layer of its own.
    assert "product" in {row["name"] for row in coded.layers}
    assert "bias" not in {row["name"] for row in coded.layers} | set(coded.left)


def test_the_figure_says_what_it_is() -> None:
    found = estimate(_detector(32, 64), _PROFILE)
    assert (found.latency.method, found.latency.unit) == (Method.MODEL_ESTIMATE, "ms")
    assert "not measured" in found.latency.note
    assert sum(found.latency.spread.values()) == pytest.approx(found.latency.value)
    assert set(found.latency.spread) == {"matrix", "vector", "ddr"}
    assert set(_PROFILE.assumptions) <= set(found.assumptions)
    cycles = [row["cycles"] for row in found.layers]
    assert cycles == sorted(cycles, reverse=True)
    assert found == estimate(_detector(32, 64), _PROFILE)


def test_an_open_shape_is_refused() -> None:
    graph = _detector(32, 64).copy()
    graph.model.graph.inputs[0].shape = ir.Shape([1, 3, "h", "w"])
    with pytest.raises(ModelError, match="no static shape"):
        estimate(graph, _PROFILE)


def _conv(batch: int, inputs: int, outputs: int, kernel: int, side: int) -> Graph:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("Sigmoid", ["a"], ["b"], name="gate"),
        node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    return _graph(nodes, (batch, inputs, side, side), {"w": (outputs, inputs, kernel, kernel)}, "y")


def _matmul(batch: int, rows: int, inner: int, columns: int, heads: int) -> Graph:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="project"),
        node("Transpose", ["a"], ["t"], name="turn", perm=[0, 1, 3, 2]),
        node("MatMul", ["a", "t"], ["s"], name="score"),
        node("Softmax", ["s"], ["y"], name="share"),
    ]
    return _graph(nodes, (batch, heads, rows, inner), {"w": (inner, columns)}, "y")


@pytest.mark.parametrize("build", [_conv, _matmul])
@pytest.mark.parametrize("name", ["v68", "v75", "v79"])
@given(
    sizes=st.tuples(
        st.integers(1, 2), st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), st.integers(8, 40)
    ),
    axis=st.integers(0, 4),
    more=st.integers(1, 40),
    vtcm=st.sampled_from([1, 20_000, 2**23]),
    item=st.sampled_from([1, 2]),
)
def test_more_of_any_dimension_never_costs_less(
    build: Callable[..., Graph],
    name: str,
    sizes: tuple[int, ...],
    axis: int,
    more: int,
    vtcm: int,
    item: int,
) -> None:
    profile = load_htp(name).model_copy(update={"vtcm_bytes": vtcm})
    grown = list(sizes)
    grown[axis] += more
    if build is _conv:
        # A larger kernel on the same input has fewer places: hold the number of places.
        grown[4] += more if axis == 3 else 0
    small, large = (estimate(build(*s), profile, item=item) for s in (sizes, grown))
    assert small.latency.value <= large.latency.value
    assert small.memory["DDR traffic"] <= large.memory["DDR traffic"]


@given(groups=st.sampled_from([1, 2, 4, 8]), width=st.integers(1, 9), more=st.integers(1, 9))
def test_more_groups_of_the_same_channels_never_cost_more(groups: int, width: int, more: int) -> None:
    channels = 8 * width

    def build(group: int, size: int) -> Graph:
        node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group)
        return _graph([node], (1, size, 8, 8), {"w": (size, size // group, 3, 3)}, "y")

    dense, split = (estimate(build(g, 2 * channels), _PROFILE).latency.value for g in (1, groups))
    assert split <= dense
    assert split <= estimate(build(groups, 2 * channels + 8 * more), _PROFILE).latency.value


def test_an_embedding_moves_only_the_rows_it_looks_up() -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["i"], name="cast", to=TensorProto.INT64),
        node("Gather", ["table", "i"], ["y"], name="look", axis=0),
    ]
    found = estimate(_graph(nodes, (1, 12), {"table": (30000, 64)}, "y"), _PROFILE)
    assert found.memory["weights"] == 12 * 64


def test_the_cost_model_of_pruning_adds_up_to_the_estimate() -> None:
    graph = _detector(96, 128)
    cost = HtpCost.open(_PROFILE, graph, "int8")
    whole = cost.predict(graph)
    kernels = sum(cost.node_ms([as_is(node) for node in graph.nodes if node.op_type in MAC_OPS]))
    others = sum(cost.byte_ms(node) * moved_bytes(node) for node in graph.nodes)
    assert whole.method is Method.MODEL_ESTIMATE
    assert kernels + others + cost.fixed_ms == pytest.approx(whole.value, rel=1e-6)
    assert cost.fixed_ms < 0.2 * whole.value
    assert cost.byte_ms(next(node for node in graph.nodes if node.name == "relu")) == 0
    assert "model-estimate" in cost.notes[0]


def test_the_cost_model_prices_integers_only() -> None:
    with pytest.raises(UsageError, match="integers only"):
        HtpCost.open(_PROFILE, _detector(32, 64), "float")
