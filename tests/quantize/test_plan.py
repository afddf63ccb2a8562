"""What runs on integers, what stays in float, and why: one small graph for each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import FEW_WEIGHTS, Plan, make_plan, moved_inputs, tail_nodes
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, fixed_ranges
from edgekit.quantize.scheme import Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
CONVS = {"w1": (8, 3, 1, 1), "w2": (16, 8, 1, 1), "w3": (8, 8, 1, 1)}


def _constants(**more: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {**{k: random.standard_normal(v) for k, v in CONVS.items()}, **more}


def _graph(build: Build, lines: str, result: str = "1,16,8,8", **more: Any) -> Graph:
    text = f"g (float[1,3,8,8] x) => (float[{result}] y) {{ {lines} }}"
    return build(text, {k: v for k, v in _constants(**more).items() if k in lines})


def _integer(plan: Plan) -> set[str]:
    return {n.removesuffix(".node") for n in plan.integer_nodes}


def _floats(plan: Plan) -> dict[str, str]:
    return {n.removesuffix(".node"): reason for n, reason in plan.float_nodes.items()}


def test_a_chain_of_convolutions(build: Build, scheme: Scheme) -> None:
    plan = make_plan(_graph(build, "a = Conv(x, w1) y = Conv(a, w2)"), scheme)
    assert _integer(plan) == {"a", "y"}
    assert plan.tensors == plan.sources == ("x", "a", "y")
    assert plan.float_nodes == {}


def test_rule_1_no_kernel(build: Build, scheme: Scheme) -> None:
    plan = make_plan(_graph(build, "a = Conv(x, w1) t = Tanh(a) y = Conv(t, w2)"), scheme)
    assert _integer(plan) == {"a", "y"}
    assert _floats(plan) == {"t": "the target has no integer kernel for Tanh"}
    assert plan.tensors == ("x", "a", "t", "y")


def test_rule_1_other_element_types(build: Build, scheme: Scheme) -> None:
    lines = "a = Conv(x, w1) s = Shape(a) k = Add(s, n) r = Reshape(a, k) y = Conv(r, w2)"
    plan = make_plan(_graph(build, lines, n=np.zeros(4, np.int64)), scheme)
    assert _floats(plan)["k"] == "it does not compute in float32"
    assert _integer(plan) == {"a", "r", "y"}
    assert "k" not in plan.tensors


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("m = MatMul(k, s) y = Conv(m, w2)", "its stored weights are the first factor"),
        ("m = Conv(s, f) y = Conv(m, w2)", "its weights are computed, not stored"),
        ("q = Flatten(s) m = Gemm <alpha=0.5> (q, g, b) y = MatMul(m, w5)", "its alpha is not 1"),
        ("q = Flatten(s) m = Gemm <beta=2.0> (q, g, b) y = MatMul(m, w5)", "its beta is not 1"),
        ("q = Flatten(s) m = Gemm <transA=1> (q, h) y = MatMul(m, w5)", "it transposes its input"),
        (
            "q = Flatten(s) r = Flatten(a) m = Gemm <transB=1> (q, r) y = MatMul(m, w6)",
            "its weights are computed",
        ),
    ],
)
def test_rule_1_forms_without_a_kernel(lines: str, reason: str, build: Build, scheme: Scheme) -> None:
    front = "a = Conv(x, w1) s = Sigmoid(a) p = GlobalAveragePool(a) f = Reshape(p, shape)"
    ones = {
        "k": (8, 8), "g": (512, 8), "b": (8,), "h": (1, 8), "w5": (8, 16), "w6": (1, 80),
    }  # fmt: skip
    more: dict[str, Any] = {k: np.ones(v) for k, v in ones.items()}
    graph = _graph(
        build,
        f"{front} {lines}",
        "a,b,c,d" if "y = Conv" in lines else "a,b",
        shape=np.array([1, 8, 1, 1]),
        **{**more, "w2": np.ones((80, 8 if "MatMul(k" in lines else 1, 1, 1))},
    )
    plan = make_plan(graph, scheme)
    assert _floats(plan)["m"].startswith(reason)
    assert "y" in _integer(plan)


def test_rule_1_a_bias_for_each_row(build: Build, scheme: Scheme) -> None:
    text = "g (float[3,16] x) => (float[3,16] y) { m = Gemm(x, g, b) y = MatMul(m, w) }"
    weights = {"g": np.ones((16, 32)), "w": np.ones((32, 16))}
    by_row = make_plan(build(text, {**weights, "b": np.ones((3, 32))}), scheme)
    assert _floats(by_row) == {"m": "its bias differs from row to row"}
    for shape in ((32,), (1, 32), (1,), ()):
        assert "m" in _integer(make_plan(build(text, {**weights, "b": np.ones(shape)}), scheme))


def test_rule_2_the_tail(build: Build, scheme: Scheme) -> None:
    lines = "a = Conv(x, w1) c = Conv(a, w2) s = Sigmoid(c) y = Mul(c, s)"
    plan = make_plan(_graph(build, lines), scheme)
    assert _integer(plan) == {"a", "c"}
    assert set(_floats(plan)) == {"s", "y"}
    assert all("between the last convolution and the output" in r for r in _floats(plan).values())


@pytest.mark.parametrize(("weights", "integer"), [(FEW_WEIGHTS // 16, False), (FEW_WEIGHTS // 16 + 1, True)])
def test_rule_2_a_convolution_of_a_few_weights_is_arithmetic(
    weights: int, integer: bool, build: Build, scheme: Scheme
) -> None:
    lines = "a = Conv(x, w1) b = Conv(a, w2) y = Conv(b, few)"
    graph = _graph(build, lines, f"1,{weights},8,8", few=np.ones((weights, 16, 1, 1)))
    plan = make_plan(graph, scheme)
    assert ("y" in _integer(plan)) is integer
    # The first has few weights too, but stands in front of many.
    assert {"a", "b"} <= _integer(plan)


def test_rule_2_an_output_on_the_way_is_no_tail(build: Build, scheme: Scheme) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,8,8,8] s, float[1,16,8,8] y) {
        a = Conv(x, w1) s = Sigmoid(a) y = Conv(s, w2)
    }"""
    plan = make_plan(build(text, {k: v for k, v in _constants().items() if k != "w3"}), scheme)
    assert _integer(plan) == {"a", "s", "y"}


