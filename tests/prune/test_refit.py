"""Refitting layers: what is redundant comes back exactly, and nothing gets worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph
from edgekit.passes.edit import set_constant
from edgekit.passes.verify import max_difference
from edgekit.prune.apply import apply
from edgekit.prune.groups import find_groups
from edgekit.prune.plan import DroppedBlock, make_plan
from edgekit.prune.refit import RefitOptions, refit

Array = np.ndarray[Any, Any]
#: A ridge small enough not to be seen.
EXACT = RefitOptions(ridge=1e-7, search=False)


def test_a_layer_comes_back_exactly(one_layer: Graph, nets: Any) -> None:
    teacher = one_layer
    names = [n for n in ("w", "b") if n in teacher.model.graph.initializers]
    student = nets.disturbed(teacher, *names)
    assert max_difference(teacher, student) > 0.1
    found = refit(student, teacher, None, nets.feeds_for(teacher, 40), options=EXACT)
    assert max_difference(teacher, found.graph) < 1e-3
    (layer,) = found.layers
    assert layer.before > 1e-3 > 1e-6 > layer.after
    assert layer.op == teacher.model.graph.node(0).op_type


def test_the_input_is_left_as_it_was(nets: Any) -> None:
    teacher = nets.layers["plain"]
    student = nets.disturbed(teacher, "w")
    before = student.to_bytes()
    refit(student, teacher, None, nets.feeds_for(teacher), options=EXACT)
    assert student.to_bytes() == before


def test_same_seed_same_weights(nets: Any) -> None:
    teacher = nets.layers["plain"]
    student = nets.disturbed(teacher, "w")
    runs = [
        refit(student, teacher, None, nets.feeds_for(teacher), positions=7).graph.to_bytes() for _ in range(2)
    ]
    assert runs[0] == runs[1]
    other = refit(student, teacher, None, nets.feeds_for(teacher), positions=7, seed=1).graph.to_bytes()
    assert other != runs[0]


def pruned(teacher: Graph, group: str, keep: list[int]) -> tuple[Graph, Any]:
    groups = find_groups(teacher)
    name = next(g.name for g in groups.groups if any(s.tensor == group for s in g.producers))
    plan = make_plan(teacher, groups, {name: keep})
    return apply(teacher, plan), plan


def test_redundant_channels_can_go(nets: Any) -> None:
    teacher = nets.wide_then_narrow(redundant=True)
    student, plan = pruned(teacher, "a", [0, 1, 2, 3])
    assert max_difference(teacher, student) > 0.1
    found = refit(student, teacher, plan, nets.feeds_for(teacher, 40), options=EXACT, activation_steps=0)
    before, after = ([getattr(layer, k) for layer in found.layers] for k in ("before", "after"))
    assert after[1] < 0.02 < before[1]  # what is left is the border, where padding makes the bias show
    assert max_difference(teacher, found.graph) < 0.2 * max_difference(teacher, student)


def test_inputs_pruned_outputs_pruned_keep_goes_by_the_plan(nets: Any) -> None:
    teacher = nets.wide_then_narrow(redundant=False)
    student, plan = pruned(teacher, "b", [1, 4, 5])
    found = refit(student, teacher, plan, nets.feeds_for(teacher), options=EXACT)
    # The second layer's kept outputs are the teacher's own: there is nothing to change.
    by_node = {layer.node: layer for layer in found.layers}
    assert by_node["second"].before < 1e-9
    assert by_node["second"].blend == 0
    assert by_node["third"].after < by_node["third"].before


def test_without_the_plan_a_narrow_layer_is_skipped_and_said_so(nets: Any) -> None:
    teacher = nets.wide_then_narrow(redundant=False)
    student, _ = pruned(teacher, "b", [1, 4, 5])
    found = refit(student, teacher, None, nets.feeds_for(teacher))
    assert [(r.where, "not known" in r.reason) for r in found.skipped] == [("second", True)]
    assert found.graph.history[-1].refused == found.skipped


def test_never_worse_on_held_out_rows(nets: Any) -> None:
    """With fewer rows than unknowns and a tiny ridge a fit would run wild."""
    teacher = nets.wide_then_narrow(redundant=False)
    student = nets.disturbed(teacher, "a", "b", "c")
    found = refit(student, teacher, None, nets.feeds_for(teacher, 5), positions=4, ridge=1e-9, search=False)
    assert len(found.layers) == 3
    for layer in found.layers:
        assert layer.after <= layer.before
        assert (layer.blend == 0) == (layer.after == layer.before)


def test_noise_is_not_fitted(nets: Any) -> None:
    """Where the weights are right already, they stay bit for bit."""
    teacher = nets.wide_then_narrow(redundant=False)
    found = refit(teacher, teacher, None, nets.feeds_for(teacher))
    assert all(layer.blend == 0 for layer in found.layers)
    assert max_difference(teacher, found.graph) == 0


def test_a_branch_makes_up_for_the_other(nets: Any) -> None:
    """The shortcut is spoilt and frozen (its weight is shared); the branch aims at the sum."""
    teacher = nets.residual()
    student = nets.disturbed(teacher, "a")
    node = next(n for n in student.nodes if n.name == "one")
    twin = ir.node("Conv", list(node.inputs), name="twin")
    twin.outputs[0].name = "unused"
    student.model.graph.append(twin)
    feeds = nets.feeds_for(teacher, 40)
    apart = refit(student, teacher, None, feeds, residual=False)
    joined = refit(student, teacher, None, feeds)
    assert "shared by 2" in joined.skipped[0].reason
    assert joined.layers[-1].aim == "sum, Relu"
    assert apart.layers[-1].aim == "output, identity"
    assert max_difference(teacher, joined.graph) < 0.6 * max_difference(teacher, apart.graph)


@pytest.mark.parametrize("op", ["Relu", "SiLU", "none"])
def test_the_layer_before_a_dropped_residual_block_does_its_work(nets: Any, op: str) -> None:
    """x - conv - f - [conv + input - f] - conv, the middle left out."""

    def act(source: str, name: str) -> list[Any]:
        if op == "SiLU":
            gate = helper.make_node("Sigmoid", [source], [f"{name}_gate"], name=f"{name}_sigmoid")
            return [gate, helper.make_node("Mul", [source, f"{name}_gate"], [name], name=f"{name}_mul")]
        return [helper.make_node(op, [source], [name], name=f"{name}_f")] if op == "Relu" else []

    before, after = ("pf", "sf") if op != "none" else ("p", "s")
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], name="one"),
        *act("p", "pf"),
        helper.make_node("Conv", [before, "b", "bb"], ["q"], name="two"),
        helper.make_node("Add", [before, "q"], ["s"], name="join"),
        *act("s", "sf"),
        helper.make_node("Conv", [after, "c", "cb"], ["y"], name="three"),
    ]
    arrays = {
        "a": nets.normal(1, 8, 6, 1, 1),
        "b": nets.normal(3, 8, 8, 1, 1) / 12,
        "c": nets.normal(5, 8, 8, 1, 1),
    }
    arrays |= {name: nets.normal(seed, 8) for seed, name in ((2, "ab"), (4, "bb"), (6, "cb"))}
    teacher = nets.build(nodes, {"x": (1, 6, 8, 8)}, "y", arrays)
    plan = make_plan(teacher, find_groups(teacher), {}, [DroppedBlock(input=before, output=after)])
    student = apply(teacher, plan)
    found = refit(student, teacher, plan, nets.feeds_for(teacher, 30))
    first = found.layers[0]
    assert first.node == "one"
    assert first.after < 0.2 * first.before
    if op == "none":  # a linear block: nothing is lost
        assert max_difference(teacher, found.graph) < 0.05
    # Not told of the block, the layer has nothing to change.
    alone = refit(student, teacher, plan.model_copy(update={"dropped": []}), nets.feeds_for(teacher, 30))
    assert alone.layers[0].blend == 0


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "HardSwish"])
def test_steps_through_the_activation_help(nets: Any, op: str) -> None:
    teacher = nets.residual(op)
    student = nets.disturbed(teacher, "a", "b")
    student.model.graph.initializers.pop("unused", None)
    feeds = nets.feeds_for(teacher, 40)
    errors = [
        refit(student, teacher, None, feeds, activation_steps=steps).layers[-1].after for steps in (0, 20)
    ]
    assert errors[1] <= errors[0]


def test_masks_are_kept_and_the_rest_is_solved(nets: Any) -> None:
    """Half of the teacher's weights are zero: with the right mask and wrong values it comes back whole."""
    teacher = nets.layers["plain"].copy()
    mask = np.asarray(np.random.default_rng(0).random(nets.constant(teacher, "w").shape) < 0.5)
    set_constant(teacher.model.graph.initializers["w"], nets.constant(teacher, "w") * mask)
    student = nets.disturbed(teacher, "w")
    set_constant(student.model.graph.initializers["w"], nets.constant(student, "w") * mask)
    found = refit(student, teacher, None, nets.feeds_for(teacher, 40), masks={"w": mask}, options=EXACT)
    new = nets.constant(found.graph, "w")
    assert (new[~mask] == 0).all()
    assert (new[mask] != 0).all()
    assert max_difference(teacher, found.graph) < 1e-3


