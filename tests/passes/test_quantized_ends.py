"""Codes in, codes out: exact against the graph with QuantizeLinear and DequantizeLinear at its ends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.coded import CodedRunner
from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.quantized_ends import ENDS_KEY, Ends, quantized_ends, read_ends
from edgekit.session import open_runner

SHAPE = (1, 3, 4, 5)
TYPES = ("uint8", "int8", "uint16", "int16")


class _Builder:
    """A graph of Q/DQ pairs between elementwise operators, all tensors of one shape."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.count = 0

    def node(self, op: str, inputs: list[str], output: str = "") -> str:
        self.count += 1
        output = output or f"t{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}"))
        return output

    def params(self, dtype: str) -> list[str]:
        limits = np.iinfo(dtype)
        zero = self.random.integers(limits.min, limits.max, dtype=dtype, endpoint=True)
        self.count += 1
        names = [f"s{self.count}", f"z{self.count}"]
        step = self.random.uniform(1, 8) / (limits.max - limits.min)
        self.constants |= {
            names[0]: np.array(step, np.float32),
            names[1]: np.array(zero if self.count % 3 else 0, dtype),
        }
        return names

    def pair(self, source: str, dtype: str, output: str = "", params: list[str] | None = None) -> str:
        params = params or self.params(dtype)
        return self.node(
            "DequantizeLinear", [self.node("QuantizeLinear", [source, *params]), *params], output
        )

    def graph(self, inputs: list[str], outputs: list[str]) -> Graph:
        made = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in outputs],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in self.constants.items()],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return infer_shapes(Graph(ir.from_proto(model)))


def simple(dtype: str = "uint8") -> Graph:
    build = _Builder()
    build.pair(build.node("Sigmoid", [build.pair("x", dtype)]), dtype, "y")
    return build.graph(["x"], ["y"])


def feeds_of(graph: Graph, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    feeds = {spec.name: random.normal(0, 2, spec.shape).astype(np.float32) for spec in graph.inputs}
    for values in feeds.values():
        values.flat[:4] = [np.nan, np.inf, -np.inf, 1e30]
    return feeds


def coded_runner(graph: Graph) -> CodedRunner:
    ends = read_ends(dict(graph.model.metadata_props))
    assert ends is not None
    return CodedRunner(open_runner(graph, threads=1, optimize=False, integer=False), ends)


def check_exact(graph: Graph) -> Graph:
    """Convert; floats through codes are the same floats, and the codes are those of the graph's inside."""
    sources = {}
    for value in graph.model.graph.outputs:
        node = value.producer()
        assert node is not None
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            sources[str(value.name)] = str(node.inputs[0].name)
    before = open_runner(
        graph, threads=1, optimize=False, integer=False, extra_outputs=list(dict.fromkeys(sources.values()))
    )
    after = quantized_ends(graph)
    onnx.checker.check_model(after.to_proto(), full_check=True)
    assert [s.name for s in after.inputs] == [s.name for s in graph.inputs]
    assert [s.name for s in after.outputs] == [s.name for s in graph.outputs]
    feeds = feeds_of(graph)
    wanted = before.run(feeds)
    runner = coded_runner(after)
    found, codes = runner.run(feeds), runner.codes(feeds)
    for name in runner.output_names:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], wanted[name])
        if name in runner.ends.coded:
            assert codes[name].dtype == wanted[sources[name]].dtype
            np.testing.assert_array_equal(codes[name], wanted[sources[name]])
    return after


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    build = _Builder(draw(st.integers(0, 999)))
    dtype = st.sampled_from(TYPES)
    inputs = [f"x{i}" for i in range(draw(st.integers(1, 3)))]
    known = [build.pair(name, draw(dtype)) for name in inputs]
    for name in inputs:
        for _ in range(draw(st.integers(0, 1))):  # read a second time: in another way, or in float
            known.append(build.pair(name, draw(dtype)) if draw(st.booleans()) else build.node("Neg", [name]))
    outputs: list[str] = []
    for number in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(["Add", "Mul", "Sigmoid", "Relu"]))
        count = 2 if op in ("Add", "Mul") else 1
        value = build.node(op, [draw(st.sampled_from(known)) for _ in range(count)])
        output = f"y{number}" if draw(st.booleans()) else ""
        if draw(st.booleans()):
            value = build.pair(value, draw(dtype), output)
        elif output:
            value = build.node("Neg", [value], output)
        known.append(value)
        outputs += [output] if output else []
    outputs = outputs or [build.pair(known[-1], draw(dtype), "y")]
    return build.graph(inputs, outputs)