def test_a_grouped_transposed_convolution_stays_in_float(build: Build, scheme: Scheme) -> None:
    """Its weights are [in, out / groups, …]: one scale would belong to several output channels."""
    rule = scheme.ops["Conv"].model_copy(update={"weight_axis": 1})
    known = scheme.model_copy(update={"ops": {**scheme.ops, "ConvTranspose": rule}})
    weights = {"w1": np.ones((8, 3, 1, 1)), "t": np.ones((8, 8, 2, 2)), "b": np.ones(16)}
    for groups, integer in ((1, True), (2, False)):
        weight = weights["t"] if groups == 2 else np.ones((8, 16, 2, 2))
        text = f"""g (float[1,3,8,8] x) => (float[1,16,16,16] y) {{
            a = Conv(x, w1) y = ConvTranspose<strides=[2,2], group={groups}>(a, t, b)
        }}"""
        plan = make_plan(build(text, {**weights, "t": weight}), known)
        assert ("y" in _integer(plan)) is integer


def test_rule_3_raised(build: Build, scheme: Scheme) -> None:
    graph = _graph(build, "a = Conv(x, w1) r = Relu(a) b = Conv(r, w3) y = Conv(b, w2)")
    plan = make_plan(graph, scheme, raised=["r"])
    assert _integer(plan) == {"y"}
    assert _floats(plan)["b"] == "'r' needs more than 8 bits"
    assert _floats(plan)["a"] == _floats(plan)["r"] == "'r' needs more than 8 bits"
    assert plan.tensors == ("b", "y")


def test_rule_4_lonely_elementwise_arithmetic(build: Build, scheme: Scheme) -> None:
    plan = make_plan(
        _graph(build, "t = Tanh(x) a = Add(t, t) e = Exp(a) c = Conv(e, w1) y = Conv(c, w2)"), scheme
    )
    assert _floats(plan)["a"] == "nothing that follows it runs on integers"
    plan = make_plan(_graph(build, "t = Tanh(x) a = Add(t, t) c = Conv(a, w1) y = Conv(c, w2)"), scheme)
    assert _floats(plan)["a"] == "nothing before it runs on integers"
    plan = make_plan(_graph(build, "c = Conv(x, w1) a = Add(c, c) e = Exp(a) y = Conv(e, w2)"), scheme)
    assert _floats(plan)["a"] == "nothing that follows it runs on integers"


