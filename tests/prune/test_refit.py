"""Refitting layers: what is redundant comes back exactly, and nothing gets worse."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph, array
from edgekit.passes.edit import set_constant
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.verify import max_difference
from edgekit.prune.apply import apply
from edgekit.prune.groups import find_groups
from edgekit.prune.plan import DroppedBlock, make_plan
from edgekit.prune.refit import RefitOptions, refit
from edgekit.prune.refit_focus import Focus, find_focus
from edgekit.prune.refit_layers import find_layers
from edgekit.prune.refit_stream import Stream
from edgekit.session import open_runner
from edgekit.train.match import Match, OutputKind

Array = np.ndarray[Any, Any]
#: A ridge small enough not to be seen.
EXACT = RefitOptions(ridge=1e-7, search=False)


def build(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], output: str, arrays: dict[str, Array]
) -> Graph:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    out = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(v, n) for n, v in arrays.items()]
    graph = helper.make_graph(nodes, "net", infos, out, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def constant(graph: Graph, name: str) -> Array:
    found = array(graph.model.graph.initializers[name])
    assert found is not None
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds_for(graph: Graph, count: int = 20, seed: int = 5) -> list[dict[str, Array]]:
    return [{i.name: normal(seed + k, *i.shape) for i in graph.inputs} for k in range(count)]


def disturbed(graph: Graph, *names: str, seed: int = 9) -> Graph:
    """The same with noise on some weights."""
    result = graph.copy()
    for name in names:
        value = result.model.graph.initializers[name]
        old = array(value)
        assert old is not None
        set_constant(value, old + 0.3 * normal(seed, *old.shape))
    return result


def single(op: str, weight: Array, x: tuple[int, ...], *, bias: int = 0, **attributes: Any) -> Graph:
    """One node ``y = op(x, w, b)``."""
    arrays = {"w": weight} | ({"b": normal(2, bias)} if bias else {})
    node = helper.make_node(op, ["x", *arrays], ["y"], name="node", **attributes)
    return build([node], {"x": x}, "y", arrays)


CONVS: dict[str, Graph] = {
    "plain": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5, pads=[1, 1, 1, 1]),
    "no padding": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5),
    "stride": single("Conv", normal(1, 5, 3, 3, 3), (1, 3, 9, 8), bias=5, strides=[2, 1], pads=[1, 0, 1, 2]),
    "dilation": single(
        "Conv", normal(1, 5, 3, 3, 2), (1, 3, 9, 8), bias=5, dilations=[2, 3], pads=[2, 1, 0, 1]
    ),
    "grouped": single("Conv", normal(1, 6, 2, 3, 3), (1, 4, 9, 8), bias=6, group=2, pads=[1, 1, 1, 1]),
    "depthwise": single("Conv", normal(1, 4, 1, 3, 3), (1, 4, 9, 8), bias=4, group=4, pads=[1, 1, 1, 1]),
    "depthwise, twofold": single("Conv", normal(1, 8, 1, 3, 3), (1, 4, 9, 8), group=4),
    "one dimension": single("Conv", normal(1, 5, 3, 3), (1, 3, 40), bias=5, strides=[2], pads=[1, 1]),
    "three dimensions": single("Conv", normal(1, 2, 2, 2, 2, 2), (1, 2, 5, 6, 4), bias=2),
    "transposed": single("ConvTranspose", normal(1, 3, 5, 3, 3), (1, 3, 7, 6), bias=5, strides=[2, 2]),
    "transposed, padded": single(
        "ConvTranspose", normal(1, 3, 5, 4, 3), (1, 3, 7, 6), bias=5, strides=[2, 3], pads=[1, 0, 2, 1],
        dilations=[1, 2], output_padding=[1, 0],
    ),
    "transposed, depthwise": single(
        "ConvTranspose", normal(1, 4, 1, 2, 2), (1, 4, 6, 6), bias=4, strides=[2, 2], group=4
    ),
    "gemm": single("Gemm", normal(1, 5, 7), (1, 7), bias=5, transB=1),
    "gemm, not transposed": single("Gemm", normal(1, 7, 5), (1, 7), bias=5),
    "matmul": single("MatMul", normal(1, 7, 5), (1, 11, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_a_layer_comes_back_exactly(name: str) -> None:
    teacher = CONVS[name]
    names = [n for n in ("w", "b") if n in teacher.model.graph.initializers]
    student = disturbed(teacher, *names)
    assert max_difference(teacher, student) > 0.1
    found = refit(student, teacher, None, feeds_for(teacher, 40), options=EXACT)
    assert max_difference(teacher, found.graph) < 1e-3
    (layer,) = found.layers
    assert layer.before > 1e-3 > 1e-6 > layer.after
    assert layer.op == teacher.model.graph.node(0).op_type


def test_the_input_is_left_as_it_was() -> None:
    teacher = CONVS["plain"]
    student = disturbed(teacher, "w")
    before = student.to_bytes()
    refit(student, teacher, None, feeds_for(teacher), options=EXACT)
    assert student.to_bytes() == before


def test_same_seed_same_weights() -> None:
    teacher = CONVS["plain"]
    student = disturbed(teacher, "w")
    runs = [refit(student, teacher, None, feeds_for(teacher), positions=7).graph.to_bytes() for _ in range(2)]
    assert runs[0] == runs[1]
    other = refit(student, teacher, None, feeds_for(teacher), positions=7, seed=1).graph.to_bytes()
    assert other != runs[0]


def wide_then_narrow(redundant: bool) -> Graph:
    """x [1, 3, 8, 8] - conv to 8 - conv to 6 - conv to 4; when redundant, 8 channels span 4."""
    first = normal(1, 8, 3, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], name="first"),
        helper.make_node("Conv", ["p", "b"], ["q"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["q"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "c", "cb"], ["y"], name="third"),
    ]
    if redundant:  # three inputs and a constant span all eight channels
        first[4:] = np.tensordot(normal(8, 4, 4), first[:4], 1)
    arrays = {
        "a": first, "ab": normal(2, 8), "b": normal(3, 6, 8, 3, 3),
        "c": normal(4, 4, 6, 1, 1), "cb": normal(5, 4),
    }  # fmt: skip
    return build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)


def pruned(teacher: Graph, group: str, keep: list[int]) -> tuple[Graph, Any]:
    groups = find_groups(teacher)
    name = next(g.name for g in groups.groups if any(s.tensor == group for s in g.producers))
    plan = make_plan(teacher, groups, {name: keep})
    return apply(teacher, plan), plan


def test_redundant_channels_can_go() -> None:
    teacher = wide_then_narrow(redundant=True)
    student, plan = pruned(teacher, "a", [0, 1, 2, 3])
    assert max_difference(teacher, student) > 0.1
    found = refit(student, teacher, plan, feeds_for(teacher, 40), options=EXACT, activation_steps=0)
    before, after = ([getattr(layer, k) for layer in found.layers] for k in ("before", "after"))
    assert after[1] < 0.02 < before[1]  # what is left is the border, where padding makes the bias show
    assert max_difference(teacher, found.graph) < 0.2 * max_difference(teacher, student)


def test_inputs_pruned_outputs_pruned_keep_goes_by_the_plan() -> None:
    teacher = wide_then_narrow(redundant=False)
    student, plan = pruned(teacher, "b", [1, 4, 5])
    found = refit(student, teacher, plan, feeds_for(teacher), options=EXACT)
    # The second layer's kept outputs are the teacher's own: there is nothing to change.
    by_node = {layer.node: layer for layer in found.layers}
    assert by_node["second"].before < 1e-9
    assert by_node["second"].blend == 0
    assert by_node["third"].after < by_node["third"].before


def test_without_the_plan_a_narrow_layer_is_skipped_and_said_so() -> None:
    teacher = wide_then_narrow(redundant=False)
    student, _ = pruned(teacher, "b", [1, 4, 5])
    found = refit(student, teacher, None, feeds_for(teacher))
    assert [(r.where, "not known" in r.reason) for r in found.skipped] == [("second", True)]
    assert found.graph.history[-1].refused == found.skipped


def test_never_worse_on_held_out_rows() -> None:
    """With fewer rows than unknowns and a tiny ridge a fit would run wild."""
    teacher = wide_then_narrow(redundant=False)
    student = disturbed(teacher, "a", "b", "c")
    found = refit(student, teacher, None, feeds_for(teacher, 5), positions=4, ridge=1e-9, search=False)
    assert len(found.layers) == 3
    for layer in found.layers:
        assert layer.after <= layer.before
        assert (layer.blend == 0) == (layer.after == layer.before)


def test_noise_is_not_fitted() -> None:
    """Where the weights are right already, they stay bit for bit."""
    teacher = wide_then_narrow(redundant=False)
    found = refit(teacher, teacher, None, feeds_for(teacher))
    assert all(layer.blend == 0 for layer in found.layers)
    assert max_difference(teacher, found.graph) == 0


def residual(op: str = "Relu") -> Graph:
    """y = f(conv1(x) + conv3(f(conv2(x))))."""
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], name="one"),
        helper.make_node("Conv", ["x", "b", "bb"], ["q"], name="two"),
        helper.make_node("Relu", ["q"], ["r"], name="act"),
        helper.make_node("Conv", ["r", "c", "cb"], ["s"], name="three"),
        helper.make_node("Add", ["p", "s"], ["t"], name="join"),
        helper.make_node(op, ["t"], ["y"], name="out"),
    ]
    arrays = {
        "a": normal(1, 4, 3, 1, 1), "ab": normal(2, 4), "b": normal(3, 64, 3, 1, 1), "bb": normal(4, 64),
        "c": normal(5, 4, 64, 1, 1) / 8, "cb": normal(6, 4),
    }  # fmt: skip
    return build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)


def test_a_branch_makes_up_for_the_other() -> None:
    """The shortcut is spoilt and frozen (its weight is shared); the branch aims at the sum."""
    teacher = residual()
    student = disturbed(teacher, "a")
    node = next(n for n in student.nodes if n.name == "one")
    twin = ir.node("Conv", list(node.inputs), name="twin")
    twin.outputs[0].name = "unused"
    student.model.graph.append(twin)
    feeds = feeds_for(teacher, 40)
    apart = refit(student, teacher, None, feeds, residual=False)
    joined = refit(student, teacher, None, feeds)
    assert "shared by 2" in joined.skipped[0].reason
    assert joined.layers[-1].aim == "sum, Relu"
    assert apart.layers[-1].aim == "output, identity"
    assert max_difference(teacher, joined.graph) < 0.6 * max_difference(teacher, apart.graph)


@pytest.mark.parametrize("op", ["Relu", "SiLU", "none"])
def test_the_layer_before_a_dropped_residual_block_does_its_work(op: str) -> None:
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
    arrays = {"a": normal(1, 8, 6, 1, 1), "b": normal(3, 8, 8, 1, 1) / 12, "c": normal(5, 8, 8, 1, 1)}
    arrays |= {name: normal(seed, 8) for seed, name in ((2, "ab"), (4, "bb"), (6, "cb"))}
    teacher = build(nodes, {"x": (1, 6, 8, 8)}, "y", arrays)
    plan = make_plan(teacher, find_groups(teacher), {}, [DroppedBlock(input=before, output=after)])
    student = apply(teacher, plan)
    found = refit(student, teacher, plan, feeds_for(teacher, 30))
    first = found.layers[0]
    assert first.node == "one"
    assert first.after < 0.2 * first.before
    if op == "none":  # a linear block: nothing is lost
        assert max_difference(teacher, found.graph) < 0.05
    # Not told of the block, the layer has nothing to change.
    alone = refit(student, teacher, plan.model_copy(update={"dropped": []}), feeds_for(teacher, 30))
    assert alone.layers[0].blend == 0


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "HardSwish"])
def test_steps_through_the_activation_help(op: str) -> None:
    teacher = residual(op)
    student = disturbed(teacher, "a", "b")
    student.model.graph.initializers.pop("unused", None)
    feeds = feeds_for(teacher, 40)
    errors = [
        refit(student, teacher, None, feeds, activation_steps=steps).layers[-1].after for steps in (0, 20)
    ]
    assert errors[1] <= errors[0]


def test_masks_are_kept_and_the_rest_is_solved() -> None:
    """Half of the teacher's weights are zero: with the right mask and wrong values it comes back whole."""
    teacher = CONVS["plain"].copy()
    mask = np.asarray(np.random.default_rng(0).random(constant(teacher, "w").shape) < 0.5)
    set_constant(teacher.model.graph.initializers["w"], constant(teacher, "w") * mask)
    student = disturbed(teacher, "w")
    set_constant(student.model.graph.initializers["w"], constant(student, "w") * mask)
    found = refit(student, teacher, None, feeds_for(teacher, 40), masks={"w": mask}, options=EXACT)
    new = constant(found.graph, "w")
    assert (new[~mask] == 0).all()
    assert (new[mask] != 0).all()
    assert max_difference(teacher, found.graph) < 1e-3