def test_masked_weights_do_better_than_cut_ones(nets: Any) -> None:
    teacher = nets.wide_then_narrow(redundant=True)
    weight = nets.constant(teacher, "b")
    mask = np.abs(weight) > np.median(np.abs(weight))
    student = teacher.copy()
    set_constant(student.model.graph.initializers["b"], np.where(mask, weight, 0).astype(np.float32))
    found = refit(student, teacher, None, nets.feeds_for(teacher, 40), masks={"b": mask})
    layer = next(layer for layer in found.layers if layer.node == "second")
    assert layer.after < 0.5 * layer.before


def test_a_convolution_without_bias_gets_one_where_that_helps(nets: Any) -> None:
    teacher = nets.layers["plain"]
    student = teacher.copy()
    node = student.model.graph.node(0)
    node.resize_inputs(2)
    student.model.graph.initializers.pop("b")
    found = refit(student, teacher, None, nets.feeds_for(teacher, 40), options=EXACT)
    assert found.graph.model.graph.node(0).inputs[2] is not None
    assert max_difference(teacher, found.graph) < 1e-3


def test_a_batch_normalization_takes_the_bias(nets: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], name="bn"),
    ]
    arrays = {"w": nets.normal(1, 4, 3, 1, 1), "v": np.ones(4, np.float32)}
    arrays |= {name: nets.normal(seed, 4) for seed, name in enumerate("sbm", start=2)}
    teacher = nets.build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)
    student = nets.disturbed(teacher, "w")
    # Inputs of mean 1: a wrong weight shifts the mean, too.
    feeds = [{"x": f["x"] + 1} for f in nets.feeds_for(teacher, 40)]
    found = refit(student, teacher, None, feeds, ridge=0.1, search=False)
    assert len(next(found.graph.nodes).inputs) == 2
    assert not np.allclose(nets.constant(found.graph, "m"), arrays["m"])
    assert found.layers[0].after < 0.1 * found.layers[0].before