def test_rule_4_follows_through_a_chain(build: Build, scheme: Scheme) -> None:
    lines = "c = Conv(x, w1) a = Add(c, c) m = Mul(a, a) e = Exp(m) y = Conv(e, w2)"
    plan = make_plan(_graph(build, lines), scheme)
    assert _integer(plan) == {"c", "y"}


def test_rule_5_a_mover_follows_its_readers(build: Build, scheme: Scheme) -> None:
    lines = (
        "c = Conv(x, w1) {} p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c) q = Exp(p) y = Conv(q, w2)"
    )
    plan = make_plan(_graph(build, lines.format(""), "1,16,4,4"), scheme)
    assert _floats(plan)["p"] == "nothing that follows it runs on integers"
    lines = "c = Conv(x, w1) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c) y = Conv(p, w2)"
    plan = make_plan(_graph(build, lines, "1,16,4,4"), scheme)
    assert "p" in _integer(plan)
    assert plan.groups["c"] == plan.groups["p"]
    assert plan.sources == ("x", "c", "y")


def test_rule_5_a_moved_input_is_quantized_behind_the_move(build: Build, scheme: Scheme) -> None:
    lines = """p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) t = Transpose <perm=[0,1,3,2]> (p)
        c = Conv(t, w1) y = Conv(c, w2)"""
    graph = _graph(build, lines, "1,16,4,4")
    plan = make_plan(graph, scheme)
    assert _floats(plan)["t"] == "it moves an input of the graph, which is float"
    assert _floats(plan)["p"] == "nothing that follows it runs on integers"
    assert plan.tensors == plan.sources == ("t", "c", "y")
    assert moved_inputs(graph, scheme) == {"x": "x", "p": "x", "t": "x"}


def test_two_inputs_that_meet_are_no_moved_input(build: Build, scheme: Scheme) -> None:
    text = """g (float[1,3,8,8] x, float[1,3,8,8] z) => (float[1,6,8,8] y) {
        y = Concat <axis=1> (x, z)
    }"""
    assert moved_inputs(build(text), scheme) == {"x": "x", "z": "z"}


@pytest.mark.parametrize(("mode", "integer"), [("nearest", True), ("linear", False), ("cubic", False)])
def test_an_op_whose_kernel_has_some_modes_only(
    mode: str, integer: bool, build: Build, scheme: Scheme
) -> None:
    lines = f'c = Conv(x, w1) r = Resize <mode="{mode}"> (c, roi, twice) y = Conv(r, w2)'
    twice = np.array([1, 1, 2, 2], np.float32)
    graph = _graph(build, lines, "1,16,16,16", roi=np.zeros(0, np.float32), twice=twice)
    plan = make_plan(graph, scheme)
    assert ("r" in _integer(plan)) is integer
    if not integer:
        assert _floats(plan)["r"] == f"the target has no integer kernel for Resize with mode '{mode}'"
        assert plan.tensors == ("x", "c", "r", "y")


@pytest.mark.parametrize(
    ("first", "second", "mixed"),
    [
        ("Relu(a)", "Relu(b)", False),
        ("Relu(a)", "Exp(b)", True),
        ("Relu(a)", "Clip(b, lo, hi)", True),
        ("Clip(a, lo, hi)", "Clip(b, lo, hi)", False),
        ("Clip(a, lo, hi)", "Clip(b, lo, top)", True),
        ("Sigmoid(a)", "Sigmoid(b)", False),
    ],
)
def test_an_absorbed_activation_keeps_a_scale_of_its_own(
    first: str, second: str, mixed: bool, build: Build, scheme: Scheme
) -> None:
    lines = f"""a = Conv(x, w1) p = {first} q = MaxPool <kernel_shape=[1,1]> (p) b = Conv(x, v1) r = {second}
        j = Concat <axis=1> (q, r) y = Conv(j, w4)"""
    bounds: dict[str, Any] = {"lo": np.float32(0), "hi": np.float32(6), "top": np.float32(5)}
    graph = _graph(build, lines, v1=np.ones((8, 3, 1, 1)), w4=np.ones((16, 16, 1, 1)), **bounds)
    plan = make_plan(graph, scheme)
    assert plan.groups["p"] == plan.groups["q"]
    assert (plan.groups["p"] != plan.groups["r"]) is mixed
    assert ("j" in plan.sources) is mixed
    assert (plan.groups["j"] == "j") is mixed


