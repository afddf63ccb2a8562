"""The plan file, its checks, and two prunings in a row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError, UsageError
from edgekit.graph import Change, Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.verify import max_difference
from edgekit.prune.apply import apply, verify
from edgekit.prune.groups import find_groups
from edgekit.prune.plan import DroppedBlock, PruningPlan, TensorKeep, compose, make_plan


def net(width: int = 6, seed: int = 0) -> Graph:
    """conv - relu - conv - relu - conv, inner widths ``width`` and 4."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> net (float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, one_weight, one_bias)  b = Relu(a)  c = Conv(b, two_weight)  d = Relu(c)
            y = Conv(d, three_weight)
        }"""
    )
    for node in model.graph.node:
        node.input[:] = [name.replace("_", ".") for name in node.input]
    rng = np.random.default_rng(seed)
    shapes = {"one.weight": (width, 3, 1, 1), "one.bias": (width,), "two.weight": (4, width, 1, 1),
              "three.weight": (2, 4, 1, 1)}  # fmt: skip
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return infer_shapes(Graph(ir.from_proto(model)))


def test_what_a_plan_says() -> None:
    graph = net()
    plan = make_plan(graph, find_groups(graph), {"one": [5, 0, 2, 2]})
    assert plan.groups == {"one": [0, 2, 5]}
    assert plan.sizes == {"one": 6}
    assert plan.model_sha256 == graph.sha256()
    assert plan.tensors == {
        "one.weight": TensorKeep(shape=[6, 3, 1, 1], keep={0: [0, 2, 5]}),
        "one.bias": TensorKeep(shape=[6], keep={0: [0, 2, 5]}),
        "two.weight": TensorKeep(shape=[4, 6, 1, 1], keep={1: [0, 2, 5]}),
    }


def test_nothing_to_remove() -> None:
    graph = net()
    plan = make_plan(graph, find_groups(graph), {"one": range(6)})
    assert not plan.tensors
    assert max_difference(apply(graph, plan), graph) == 0


def test_a_plan_survives_the_file(tmp_path: Path) -> None:
    graph = net()
    groups = find_groups(graph)
    first = make_plan(graph, groups, {"one": [1, 2, 4], "two": [0, 3]})
    smaller = apply(graph, first)
    plan = compose(first, make_plan(smaller, find_groups(smaller), {"one": [2]}))
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no pruning plan"),
        ("{}", "is no pruning plan: model_sha256: Field required"),
        ('{"format": 2, "model_sha256": "", "groups": {}, "sizes": {}, "tensors": {}}', "format"),
        ('{"model_sha256": "", "groups": {}, "sizes": {}, "tensors": {}, "extra": 1}', "extra"),
        ('{"model_sha256": "", "groups": {"a": ["x"]}, "sizes": {}, "tensors": {}}', r"groups\.a\.0"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        PruningPlan.load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        PruningPlan.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nine": [0]}, r"nine: no such channel group \(valid: one, two\)"),
        ({"one": []}, "keeps none of 6 units; at least one has to stay"),
        ({"one": [0, 6]}, "has no unit 6; it has 6"),
        ({"one": [-1, 2]}, "has no unit -1"),
    ],
)
def test_units_that_do_not_exist(keep: dict[str, list[int]], message: str) -> None:
    graph = net()
    with pytest.raises(UsageError, match=message):
        make_plan(graph, find_groups(graph), keep)


def test_the_plan_of_another_network_is_refused() -> None:
    graph = net()
    plan = make_plan(graph, find_groups(graph), {"one": [0]})
    with pytest.raises(
        ModelError, match=r"does not fit this network: 'one\.weight' has shape \(8, 3, 1, 1\)"
    ):
        apply(net(width=8), plan)


def broken(plan: PruningPlan, **tensors: TensorKeep | None) -> PruningPlan:
    named = {name.replace("_", "."): keep for name, keep in tensors.items()}
    kept = {name: keep for name, keep in {**plan.tensors, **named}.items() if keep is not None}
    return plan.model_copy(update={"tensors": kept})


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("two_weight", None, "in 'two.weight' other channels belong together"),
        ("one_bias", TensorKeep(shape=[6], keep={0: [1, 2]}), "other channels belong together"),
        ("one_bias", TensorKeep(shape=[6], keep={0: [9]}), "has no such indices"),
        ("one_bias", TensorKeep(shape=[6], keep={1: [0]}), "has no such indices"),
        ("none", TensorKeep(shape=[6], keep={0: [0]}), "it has no tensor 'none'"),
        ("three_weight", TensorKeep(shape=[2, 4, 1, 1], keep={0: [0]}), "the output 'y', whose shape stays"),
        ("one_weight", TensorKeep(shape=[6, 3, 1, 1], keep={0: []}), "nothing of axis 0 would stay"),
        ("one_weight", TensorKeep(shape=[6, 3, 1, 1], keep={2: []}), "keeps its size"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(name: str, keep: TensorKeep | None, message: str) -> None:
    graph = net()
    plan = make_plan(graph, find_groups(graph), {"one": [0, 2]})
    with pytest.raises(ModelError, match=message):
        apply(graph, broken(plan, **{name: keep}))


def test_a_plan_fits_the_same_network_with_other_weights() -> None:
    plan = make_plan(net(), find_groups(net()), {"one": [0, 2]})
    other = net(seed=1)
    pruned = apply(other, plan)
    assert verify(other, plan) <= 1e-4
    assert pruned.history[-1].details["same_weights"] is False
    assert "other weights" in pruned.history[-1].summary


def test_two_prunings_in_a_row() -> None:
    graph = net()
    first = make_plan(graph, find_groups(graph), {"one": [1, 2, 4, 5]})
    smaller = apply(graph, first)
    second = make_plan(smaller, find_groups(smaller), {"one": [0, 3], "two": [1, 2]})
    both = compose(first, second)
    assert both.groups == {"one": [1, 5], "two": [1, 2]}
    assert both.sizes == {"one": 6, "two": 4}
    assert both.tensors["two.weight"] == TensorKeep(shape=[4, 6, 1, 1], keep={1: [1, 5], 0: [1, 2]})
    assert max_difference(apply(graph, both), apply(smaller, second)) == 0
    assert verify(graph, both) <= 1e-4


def test_plans_that_do_not_follow_each_other() -> None:
    graph = net()
    plan = make_plan(graph, find_groups(graph), {"one": [1, 2]})
    with pytest.raises(ModelError, match=r"expects shape \[6, 3, 1, 1\], the first leaves \[2, 3, 1, 1\]"):
        compose(plan, plan)


def test_dropped_blocks_add_up() -> None:
    base = make_plan(net(), find_groups(net()), {})
    one, two = (
        base.model_copy(update={"dropped": [DroppedBlock(input=a, output=b)]}) for a, b in ("ab", "cd")
    )
    both = compose(one, two)
    assert both.dropped == [DroppedBlock(input="a", output="b"), DroppedBlock(input="c", output="d")]
    assert [len(stage.dropped) for stage in both.stages] == [1, 1]


def test_weights_that_capture_laid_out_anew() -> None:
    change = Change("fold_constants", "", details={"rearranged_weights": {"one.weight": "Transpose[1, 0]"}})
    graph = net().with_change(change)
    plan = make_plan(graph, find_groups(graph), {"one": [0]})
    assert plan.tensors["one.weight"].rearranged == "Transpose[1, 0]"
    assert not plan.tensors["one.bias"].rearranged
