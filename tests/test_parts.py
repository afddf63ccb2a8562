"""Cutting a quantized graph into front, integer body and decoder, for any integer runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.parts import CutError, Parts, cut
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.session import open_runner

SHAPE = (1, 4, 6, 6)
#: The parts of a node: operator, inputs, output; a trailing "q" quantizes the output.
Line = tuple[str, str]


def graph_of(
    lines: Sequence[Line], outputs: Sequence[str], inputs: Sequence[str] = ("x",), ints: Sequence[str] = ()
) -> Graph:
    """A QDQ graph from lines of ``op out in…``.

    ``Q`` is a pair of QuantizeLinear and DequantizeLinear; ``Conv`` brings stored quantized weights along.
    """
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "scale": np.array(0.05, np.float32),
        "zero": np.array(120, np.uint8),
    }
    nodes = []
    for op, text in lines:
        out, *given = text.split()
        if op == "Q":
            nodes.append(
                helper.make_node("QuantizeLinear", [*given, "scale", "zero"], [f"{out}_q"], name=f"Q_{out}")
            )
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{out}_q", "scale", "zero"], [out], name=f"DQ_{out}")
            )
            continue
        attributes: dict[str, Any] = {}
        if op == "Conv":
            constants[f"{out}_w"] = random.integers(-99, 99, (4, 4, 1, 1), dtype=np.int8)
            constants[f"{out}_z"] = np.array(0, np.int8)
            stored = [f"{out}_w", "scale", f"{out}_z"]
            nodes.append(helper.make_node("DequantizeLinear", stored, [f"{out}_wd"], name=f"DQ_{out}_w"))
            given.append(f"{out}_wd")
        elif op == "Cast":
            attributes["to"] = TensorProto.FLOAT
        elif op == "ArgMax":
            attributes["axis"] = 1
        nodes.append(helper.make_node(op, given, [out], name=f"{op}_{out}", **attributes))
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in inputs]
        + [helper.make_tensor_value_info(n, TensorProto.INT64, SHAPE) for n in ints],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    for value in made.output:
        value.ClearField("type")
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def ops(graph: Graph | None) -> list[str]:
    """Operators but for Quantize and Dequantize."""
    if graph is None:
        return []
    return [n.op_type for n in graph.nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]


def run_parts(parts: Parts, feeds: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(feeds)
    for part in (parts.front, parts.body, parts.decoder):
        if part is not None:
            given = {s.name: known[s.name] for s in part.inputs}
            known.update(open_runner(part, threads=1, optimize=False, integer=False).run(given))
    return known


def check(graph: Graph, parts: Parts) -> Parts:
    """The parts one after the other compute what the whole does."""
    random = np.random.default_rng(0)
    feeds = {s.name: random.normal(size=s.shape).astype(s.dtype) for s in graph.inputs}
    whole = open_runner(graph, threads=1, optimize=False, integer=False).run(feeds)
    found = run_parts(parts, feeds)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)
    return parts


NETWORK = [("Q", "a x"), ("Conv", "c a"), ("Relu", "r c"), ("Q", "d r")]


def test_a_network_of_codes_is_all_body() -> None:
    graph = graph_of(NETWORK, ["d"])
    parts = check(graph, cut(graph))
    assert ops(parts.body) == ["Conv", "Relu"]
    assert parts.front is None
    assert parts.decoder is None


def test_float_ends_are_cut_off() -> None:
    lines = [("Sin", "f x"), ("Q", "a f"), *NETWORK[1:], ("Sigmoid", "p d"), ("Mul", "y p f")]
    graph = graph_of(lines, ["y"])
    parts = check(graph, cut(graph))
    assert ops(parts.front) == ["Sin"]
    assert ops(parts.body) == ["Conv", "Relu"]
    assert ops(parts.decoder) == ["Sin", "Sigmoid", "Mul"], "the decoder computes again what it needs"
    first, *_, last = parts.body.nodes
    assert {first.op_type, last.op_type} <= {"QuantizeLinear", "DequantizeLinear"}


def test_a_graph_without_codes_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"not quantized.*edgekit quantize"):
        cut(graph_of([("Sin", "y x")], ["y"]))


def test_what_has_no_kernel_behind_the_weights_goes_to_the_decoder_with_all_behind_it() -> None:
    """Quantization has given the node and those behind it codes all the same."""
    lines = [
        *NETWORK,
        ("Exp", "e d"),
        ("Q", "eq e"),
        ("Mul", "m eq d"),
        ("Q", "y m"),
        ("Neg", "n d"),
        ("Q", "w n"),
    ]
    graph = graph_of(lines, ["y", "w"])
    whole = check(graph, cut(graph))
    assert whole.decoder is None
    parts = check(graph, cut(graph, runs=lambda node: node.op_type != "Exp"))
    assert ops(parts.decoder) == ["Exp", "Mul"]
    assert ops(parts.body) == ["Conv", "Relu", "Neg"]
    assert [s.name for s in parts.body.outputs] == ["d", "w"]


def test_what_has_no_kernel_before_the_weights_goes_to_the_front_with_all_before_it() -> None:
    lines = [("Q", "a x"), ("Neg", "n a"), ("Q", "nq n"), ("Sin", "s nq"), ("Q", "sq s"), ("Add", "t sq a")]
    lines += [("Q", "tq t"), ("Conv", "c tq"), ("Q", "y c")]
    graph = graph_of(lines, ["y"])
    parts = check(graph, cut(graph, runs=lambda node: node.op_type != "Sin"))
    assert ops(parts.front) == ["Neg", "Sin"]
    assert ops(parts.body) == ["Add", "Conv"]
    assert {s.name: str(s.dtype) for s in parts.body.inputs} == {"s": "float32", "a_q": "uint8"}
    assert parts.decoder is None


def test_what_has_no_kernel_between_weights_is_refused() -> None:
    lines = [*NETWORK, ("Sin", "s d"), ("Q", "sq s"), ("Conv", "c2 sq"), ("Q", "y c2")]
    graph = graph_of(lines, ["y"])
    with pytest.raises(CutError) as caught:
        cut(graph, runs=lambda node: node.op_type != "Sin")
    (node,) = caught.value.nodes
    assert (node.op, node.node) == ("Sin", "Sin_s")
    assert "no kernel" in node.reason
    assert node.remedy
    assert "Sin 'Sin_s'" in str(caught.value)
    assert caught.value.exit_code == 2


def test_float_nodes_between_weights_are_refused_and_all_named() -> None:
    lines = [*NETWORK, ("Erf", "e d"), ("Sin", "s e"), ("Q", "sq s"), ("Conv", "c2 sq"), ("Q", "y c2")]
    with pytest.raises(CutError) as caught:
        cut(graph_of(lines, ["y"]))
    assert [n.node for n in caught.value.nodes] == ["Erf_e", "Sin_s"]
    assert "its output 'e' is not quantized" in caught.value.nodes[0].reason


def test_float_nodes_before_weightless_codes_go_to_the_decoder() -> None:
    lines = [*NETWORK, ("Erf", "e d"), ("Sin", "s e"), ("Q", "sq s"), ("Neg", "n sq"), ("Q", "y n")]
    graph = graph_of(lines, ["y"])
    assert ops(check(graph, cut(graph)).decoder) == ["Erf", "Sin", "Neg"]


def test_what_turns_codes_into_integers_is_in_the_body_where_it_runs() -> None:
    graph = graph_of([*NETWORK, ("ArgMax", "y d"), ("Sigmoid", "p d")], ["y", "p"])
    assert ops(check(graph, cut(graph)).decoder) == ["ArgMax", "Sigmoid"]
    parts = check(graph, cut(graph, runs=lambda node: True))
    assert ops(parts.decoder) == ["Sigmoid"]
    assert ops(parts.body) == ["Conv", "Relu", "ArgMax"]
    assert [(s.name, str(s.dtype)) for s in parts.body.outputs] == [("d", "float32"), ("y", "int64")]


def test_integers_become_floats_in_the_front() -> None:
    lines = [
        ("Cast", "f ids"),
        ("Q", "fq f"),
        ("Q", "a x"),
        ("Add", "t a fq"),
        ("Q", "tq t"),
        ("Conv", "c tq"),
    ]
    graph = graph_of([*lines, ("Q", "y c")], ["y"], ints=["ids"])
    parts = check(graph, cut(graph))
    assert ops(parts.front) == ["Cast"]
    assert parts.front is not None
    assert [s.name for s in parts.front.inputs] == ["x", "ids"], "the front takes all inputs of the graph"


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, frozenset[str]]:
    """A chain with branches of quantized and float nodes, and the operators that have no kernel."""
    known, lines = ["x"], []
    for number in range(draw(st.integers(1, 10))):
        op = draw(st.sampled_from(["Conv", "Neg", "Sin", "Add", "Q", "Relu"]))
        given = [draw(st.sampled_from(known[-3:])) for _ in range(2 if op == "Add" else 1)]
        lines.append((op, " ".join([f"t{number}", *given])))
        known.append(f"t{number}")
        if op != "Q" and draw(st.integers(0, 3)):
            lines.append(("Q", f"q{number} t{number}"))
            known.append(f"q{number}")
    read = {name for _, text in lines for name in text.split()[1:]}
    return graph_of(lines, [n for n in known[1:] if n not in read]), draw(
        st.frozensets(st.sampled_from(["Sin", "Neg"]))
    )


@given(networks())
@settings(max_examples=150)
def test_random_graphs_are_cut_right_or_refused(case: tuple[Graph, frozenset[str]]) -> None:
    graph, without = case
    try:
        parts = cut(graph, runs=lambda node: node.op_type not in without)
    except ModelError as error:
        assert isinstance(error, CutError) or "not quantized" in str(error)  # noqa: PT017
        return
    check(graph, parts)
    assert not without & set(ops(parts.body))
    for node in parts.body.nodes:  # everything the body computes has codes at both ends
        if node.op_type in ("Neg", "Sin", "Add", "Conv"):
            for value in node.outputs:
                readers = {u.op_type for u in value.consumers()}
                assert readers <= {"QuantizeLinear", "Relu"}
                assert not value.is_graph_output()