def test_masked_weights_do_better_than_cut_ones() -> None:
    teacher = wide_then_narrow(redundant=True)
    weight = constant(teacher, "b")
    mask = np.abs(weight) > np.median(np.abs(weight))
    student = teacher.copy()
    set_constant(student.model.graph.initializers["b"], np.where(mask, weight, 0).astype(np.float32))
    found = refit(student, teacher, None, feeds_for(teacher, 40), masks={"b": mask})
    layer = next(layer for layer in found.layers if layer.node == "second")
    assert layer.after < 0.5 * layer.before


def test_a_convolution_without_bias_gets_one_where_that_helps() -> None:
    teacher = CONVS["plain"]
    student = teacher.copy()
    node = student.model.graph.node(0)
    node.resize_inputs(2)
    student.model.graph.initializers.pop("b")
    found = refit(student, teacher, None, feeds_for(teacher, 40), options=EXACT)
    assert found.graph.model.graph.node(0).inputs[2] is not None
    assert max_difference(teacher, found.graph) < 1e-3


def test_a_batch_normalization_takes_the_bias() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], name="bn"),
    ]
    arrays = {"w": normal(1, 4, 3, 1, 1), "v": np.ones(4, np.float32)}
    arrays |= {name: normal(seed, 4) for seed, name in enumerate("sbm", start=2)}
    teacher = build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)
    student = disturbed(teacher, "w")
    # Inputs of mean 1: a wrong weight shifts the mean, too.
    feeds = [{"x": f["x"] + 1} for f in feeds_for(teacher, 40)]
    found = refit(student, teacher, None, feeds, ridge=0.1, search=False)
    assert len(next(found.graph.nodes).inputs) == 2
    assert not np.allclose(constant(found.graph, "m"), arrays["m"])
    assert found.layers[0].after < 0.1 * found.layers[0].before


