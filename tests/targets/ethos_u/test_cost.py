"""Cycles of single kernels, asked of Vela."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Method
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.target import HasCostModel, NodeRequest
from edgekit.targets.ethos_u.cost import VelaCost, compile_whole
from edgekit.targets.ethos_u.profiles import load_npu
from edgekit.targets.ethos_u.target import EthosUTarget

pytest.importorskip("ethosu")
pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def net() -> Graph:
    """Dense, depthwise and transposed convolution, a SiLU, a pool and a fully connected layer."""
    random = np.random.default_rng(0)
    shapes = {"a": (64, 64, 3, 3), "b": (64, 1, 3, 3), "c": (64, 64, 2, 2), "d": (64, 100)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="dense", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["y"], ["s"], name="gate"),
        helper.make_node("Mul", ["y", "s"], ["m"], name="silu"),
        helper.make_node("Conv", ["m", "b"], ["z"], name="deep", pads=[1, 1, 1, 1], group=64),
        helper.make_node("ConvTranspose", ["z", "c"], ["u"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["u"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "d"], ["g"], name="full"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 40, 40])],
        [helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 100])],
        [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _open(net: Graph, profile: str = "u55-256") -> VelaCost:
    target = EthosUTarget.create(profile)
    assert isinstance(target, HasCostModel)
    cost = target.cost_model(net, "int8", 0)
    assert isinstance(cost, VelaCost)
    return cost


def _dense(net: Graph, width: int) -> NodeRequest:
    node = next(n for n in net.nodes if n.name == "dense")
    return NodeRequest(node, ((1, width, 40, 40), (width, width, 3, 3)), ((1, width, 40, 40),))


def _deep(net: Graph, width: int) -> NodeRequest:
    node = next(n for n in net.nodes if n.name == "deep")
    return NodeRequest(node, ((1, width, 40, 40), (width, 1, 3, 3)), ((1, width, 40, 40),))


def test_the_cliffs_are_where_vela_has_them(net: Graph) -> None:
    small = _open(net).cycles([_dense(net, width) for width in (28, 32, 36, 40, 64, 68)])
    assert small[1] < 1.02 * small[0]
    assert small[2] > 2.2 * small[1]
    assert small[3] < 1.02 * small[2]
    assert small[5] > 1.5 * small[4]
    # On the U85 more channels can even be faster.
    narrow, wide = _open(net, "u85-512").cycles([_dense(net, 40), _dense(net, 48)])
    assert narrow > 1.2 * wide


def test_cycles_are_remembered_for_the_npu(net: Graph, tmp_path: Path) -> None:
    cost = _open(net)
    first, again = cost.asked, _open(net)
    assert (first, again.asked) == (4, 0)
    widths = [_dense(net, 48), _deep(net, 48), _deep(net, 48)]
    times = again.node_ms(widths)
    assert again.asked == 2
    assert times[1] == times[2] < times[0]
    (file,) = tmp_path.rglob("vela-*.json")
    assert len(json.loads(file.read_text())["cycles"]) == 6
    assert _open(net, "u55-128").asked == 4
    file.write_text("{")
    broken = _open(net)
    assert broken.asked == 4
    assert any("not used" in note for note in broken.notes)


def test_a_new_shape_takes_less_than_a_tenth_of_a_second(net: Graph) -> None:
    cost = _open(net)
    requests = [_dense(net, width) for width in range(4, 64, 4)]
    began = time.process_time()
    start = time.monotonic()
    cost.cycles(requests)
    assert cost.asked == 4 + len(requests)
    assert min(time.monotonic() - start, 10 * (time.process_time() - began)) < 0.1 * len(requests)


def test_the_whole_network_is_predicted_as_vela_estimates_it(net: Graph) -> None:
    for profile in ("u55-256", "u85-256"):
        scheme, npu = EthosUTarget.create(profile).scheme, load_npu(profile)
        assert scheme is not None
        whole = compile_whole(net, scheme, npu).estimate()
        assert whole is not None
        assert "Quantize" not in {layer.op for layer in compile_whole(net, scheme, npu).layers}
        predicted = _open(net, profile).predict(net)
        assert (predicted.unit, predicted.method) == ("ms", Method.COMPILER_ESTIMATE)
        assert predicted.value == pytest.approx(whole.value, rel=0.01)


def test_what_runs_on_its_own_costs_its_bytes_and_kernels_do_not(net: Graph) -> None:
    cost = _open(net)
    rates = {node.name: cost.byte_ms(node) for node in net.nodes}
    assert rates["dense"] == rates["full"] == 0
    assert rates["gate"] > 0
    assert rates["silu"] > 0


def test_a_kernel_that_leaves_the_npu_is_noted(net: Graph) -> None:
    cost = _open(net)
    node = next(n for n in net.nodes if n.name == "deep")
    strided = ir.from_proto(helper.make_node("Conv", ["m", "b"], ["z"], name="far", strides=[4, 4], group=64))
    assert isinstance(strided, ir.Node)
    assert node.op_type == strided.op_type
    request = NodeRequest(strided, ((1, 64, 40, 40), (64, 1, 3, 3)), ((1, 64, 10, 10),))
    assert cost.cycles([request]) == [0]
    assert any("'far' is left to the CPU" in note for note in cost.notes)


def test_float_is_refused(net: Graph) -> None:
    with pytest.raises(UsageError, match="integers only"):
        EthosUTarget.create().cost_model(net, "float", 1)


def test_grouped_and_sequence_kernels_have_a_cost(around: Callable[..., Graph]) -> None:
    grouped = around("Conv", [(1, 8, 16, 16)], ((8, 4, 3, 3),), group=2, pads=[1, 1, 1, 1])
    sequence = around("Conv", [(1, 8, 16)], ((8, 8, 3),))
    pair = around("MatMul", [(1, 8, 16), (1, 16, 8)])
    for graph in (grouped, sequence, pair):
        node = next(n for n in graph.nodes if n.name == "node")
        shapes = [tuple(int(d) for d in v.shape.numpy()) for v in node.inputs if v is not None and v.shape]
        out = node.outputs[0].shape
        assert out is not None
        request = NodeRequest(node, tuple(shapes), (tuple(int(d) for d in out.numpy()),))
        (cycles,) = VelaCost(load_npu("u55-256"), None).cycles([request])
        assert cycles > 0
