"""Cutting, masking, dropping blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.passes.edit import set_constant
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.verify import max_difference, random_feeds
from edgekit.prune import apply as module
from edgekit.prune.apply import apply, kept_positions, mask, verify
from edgekit.prune.groups import find_groups
from edgekit.prune.plan import DroppedBlock, make_plan
from edgekit.session import open_runner


def make(text: str, weights: dict[str, tuple[int, ...]], constants: dict[str, Any] | None = None) -> Graph:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[1,3,4,4] x) => {text}'
    )
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    arrays |= {name: np.asarray(value, np.int64) for name, value in (constants or {}).items()}
    for name, values in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return infer_shapes(Graph(ir.from_proto(model)))


def residual() -> Graph:
    return make(
        """(float[1,2,4,4] y) {
            a = Conv(x, w0)  b = Conv(a, w1)  c = Relu(b)  d = Conv(c, w2)  e = Add(a, d)
            f = Conv(e, w3)  g = Add(e, f)  y = Conv(g, w4)
        }""",
        {"w0": (6, 3, 1, 1), "w1": (4, 6, 1, 1), "w2": (6, 4, 1, 1), "w3": (6, 6, 1, 1), "w4": (2, 6, 1, 1)},
    )


def test_the_original_stays_as_it_was() -> None:
    graph = residual()
    before = graph.to_bytes()
    groups = find_groups(graph)
    plan = make_plan(graph, groups, {group.name: [0, 2] for group in groups.groups})
    apply(graph, plan)
    mask(graph, plan)
    verify(graph, plan)
    assert graph.to_bytes() == before


def test_what_the_change_says() -> None:
    graph = residual()
    plan = make_plan(graph, find_groups(graph), {"Conv_0": [0, 2], "Conv_1": [1]})
    change = apply(graph, plan).history[-1]
    assert (change.pass_name, change.summary) == ("prune", "7 of 10 units in 2 groups removed")
    assert change.details == {
        "units": 10, "kept": 3, "weights": 5, "dropped": 0, "same_weights": True
    }  # fmt: skip


def test_every_tensor_knows_its_new_shape() -> None:
    graph = residual()
    pruned = apply(graph, make_plan(graph, find_groups(graph), {"Conv_0": [0, 2, 5]}))
    shapes = {node.outputs[0].name: list(node.outputs[0].shape or []) for node in pruned.nodes}
    assert shapes["e"] == [1, 3, 4, 4]
    assert shapes["c"] == [1, 4, 4, 4]
    onnx.checker.check_model(pruned.to_proto(), full_check=True)


def test_zeros_are_where_removed_channels_are_read() -> None:
    graph = residual()
    masked = mask(graph, make_plan(graph, find_groups(graph), {"Conv_1": [1, 3]}))
    before, after = (g.model.graph.initializers for g in (graph, masked))
    expected = array(before["w2"])
    assert expected is not None
    expected = expected.copy()
    expected[:, [0, 2]] = 0
    np.testing.assert_array_equal(array(after["w2"]), expected)
    np.testing.assert_array_equal(array(after["w1"]), array(before["w1"]))


def test_removing_something_that_matters_changes_the_output() -> None:
    graph = residual()
    plan = make_plan(graph, find_groups(graph), {"Conv_0": [1]})
    assert max_difference(graph, apply(graph, plan)) > 0.01


def test_verify_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = residual()
    groups = find_groups(graph)
    plan, other = (make_plan(graph, groups, {"Conv_0": units}) for units in ([1, 2], [1, 3]))
    wrong = mask(graph, other)
    monkeypatch.setattr(module, "mask", lambda *_: wrong)
    with pytest.raises(ModelError, match="output 'y': the pruned network differs from the masked one by"):
        verify(graph, plan)


def test_a_shape_that_two_nodes_share_gets_one_for_each() -> None:
    graph = make(
        """(float[1,2,16] y) {
            a = Conv(x, w0)  b = Conv(x, w1)  c = Reshape(a, s)  d = Reshape(b, s)
            e = MatMul(m, c)  f = MatMul(m, d)  y = Add(e, f)
        }""",
        {"w0": (6, 3, 1, 1), "w1": (6, 3, 1, 1), "m": (1, 2, 6)},
        {"s": [1, 6, 16]},
    )
    split = make(
        """(float[1,4,16] y) {
            a = Conv(x, w0)  b = Conv(x, w1)  c = Reshape(a, s)  d = Reshape(b, s)
            e = MatMul(m, c)  f = MatMul(n, d)  y = Concat<axis=1>(e, f)
        }""",
        {"w0": (6, 3, 1, 1), "w1": (6, 3, 1, 1), "m": (1, 2, 6), "n": (1, 2, 6)},
        {"s": [1, 6, 16]},
    )
    (tied,) = find_groups(graph).groups
    assert {site.tensor for site in tied.producers} == {"w0", "w1"}
    plan = make_plan(split, find_groups(split), {"Conv_0": [0, 1], "Conv_1": [3, 4, 5]})
    assert verify(split, plan) <= 1e-4
    targets = [array(n.inputs[1]) for n in apply(split, plan).nodes if n.op_type == "Reshape"]
    assert [None if t is None else t.tolist() for t in targets] == [[1, 2, 16], [1, 3, 16]]


def test_entries_of_a_target_shape_that_name_no_size_stay() -> None:
    graph = make(
        "(float[1,4] y) { a = Conv(x, w0)  c = Reshape(a, s)  d = Reshape(c, t)  y = Gemm(d, m) }",
        {"w0": (6, 3, 1, 1), "m": (96, 4)},
        {"s": [0, 6, -1], "t": [1, -1]},
    )
    plan = make_plan(graph, find_groups(graph), {"Conv_0": [0, 5]})
    assert verify(graph, plan) <= 1e-4
    targets = [array(n.inputs[1]) for n in apply(graph, plan).nodes if n.op_type == "Reshape"]
    assert [None if t is None else t.tolist() for t in targets] == [[0, 2, -1], [1, -1]]


def test_an_axis_that_comes_down_to_one_position_is_not_squeezed() -> None:
    graph = make(
        "(float[2] y) { a = Conv(x, w0)  p = GlobalAveragePool(a)  q = Squeeze(p)  y = MatMul(q, w1) }",
        {"w0": (6, 3, 1, 1), "w1": (6, 2)},
    )
    plan = make_plan(graph, find_groups(graph), {"Conv_0": [4]})
    assert verify(graph, plan) <= 1e-4
    assert [list(n.outputs[0].shape or []) for n in apply(graph, plan).nodes if n.op_type == "Squeeze"] == [
        [1]
    ]


def test_positions_at_irregular_distances_are_gathered() -> None:
    graph = make(
        "(float[1,2,4,4] y) { a = Conv(x, w0)  b = Slice(a, zero, end, one, two)  c = Conv(b, w1)"
        "  d = Conv(a, w2)  y = Add(c, d) }",
        {"w0": (8, 3, 1, 1), "w1": (2, 4, 1, 1), "w2": (2, 8, 1, 1)},
        {"zero": [0], "end": [8], "one": [1], "two": [2]},
    )
    groups = find_groups(graph)
    assert [group.size for group in groups.groups] == [4, 4]
    even, odd = groups.groups
    assert even.producers[0].positions == ((0,), (2,), (4,), (6,))
    regular = make_plan(graph, groups, {odd.name: [0], even.name: [0, 1, 2]})
    irregular = make_plan(graph, groups, {odd.name: [2], even.name: [0, 1, 3]})
    for plan, ops in ((regular, ["Slice", "Gather"]), (irregular, ["Slice", "Gather"])):
        assert verify(graph, plan) <= 1e-4
        assert [n.op_type for n in apply(graph, plan).nodes if n.op_type in ops] == ops
    straight = make_plan(graph, groups, {odd.name: [1], even.name: [0, 1]})
    assert "Gather" not in {node.op_type for node in apply(graph, straight).nodes}


def test_kept_positions_of_computed_tensors() -> None:
    graph = residual()
    kept = kept_positions(graph, make_plan(graph, find_groups(graph), {"Conv_0": [0, 2, 5]}))
    found = kept.indices("e", 1)
    assert found is not None
    assert found.tolist() == [0, 2, 5]
    assert kept.indices("c", 1) is None
    assert kept.indices("x", 1) is None


def test_a_block_left_out() -> None:
    graph = residual()
    plan = make_plan(graph, find_groups(graph), {"Conv_0": [0, 1, 4]}, [DroppedBlock(input="a", output="e")])
    pruned = apply(graph, plan)
    assert [node.op_type for node in pruned.nodes] == ["Conv", "Conv", "Add", "Conv"]
    assert set(pruned.model.graph.initializers) == {"w0", "w3", "w4"}
    assert verify(graph, plan) <= 1e-4
    assert plan.groups == {"Conv_0": [0, 1, 4]}
    assert "1 blocks left out" in pruned.history[-1].summary
    only = make_plan(graph, find_groups(graph), {}, [DroppedBlock(input="a", output="e")])
    feeds = random_feeds(graph.inputs, 0)
    weights = {name: array(v) for name, v in graph.model.graph.initializers.items()}
    a, c, d = (weights[name][:, :, 0, 0] for name in ("w0", "w3", "w4"))  # type: ignore[index]
    x = np.einsum("oi,nihw->nohw", a, feeds["x"])
    y = np.einsum("oi,nihw->nohw", d, x + np.einsum("oi,nihw->nohw", c, x))
    found = open_runner(apply(graph, only), threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4)


def test_a_block_without_a_shortcut_joins_its_ends() -> None:
    """Left out, the layer before and the one after it share their channels."""
    graph = make(
        "(float[1,2,4,4] y) { a = Conv(x, w0)  b = Conv(a, w1)  y = Conv(b, w2) }",
        {"w0": (6, 3, 1, 1), "w1": (6, 6, 1, 1), "w2": (2, 6, 1, 1)},
    )
    groups = find_groups(graph)
    dropped = [DroppedBlock(input="a", output="b")]
    plan = make_plan(graph, groups, {"Conv_0": [0, 1], "Conv_1": [0, 1]}, dropped)
    assert verify(graph, plan) <= 1e-4
    assert plan.groups == {"Conv_0": [0, 1]}
    with pytest.raises(ModelError, match="loses units that other groups joined with it give up"):
        make_plan(graph, groups, {"Conv_0": [0, 1], "Conv_1": [0, 2]}, dropped)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (("a", "c"), "its ends have shapes"),
        (("a", "nothing"), "no such tensor"),
        (("a", "a"), "no node to leave out"),
        (("e", "y"), "its ends have shapes"),
    ],
)
def test_blocks_that_cannot_be_left_out(block: tuple[str, str], message: str) -> None:
    graph = residual()
    with pytest.raises(ModelError, match=message):
        make_plan(graph, find_groups(graph), {}, [DroppedBlock(input=block[0], output=block[1])])


def test_an_input_cannot_become_the_output() -> None:
    graph = make("(float[1,3,4,4] y) { a = Relu(x)  y = Sigmoid(a) }", {})
    with pytest.raises(ModelError, match="nothing else can take over"):
        make_plan(graph, find_groups(graph), {}, [DroppedBlock(input="x", output="y")])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_blocks_behind_one_another_can_go_in_any_order(order: tuple[int, int]) -> None:
    graph = residual()
    blocks = [DroppedBlock(input="a", output="e"), DroppedBlock(input="e", output="g")]
    plan = make_plan(graph, find_groups(graph), {}, [blocks[i] for i in order])
    short = apply(graph, plan)
    assert [node.op_type for node in short.nodes] == ["Conv", "Conv"]
    direct = make(
        "(float[1,2,4,4] y) { a = Conv(x, w0) y = Conv(a, w4) }", {"w0": (6, 3, 1, 1), "w4": (2, 6, 1, 1)}
    )
    for name in ("w0", "w4"):
        weight = array(graph.model.graph.initializers[name])
        assert weight is not None
        set_constant(direct.model.graph.initializers[name], weight)
    assert max_difference(short, direct) < 1e-5