@given(networks())
@settings(max_examples=60)
def test_random_graphs_give_the_same_codes_and_floats(graph: Graph) -> None:
    after = quantized_ends(graph)
    change = after.history[-1]
    stay = {r.where for r in change.refused}
    for spec in (*after.inputs, *after.outputs):
        assert (spec.dtype == np.float32) == (spec.name in stay)
    if change.details["inputs"] or change.details["outputs"]:
        check_exact(graph)
    else:
        assert ENDS_KEY not in after.model.metadata_props


@pytest.mark.parametrize("dtype", TYPES)
def test_both_ends_of_a_chain_become_codes(dtype: str) -> None:
    graph = simple(dtype)
    after = check_exact(graph)
    assert [n.op_type for n in after.nodes] == ["DequantizeLinear", "Sigmoid", "QuantizeLinear"]
    assert [(s.name, str(s.dtype)) for s in (*after.inputs, *after.outputs)] == [("x", dtype), ("y", dtype)]
    change = after.history[-1]
    assert change.details == {"inputs": ["x"], "outputs": ["y"]}
    assert change.refused == ()
    assert "1 inputs and 1 outputs" in change.summary


def test_the_graph_that_was_given_stays_as_it_was() -> None:
    graph = simple()
    before = graph.to_bytes()
    quantized_ends(graph)
    assert graph.to_bytes() == before
    assert graph.inputs[0].dtype == np.float32
    assert ENDS_KEY not in graph.model.metadata_props


def test_the_file_explains_itself() -> None:
    after = quantized_ends(simple())
    said = json.loads(after.to_proto().metadata_props[0].value)
    params = {k: v.const_value for k, v in after.model.graph.initializers.items()}
    assert len(params) == 4, "what only the dropped nodes needed is gone"
    dequantize = next(iter(after.nodes))
    assert dequantize.inputs[1] is not None
    assert dequantize.inputs[1].const_value is not None
    scale = float(dequantize.inputs[1].const_value.numpy())
    assert said["inputs"][0]["scale"] == scale
    assert said["inputs"][0]["layout"] == "NCHW"
    assert said["inputs"][0]["shape"] == list(SHAPE)
    assert said["outputs"][0]["layout"] == ""
    assert {e["dtype"] for e in (*said["inputs"], *said["outputs"])} == {"uint8"}


def test_the_layout_that_was_asked_for_is_said() -> None:
    (end,) = Ends.model_validate_json(
        quantized_ends(simple(), layout="nhwc").model.metadata_props[ENDS_KEY]
    ).inputs
    assert end.layout == "", "its last axis holds no colours"


def test_several_quantizers_of_one_meaning_are_dropped_together() -> None:
    build = _Builder()
    params = build.params("uint8")
    build.constants["again"] = build.constants[params[0]]
    first = build.pair("x", "uint8", params=params)
    second = build.pair("x", "uint8", params=["again", params[1]])
    build.pair(build.node("Mul", [first, second]), "int8", "y")
    after = check_exact(build.graph(["x"], ["y"]))
    assert [str(s.dtype) for s in after.inputs] == ["uint8"]


