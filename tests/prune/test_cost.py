"""Cost as a function of kept units: equal to counting the pruned graph, however one gets there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.passes.edit import size_bytes
from edgekit.prune.apply import apply
from edgekit.prune.cost import Cost, Dim, Product, Table, cost_of, weight_bytes
from edgekit.prune.groups import Groups, find_groups
from edgekit.prune.options import Aim, CostKind
from edgekit.prune.plan import make_plan
from edgekit.stats import count
from edgekit.target import NodeRequest


def _orders(groups: Groups, seed: int) -> dict[str, list[int]]:
    random = np.random.default_rng(seed)
    return {g.name: [int(u) for u in random.permutation(g.size)] for g in groups.groups}


def _counted(graph: Graph, aim: Aim) -> float:
    stats = count(graph)
    return {Aim.MACS: stats.macs, Aim.PARAMS: stats.parameters, Aim.BYTES: stats.size_bytes}[aim]


@pytest.mark.parametrize("aim", [Aim.MACS, Aim.PARAMS, Aim.BYTES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_cost_is_what_the_pruned_graph_counts(net: Graph, aim: Aim, seed: int) -> None:
    groups = find_groups(net)
    orders = _orders(groups, seed)
    cost = cost_of(net, groups.groups, orders, aim)
    assert cost.value == _counted(net, aim)
    random = np.random.default_rng(seed)
    keep = {}
    for index, group in enumerate(groups.groups):
        gone = int(random.integers(0, group.size))
        saved = cost.saved(index, gone)
        before = cost.value
        cost.remove(index, gone)
        assert before - cost.value == saved
        keep[group.name] = sorted(orders[group.name][gone:])
    assert cost.value == _counted(apply(net, make_plan(net, groups, keep)), aim)


def test_restored_units_cost_what_they_did(net: Graph) -> None:
    groups = find_groups(net)
    cost = cost_of(net, groups.groups, _orders(groups, 0), Aim.MACS)
    full = cost.value
    cost.remove(0, 5)
    assert cost.saved(0, -5) == cost.value - full
    cost.remove(0, -5)
    assert cost.value == full
    assert cost.removed[0] == 0


def test_int8_weights_have_one_byte_and_biases_four(net: Graph) -> None:
    weights = sum(
        v.const_value.size
        for name, v in net.model.graph.initializers.items()
        if name.endswith("weight") and v.const_value is not None
    )
    biases = count(net).parameters - weights
    assert weight_bytes(net, CostKind.INT8) == weights + 4 * biases
    assert weight_bytes(net, CostKind.FLOAT) == count(net).size_bytes
    groups = find_groups(net)
    cost = cost_of(net, groups.groups, _orders(groups, 0), Aim.BYTES, kind=CostKind.INT8)
    assert cost.value == weight_bytes(net, CostKind.INT8)


def test_units_are_a_cost_too(net: Graph) -> None:
    groups = find_groups(net)
    cost = cost_of(net, groups.groups, _orders(groups, 0), Aim.KEEP)
    assert cost.value == sum(g.size for g in groups.groups)
    cost.remove(0, 3)
    assert cost.value == sum(g.size for g in groups.groups) - 3


class _Model:
    """Kernels take 1 ms for each thousand multiply-accumulates; other nodes 1 ms for each thousand bytes."""

    fixed_ms = 0.5
    parts = 4
    notes = ()

    def __init__(self) -> None:
        self.asked = 0

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        self.asked += len(requests)
        return [_work(r) / 1e3 for r in requests]

    def byte_ms(self, node: ir.Node) -> float:
        return 0.0 if node.op_type in ("Conv", "Gemm") else 1e-3

    def predict(self, graph: Graph) -> Measurement:
        return Measurement(0.0, "ms", Method.MODEL_ESTIMATE)


def _work(request: NodeRequest) -> float:
    weight, out = request.inputs[1], request.outputs[0]
    assert weight is not None
    inner = weight[1:] if request.node.op_type == "Conv" else (request.inputs[0] or ())[1:]
    return float(np.prod(out) * np.prod(inner))


def test_latency_is_a_table_of_kernels_and_bytes(net: Graph) -> None:
    groups, model = find_groups(net), _Model()
    orders = _orders(groups, 0)
    cost = cost_of(net, groups.groups, orders, Aim.LATENCY, model=model, align=1)
    macs = cost_of(net, groups.groups, orders, Aim.MACS)
    moved = sum(
        size_bytes(v)
        for n in net.nodes
        if n.op_type not in ("Conv", "Gemm")
        for v in (*n.inputs, *n.outputs)
        if v is not None
    )
    assert cost.value == pytest.approx(0.5 + macs.value / 1e3 + moved / 1e3)
    # The kernels here are bilinear in their widths, so that interpolation is exact at every one of them.
    saved = macs.saved(0, 7) / 1e3
    assert cost.saved(0, 7) > saved
    assert model.asked < 25 * 6


@given(
    st.lists(st.integers(1, 64), min_size=2, max_size=2),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_a_bilinear_table_is_exact(full: list[int], x: int, y: int) -> None:
    levels = tuple(tuple(sorted({1, max(1, f // 2), f})) for f in full)
    values = tuple(3.0 * a * b + a + 2.0 for a in levels[0] for b in levels[1])
    x, y = min(x, full[0]), min(y, full[1])
    assert Table((0, 1), levels, values).value([x, y]) == pytest.approx(3.0 * x * y + x + 2.0)


def test_a_table_rounds_widths_up_to_the_alignment() -> None:
    table = Table((0,), ((16, 32, 64),), (1.0, 2.0, 4.0), align=16)
    assert table.value([17]) == table.value([32]) == 2.0
    assert table.value([33]) == table.value([48]) == 3.0
    assert table.value([64]) == 4.0


def test_products_over_the_same_axes_are_joined() -> None:
    dim = Dim(4, ((0, (0, 1, 2, 3, 4)),))
    cost = Cost([dim], [Product(2, (0,)), Product(3, (0,))], 1, 1)
    assert cost.value == 21
    cost.remove(0, 2)
    assert cost.value == 11


def test_latency_without_a_cost_model_is_a_mistake_of_the_caller(net: Graph) -> None:
    with pytest.raises(ValueError, match="cost model"):
        cost_of(net, [], {}, Aim.LATENCY)