def test_a_matmul_uses_the_bias_that_is_added_behind_it(nets: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["c"], name="product"),
        helper.make_node("Add", ["c", "b"], ["y"], name="bias"),
    ]
    teacher = nets.build(nodes, {"x": (1, 9, 6)}, "y", {"w": nets.normal(1, 6, 5), "b": nets.normal(2, 5)})
    student = nets.disturbed(teacher, "w", "b")
    found = refit(student, teacher, None, nets.feeds_for(teacher, 40), options=EXACT)
    assert max_difference(teacher, found.graph) < 1e-3


def test_a_second_sweep_and_progress(nets: Any) -> None:
    teacher = nets.wide_then_narrow(redundant=False)
    student = nets.disturbed(teacher, "a", "b")
    seen: list[tuple[int, int | None]] = []
    found = refit(
        student, teacher, None, nets.feeds_for(teacher), sweeps=2, progress=lambda a, b: seen.append((a, b))
    )
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert found.graph.history[-1].pass_name == "refit"
    assert len(found.graph.history[-1].details["layers"]) == 3


def test_skipped_layers_say_why(nets: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["p"], name="computed"),
        helper.make_node("Gemm", ["p", "w"], ["q"], name="scaled", alpha=2.0),
        helper.make_node("Gemm", ["q", "v"], ["r"], name="turned", transA=1),
        helper.make_node("Gemm", ["r", "u"], ["s"], name="good"),
        helper.make_node("MatMul", ["s", "z"], ["y"], name="shared"),
        helper.make_node("MatMul", ["y", "z"], ["y2"], name="shared2"),
    ]
    arrays = {name: nets.normal(i, 4, 4) for i, name in enumerate("wvuz")}
    graph = nets.build(nodes, {"x": (4, 4)}, "y2", arrays)
    found = refit(graph, graph, None, nets.feeds_for(graph))
    reasons = {r.where: r.reason for r in found.skipped}
    assert list(reasons) == ["computed", "scaled", "turned", "shared", "shared2"]
    assert "computed" in reasons["computed"]
    assert "alpha" in reasons["scaled"]
    assert "transposed" in reasons["turned"]
    assert [layer.node for layer in found.layers] == ["good"]


def test_errors(nets: Any) -> None:
    teacher = nets.layers["plain"]
    feeds = nets.feeds_for(teacher, 5)
    with pytest.raises(DataError, match="no samples"):
        refit(teacher, teacher, None, [])
    with pytest.raises(UsageError, match=r"'ridge'.*above 0"):
        refit(teacher, teacher, None, feeds, ridge=0.0)
    with pytest.raises(UsageError, match=r"'positions'.*1 or more"):
        RefitOptions(positions=0)
    with pytest.raises(UsageError, match=r"'memory_mb'.*16 or more"):
        RefitOptions(memory_mb=1)
    with pytest.raises(UsageError, match=r"'focus'.*from 0 to 1"):
        RefitOptions(focus=1.5)
    with pytest.raises(UsageError, match=r"no option 'rigde'.*ridge"):
        refit(teacher, teacher, None, feeds, rigde=1)
    with pytest.raises(UsageError, match="no weight 'nix'"):
        refit(teacher, teacher, None, feeds, masks={"nix": np.ones(1, bool)})
    with pytest.raises(UsageError, match=r"mask is \[1\], the weight \[5, 3, 3, 3\]"):
        refit(teacher, teacher, None, feeds, masks={"w": np.ones(1, bool)})
    with pytest.raises(ModelError, match="inputs are"):
        refit(teacher, nets.layers["gemm"], None, feeds)
    empty = nets.build([helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": (1, 3)}, "y", {})
    with pytest.raises(ModelError, match="no layer to refit"):
        refit(empty, empty, None, [{"x": np.ones((1, 3), np.float32)}])