def test_absorbed_activations(build: Build, scheme: Scheme) -> None:
    lines = "a = Conv(x, w1) r = Relu(a) b = Conv(r, w3) c = Clip(b, lo, hi) y = Conv(c, w2)"
    graph = _graph(build, lines, lo=np.float32(0), hi=np.float32(6))
    plan = make_plan(graph, scheme)
    assert plan.absorbed == {"a.node": "r.node", "b.node": "c.node"}
    assert _integer(plan) == {"a", "r", "b", "c", "y"}
    assert plan.tensors == ("x", "r", "c", "y")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("a = Conv(x, w1) r = Relu(a) s = Add(a, r) y = Conv(s, w2)", "two readers"),
        ("a = Conv(x, w1) r = Clip(lo, a, a) y = Conv(a, w2)", "it is a bound"),
        ("a = Conv(x, w1) l = ReduceMin(x) r = Clip(a, l) y = Conv(r, w2)", "computed bound"),
    ],
)
def test_activations_that_cannot_be_absorbed(lines: str, why: str, build: Build, scheme: Scheme) -> None:
    plan = make_plan(
        _graph(build, lines, lo=np.float32(0)) if "lo," in lines else _graph(build, lines), scheme
    )
    assert plan.absorbed == {}, why
    assert "a" in plan.tensors


def test_an_activation_behind_a_float_convolution_is_float(build: Build, scheme: Scheme) -> None:
    graph = _graph(build, "a = Conv(x, w1) r = Relu(a) b = Conv(r, w3) y = Conv(b, w2)")
    plan = make_plan(graph, scheme, raised=["x"])
    assert _floats(plan) == dict.fromkeys(("a", "r"), "'x' needs more than 8 bits")
    assert plan.absorbed == {}


def test_float_output_saves_a_rounding(build: Build, scheme: Scheme) -> None:
    lines = "a = Conv(x, w1) f = Flatten(a) m = MatMul(f, wm) y = Exp(m)"
    graph = _graph(build, lines, "1,4", wm=np.ones((512, 4)))
    plan = make_plan(graph, scheme)
    assert {"a", "f", "m"} == _integer(plan)
    assert "m" not in plan.tensors
    # Read by an integer node, it is rounded.
    lines = "a = Conv(x, w1) f = Flatten(a) m = MatMul(f, wm) y = MatMul(m, wn)"
    plan = make_plan(_graph(build, lines, "1,20", wm=np.ones((512, 4)), wn=np.ones((4, 20))), scheme)
    assert "m" in plan.tensors


def test_constants_of_elementwise_nodes(build: Build, scheme: Scheme) -> None:
    lines = "a = Conv(x, w1) b = Mul(a, k) y = Conv(b, w2)"
    plan = make_plan(_graph(build, lines, k=np.float32(2)), scheme)
    assert plan.constants == ("k",)
    assert not {"k", "w1", "w2"} & set(plan.tensors)


def test_same_scale_groups(build: Build, scheme: Scheme) -> None:
    lines = """a = Conv(x, w1) b = Conv(x, v1) p = MaxPool <kernel_shape=[1,1]> (a)
        j = Concat <axis=1> (p, b) t = Transpose <perm=[0,1,3,2]> (j) s = Sigmoid(t) y = Conv(s, w4)"""
    graph = _graph(build, lines, v1=np.ones((8, 3, 1, 1)), w4=np.ones((16, 16, 1, 1)))
    plan = make_plan(graph, scheme)
    assert set(plan.members(plan.groups["a"])) == {"a", "b", "p", "j", "t"}
    assert set(plan.groups) == set(plan.tensors)
    assert all(plan.groups[g] == g for g in plan.groups.values())
    assert plan.groups["s"] == "s"
    assert plan.groups["x"] == "x"
    apart = make_plan(graph, scheme, apart=["j.node"])
    assert set(apart.members(apart.groups["a"])) == {"a", "p"}
    assert set(apart.members(apart.groups["b"])) == {"b"}
    assert set(apart.members(apart.groups["j"])) == {"j", "t"}
    assert "j" in apart.sources