def test_a_matmul_uses_the_bias_that_is_added_behind_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["c"], name="product"),
        helper.make_node("Add", ["c", "b"], ["y"], name="bias"),
    ]
    teacher = build(nodes, {"x": (1, 9, 6)}, "y", {"w": normal(1, 6, 5), "b": normal(2, 5)})
    student = disturbed(teacher, "w", "b")
    found = refit(student, teacher, None, feeds_for(teacher, 40), options=EXACT)
    assert max_difference(teacher, found.graph) < 1e-3


def test_little_memory_gives_the_same_weights() -> None:
    """Nothing can be kept between layers; they run again from the inputs, and fewer rows fit."""
    teacher = wide_then_narrow(redundant=False)
    student = disturbed(teacher, "a", "b")
    feeds = feeds_for(teacher, 30)
    rich = refit(student, teacher, None, feeds, positions=20)
    stream = Stream(student, feeds, {"p": 3, "r": 3}, memory=0)
    first = list(stream.at(1, ["p"]))
    again = list(stream.at(3, ["r"]))
    assert stream.reruns == 1
    kept = Stream(student, feeds, {"p": 3, "r": 3}, memory=2**30)
    assert all(np.array_equal(a["p"], b["p"]) for a, b in zip(first, kept.at(1, ["p"]), strict=True))
    assert all(np.allclose(a["r"], b["r"], atol=1e-5) for a, b in zip(again, kept.at(3, ["r"]), strict=True))
    assert kept.reruns == 0
    poor = refit(student, teacher, None, feeds, positions=20, memory_mb=16)
    assert max_difference(rich.graph, poor.graph) < 1e-4


