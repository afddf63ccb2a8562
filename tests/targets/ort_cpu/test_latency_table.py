"""The table of kernels on this machine: loose bounds, since other programs run here too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Method
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.registry import load_target
from edgekit.target import HasCostModel, NodeRequest
from edgekit.targets.ort_cpu.kernel_times import fast_mean
from edgekit.targets.ort_cpu.latency_table import LatencyTable


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def net() -> Graph:
    random = np.random.default_rng(0)
    arrays = {
        "a": random.standard_normal((64, 64, 3, 3)).astype(np.float32),
        "b": random.standard_normal((64, 1, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], name="dense", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "b"], ["d"], name="deep", pads=[1, 1, 1, 1], group=64),
        helper.make_node("MaxPool", ["d"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _open(net: Graph, kind: str = "float") -> LatencyTable:
    target = load_target("ort-cpu:host-1t")
    assert isinstance(target, HasCostModel)
    table = target.cost_model(net, kind, 1)
    assert isinstance(table, LatencyTable)
    return table


def _dense(net: Graph, width: int) -> NodeRequest:
    node = next(n for n in net.nodes if n.name == "dense")
    return NodeRequest(node, ((1, 64, 32, 32), (width, 64, 3, 3)), ((1, width, 32, 32),))


def _deep(net: Graph, width: int) -> NodeRequest:
    node = next(n for n in net.nodes if n.name == "deep")
    return NodeRequest(node, ((1, width, 32, 32), (width, 1, 3, 3)), ((1, width, 32, 32),))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_narrower_kernel_takes_less_and_figures_are_remembered(
    net: Graph, kind: str, tmp_path: Path
) -> None:
    table = _open(net, kind)
    wide, narrow, deep = table.node_ms([_dense(net, 64), _dense(net, 16), _deep(net, 32)])
    assert 0 < narrow < wide < 50
    assert 0 < deep < wide
    whole = table.predict(net)
    assert (whole.unit, whole.method) == ("ms", Method.MODEL_ESTIMATE)
    assert whole.value > wide
    measured = table.measured
    assert table.node_ms([_dense(net, 16)]) == [narrow]
    assert table.measured == measured == 4
    (file,) = tmp_path.rglob("kernels-*.json")
    assert len(json.loads(file.read_text())["ms"]) == 4
    again = _open(net, kind)
    again.node_ms([_dense(net, 16), _deep(net, 32)])
    assert again.measured == 0


def test_a_fused_activation_costs_nothing_and_a_pool_its_bytes(net: Graph) -> None:
    rates = {node.op_type: _open(net).byte_ms(node) for node in net.nodes}
    assert rates["Conv"] == 0
    assert rates["MaxPool"] > 0


def test_a_broken_file_is_not_used_and_that_is_said(net: Graph, tmp_path: Path) -> None:
    _open(net)
    (file,) = tmp_path.rglob("kernels-*.json")
    file.write_text("{")
    table = _open(net)
    assert any("not used" in note for note in table.notes)
    assert table.measured == 2


def test_a_board_and_an_unknown_kind_are_refused(net: Graph) -> None:
    board = load_target("ort-cpu:rpi4")
    assert isinstance(board, HasCostModel)
    with pytest.raises(UsageError, match=r"Raspberry Pi 4.*cannot be told here"):
        board.cost_model(net, "float", 1)
    host = load_target("ort-cpu:host")
    assert isinstance(host, HasCostModel)
    with pytest.raises(UsageError, match=r"int4.*float, int8"):
        host.cost_model(net, "int4", 1)


def test_the_fast_runs_count() -> None:
    times = [100.0] * 70 + [10.0] * 25 + [1.0] * 5
    assert fast_mean(times) == 10.0
    assert fast_mean([3.0]) == 3.0


def test_the_alignment_of_this_machine_has_a_source() -> None:
    profile = load_target("ort-cpu:host-1t").profile
    assert profile.align == 16
    assert "align: measured" in profile.source
    assert load_target("ort-cpu:rpi4").profile.align == 0