def test_tail_of_two_heads(build: Build) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,8,8,8] y, float[1,16,8,8] z) {
        a = Conv(x, w1) y = Sigmoid(a) b = Conv(a, w2) z = Exp(b)
    }"""
    graph = build(text, {k: v for k, v in _constants().items() if k != "w3"})
    assert tail_nodes(list(graph.nodes)) == {"y.node", "z.node"}


# Raised tensors, in every place.


def _quantized(graph: Graph, plan: Plan, scheme: Scheme, feeds: list[dict[str, Array]]) -> Graph:
    first = make_plan(graph, scheme)
    wanted = [t for t in first.sources if t not in fixed_ranges(graph, scheme, first)]
    calibration = observe(graph, wanted, feeds)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX))
    assert set(params) == set(plan.tensors)
    return insert_qdq(graph, plan, params, scheme)


@pytest.mark.parametrize(
    "mover",
    [
        "m = Flatten(a) y = MatMul(m, wm)",
        "m = Reshape(a, s) y = MatMul(m, wm)",
        "p = MaxPool <kernel_shape=[1,1]> (a) m = Flatten(p) y = MatMul(m, wm)",
        "b = Conv(x, w1) j = Concat <axis=1> (a, b) m0 = Slice(j, from, to, ax) "
        "m = Flatten(m0) y = MatMul(m, wm)",
    ],
)
def test_a_raised_tensor_that_is_moved(
    mover: str, build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 16))
    more = {"from": np.array([4]), "to": np.array([12]), "ax": np.array([1]), "s": np.array([1, 512])}
    graph = _graph(build, "a = Conv(x, w1) " + mover, "1,16", wm=weight, **more)
    feeds = samples(graph, 3)
    plan = make_plan(graph, scheme, raised=["a"])
    made = _quantized(graph, plan, scheme, feeds)
    assert "a" not in plan.tensors
    wanted, found = (open_runner(g, threads=1).run(feeds[0])["y"] for g in (graph, made))
    np.testing.assert_allclose(found, wanted, atol=0.06 * np.abs(wanted).max())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_raised_set_gives_a_graph_that_runs(
    seed: int,
    data: st.DataObject,
    random_net: Callable[[int], Graph],
    samples: MakeSamples,
    values: Callable[..., dict[str, Array]],
    scheme: Scheme,
) -> None:
    graph = random_net(seed)
    feeds = samples(graph, 2, seed)
    tensors = make_plan(graph, scheme).tensors
    raised = data.draw(st.sets(st.sampled_from(tensors))) if tensors else set()
    plan = make_plan(graph, scheme, raised=raised)
    assert not raised & set(plan.tensors)
    assert {str(n.name) for n in graph.nodes} == plan.integer_nodes | set(plan.float_nodes)
    assert not plan.integer_nodes & set(plan.float_nodes)
    made = _quantized(graph, plan, scheme, feeds)
    wanted = values(graph, feeds[:1])
    for integer in (True, False):
        found = open_runner(made, threads=1, integer=integer).run(feeds[0])
        assert [o.name for o in made.outputs] == [o.name for o in graph.outputs]
        for output in graph.outputs:
            assert found[output.name].shape == output.shape
            assert np.isfinite(found[output.name]).all()
    # What lies in front of everything quantized is what it was.
    rounded = {f"{t}_quantized" for t in plan.tensors}
    clean = [
        str(n.outputs[0].name)
        for n in graph.nodes
        if not any(f"{a}_quantized" in rounded for a in (*_before(graph, str(n.outputs[0].name)),))
    ]
    if clean:
        runner = open_runner(made, threads=1, integer=False, extra_outputs=clean)
        outputs = runner.run(feeds[0])
        for name in clean:
            np.testing.assert_allclose(
                outputs[name], wanted[name][0], atol=1e-4 * (1 + np.abs(wanted[name]).max())
            )


def _before(graph: Graph, tensor: str) -> set[str]:
    """The tensor and everything that it is computed from."""
    values, found, waiting = graph.values(), set(), [tensor]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        producer = values[name].producer()
        if producer is not None:
            waiting += [str(v.name) for v in producer.inputs if v is not None]
    return found


def test_everything_raised_is_the_float_graph(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _graph(build, "a = Conv(x, w1) r = Relu(a) b = Conv(r, w3) y = Conv(b, w2)")
    plan = make_plan(graph, scheme, raised=make_plan(graph, scheme).tensors)
    assert plan.integer_nodes == frozenset()
    assert plan.tensors == ()
    made = _quantized(graph, plan, scheme, samples(graph, 2))
    assert [n.op_type for n in made.nodes] == [n.op_type for n in graph.nodes]