@pytest.mark.parametrize("memory", [0, 10_000, 2**30])
def test_a_tensor_that_is_asked_for_again_later(memory: int) -> None:
    """Two layers read the input; between them nothing runs that either needs."""
    teacher = residual()
    feeds = feeds_for(teacher, 3)
    whole = Stream(teacher, feeds, {"x": 1, "p": 3, "r": 3, "s": 4}, memory=memory)
    found = [list(whole.at(at, names)) for at, names in ((0, ["x"]), (1, ["x"]), (3, ["p", "r"]), (4, ["s"]))]
    runner = open_runner(teacher, threads=1, extra_outputs=["p", "r", "s"])
    for index, feed in enumerate(feeds):
        wanted = {**feed, **runner.run(feed)}
        for step in found:
            for name, value in step[index].items():
                assert np.allclose(value, wanted[name], atol=1e-5), name
    assert (whole.reruns == 0) == (memory == 2**30)


def test_a_second_sweep_and_progress() -> None:
    teacher = wide_then_narrow(redundant=False)
    student = disturbed(teacher, "a", "b")
    seen: list[tuple[int, int | None]] = []
    found = refit(
        student, teacher, None, feeds_for(teacher), sweeps=2, progress=lambda a, b: seen.append((a, b))
    )
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert found.graph.history[-1].pass_name == "refit"
    assert len(found.graph.history[-1].details["layers"]) == 3