def test_what_stays_float_is_named_with_the_reason() -> None:
    build = _Builder()
    first = build.node("Add", [build.pair("a", "uint8"), build.pair("a", "uint16")])
    build.node("Add", [build.pair("b", "uint8"), build.node("Neg", ["b"])], "y")
    build.pair(first, "uint8", "z")
    after = check_exact(build.graph(["a", "b", "unused"], ["y", "z"]))
    reasons = {r.where: r.reason for r in after.history[-1].refused}
    assert set(reasons) == {"a", "b", "unused", "y"}
    assert "several ways: 'QuantizeLinear_" in reasons["a"]
    assert "Neg 'Neg_" in reasons["b"]
    assert "no node reads it" in reasons["unused"]
    assert "Add 'Add_y'" in reasons["y"]
    assert after.history[-1].details == {"inputs": [], "outputs": ["z"]}


def test_an_output_that_the_graph_reads_on_is_dequantized_under_another_name() -> None:
    build = _Builder()
    build.pair(build.pair("x", "uint8"), "uint16", "y")
    build.pair(build.node("Sigmoid", ["y"]), "uint8", "z")
    after = check_exact(build.graph(["x"], ["y", "z"]))
    assert "y_dequantized" in after.values()
    assert {s.name: str(s.dtype) for s in after.outputs} == {"y": "uint16", "z": "uint8"}


def test_codes_that_are_needed_twice_stay_behind_one_name() -> None:
    build = _Builder()
    params = build.params("uint8")
    codes = build.node("QuantizeLinear", [build.node("Neg", [build.pair("x", "int8")]), *params])
    build.node("DequantizeLinear", [codes, *params], "y")
    build.node("DequantizeLinear", [codes, *params], "z")
    after = check_exact(build.graph(["x"], ["y", "z"]))
    assert {s.name: str(s.dtype) for s in after.outputs} == {"y": "uint8", "z": "float32"}
    assert "output as well" in after.history[-1].refused[0].reason


def test_an_input_that_comes_out_at_once_stays_float_at_one_end() -> None:
    build = _Builder()
    build.pair("x", "uint8", "y")
    after = check_exact(build.graph(["x"], ["y"]))
    assert [str(s.dtype) for s in (*after.inputs, *after.outputs)] == ["uint8", "float32"]
    assert "no node makes them" in after.history[-1].refused[0].reason


def test_parameters_per_channel_stay_inside() -> None:
    build = _Builder()
    build.constants |= {"s": np.array([0.1, 0.2, 0.3], np.float32), "z": np.zeros(3, np.uint8)}
    build.pair(build.pair("x", "uint8", params=["s", "z"]), "uint8", "y")
    graph = build.graph(["x"], ["y"])
    after = check_exact(graph)
    assert after.inputs[0].dtype == np.float32
    assert "more than one scale" in after.history[-1].refused[0].reason


def test_a_float_graph_stays_as_it_is() -> None:
    build = _Builder()
    build.node("Neg", ["x"], "y")
    graph = build.graph(["x"], ["y"])
    after = quantized_ends(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert len(after.history[-1].refused) == 2


def test_twice_is_once() -> None:
    once = quantized_ends(simple())
    twice = quantized_ends(once)
    assert [n.op_type for n in twice.nodes] == [n.op_type for n in once.nodes]
    assert twice.model.metadata_props == once.model.metadata_props


def test_ends_that_hold_codes_already_are_described() -> None:
    """As in a part that was cut out of such a graph, which takes no metadata along."""
    once = quantized_ends(simple("uint16"))
    said = once.model.metadata_props.pop(ENDS_KEY)
    again = quantized_ends(once)
    assert again.model.metadata_props[ENDS_KEY] == said
    assert again.history[-1].details == {"inputs": [], "outputs": []}


def test_metadata_that_cannot_be_used_is_an_error() -> None:
    assert read_ends({}) is None
    for text in ("{", '{"inputs": []}', '{"inputs": [], "outputs": [], "more": 1}'):
        with pytest.raises(ModelError, match=r"net\.onnx: its metadata 'edgekit\.io' cannot be used"):
            read_ends({ENDS_KEY: text}, where="net.onnx")