def test_rows_drawn_where_it_matters() -> None:
    """Only the left half of a tensor reaches the output: no row comes from the right."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Sin", ["c"], ["n"], name="bend"),
        helper.make_node("Mul", ["n", "half"], ["h"], name="left"),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], name="pool"),
    ]
    half = np.zeros((1, 1, 1, 8), np.float32)
    half[..., :4] = 1
    teacher = build(
        nodes, {"x": (1, 3, 8, 8)}, "y", {"w": normal(1, 4, 3, 1, 1), "b": normal(2, 4), "half": half}
    )
    layers = find_layers(teacher, teacher, None).layers
    feeds = feeds_for(teacher, 6)
    focus = find_focus(teacher, layers, feeds, share=1.0, match=None, seed=0)
    assert len(focus.chances["conv"]) == 6
    for sample, chances in enumerate(focus.chances["conv"]):
        assert chances.sum() == pytest.approx(1, abs=1e-5)
        assert chances.reshape(8, 8)[:, 4:].sum() == 0
        drawn = focus.draw("conv", sample, 50, np.random.default_rng(0))
        assert (drawn % 8 < 4).all()
    even = replace(focus, share=0.0).draw("conv", 0, 5000, np.random.default_rng(0))
    assert np.bincount(even, minlength=64).min() > 40
    student = disturbed(teacher, "w")
    found = refit(student, teacher, None, feeds, focus=0.9, options=EXACT)
    assert max_difference(teacher, found.graph) < 1e-3


def test_detectors_draw_where_the_outputs_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("edgekit.prune.refit")
    shares: list[float] = []

    def spy(*args: Any, share: float, **kwargs: Any) -> Focus:
        shares.append(share)
        return find_focus(*args, share=share, **kwargs)

    monkeypatch.setattr(module, "find_focus", spy)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], name="conv"),
        helper.make_node("Reshape", ["c", "shape"], ["y"], name="cells"),
    ]
    arrays = {"a": normal(1, 6, 3, 1, 1), "shape": np.array([1, 6, 64])}
    teacher = build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)
    student = disturbed(teacher, "a")
    feeds = feeds_for(teacher, 6)
    refit(student, teacher, None, feeds, match=Match(teacher, {"y": OutputKind.REGRESSION}))
    assert shares == []
    match = Match(teacher, {"y": OutputKind.DETECTOR})
    refit(student, teacher, None, feeds, match=match)
    assert shares == [0.9]
    refit(student, teacher, None, feeds, match=match, focus=0.0)
    assert shares == [0.9]

    def fail(*args: Any, **kwargs: Any) -> Focus:
        raise ModelError("no kernel")

    monkeypatch.setattr(module, "find_focus", fail)
    found = refit(student, teacher, None, feeds, match=match)
    assert found.notes == ("rows were drawn evenly, not where the outputs depend on them: no kernel",)
    with pytest.raises(ModelError, match="no kernel"):
        refit(student, teacher, None, feeds, match=match, focus=0.5)


def test_skipped_layers_say_why() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["p"], name="computed"),
        helper.make_node("Gemm", ["p", "w"], ["q"], name="scaled", alpha=2.0),
        helper.make_node("Gemm", ["q", "v"], ["r"], name="turned", transA=1),
        helper.make_node("Gemm", ["r", "u"], ["s"], name="good"),
        helper.make_node("MatMul", ["s", "z"], ["y"], name="shared"),
        helper.make_node("MatMul", ["y", "z"], ["y2"], name="shared2"),
    ]
    arrays = {name: normal(i, 4, 4) for i, name in enumerate("wvuz")}
    graph = build(nodes, {"x": (4, 4)}, "y2", arrays)
    found = refit(graph, graph, None, feeds_for(graph))
    reasons = {r.where: r.reason for r in found.skipped}
    assert list(reasons) == ["computed", "scaled", "turned", "shared", "shared2"]
    assert "computed" in reasons["computed"]
    assert "alpha" in reasons["scaled"]
    assert "transposed" in reasons["turned"]
    assert [layer.node for layer in found.layers] == ["good"]


def test_errors() -> None:
    teacher = CONVS["plain"]
    feeds = feeds_for(teacher, 5)
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
        refit(teacher, CONVS["gemm"], None, feeds)
    empty = build([helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": (1, 3)}, "y", {})
    with pytest.raises(ModelError, match="no layer to refit"):
        refit(empty, empty, None, [{"x": np.ones((1, 3), np.float32)}])
