"""Cutting a quantized graph at its float parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgekit.graph import Graph
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.scheme import Format, Scheme
from edgekit.session import open_runner
from edgekit.tflite.lower.refuse import RefusedNodesError
from edgekit.tflite.split import Split, split

OPS: dict[str, Any] = {"Conv": {"weight_axis": 0, "fuses": ["Relu", "Clip"]}, "Add": {}, "Mul": {}}


def graph_of(
    nodes: list[Any],
    constants: Mapping[str, Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: list[str],
    whole: Mapping[str, tuple[int, ...]] | None = None,
    positions: Mapping[str, list[int]] | None = None,
) -> Graph:
    """A network; ``whole`` are inputs and ``positions`` constants of 64-bit integers."""
    body = helper.make_graph(
        [helper.make_node(op, i, o, name=f"{op}_{o[0]}", **a) for op, i, o, a in nodes],
        "net",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()]
        + [helper.make_tensor_value_info(k, TensorProto.INT64, v) for k, v in (whole or {}).items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
        + [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in (positions or {}).items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(shape_inference.infer_shapes(model, strict_mode=True)))


def quantized(graph: Graph, ops: dict[str, Any] | None = None, *, integer_inputs: bool = False) -> Graph:
    scheme = Scheme.model_validate(
        {"activation": "int8", "integer_inputs": integer_inputs, "ops": ops or OPS}
    )
    plan = make_plan(graph, scheme)
    params = {t: activation_params(-4.0, 4.0, Format.INT8) for t in plan.tensors}
    return insert_qdq(graph, plan, params, scheme)


def weights(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 0.3, (4, 4, 3, 3))


PAD = {"pads": [1, 1, 1, 1]}


def detector() -> Graph:
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], PAD),
        ("Relu", ["a"], ["b"], {}),
        ("Conv", ["b", "w2"], ["boxes"], PAD),
        ("Conv", ["b", "w3"], ["scores"], PAD),
        ("Sigmoid", ["scores"], ["p"], {}),
        ("Mul", ["boxes", "anchor"], ["scaled"], {}),
        ("Concat", ["scaled", "p"], ["out"], {"axis": 1}),
    ]
    constants = {"w1": weights(1), "w2": weights(2), "w3": weights(3), "anchor": [2.0]}
    return graph_of(nodes, constants, {"x": (1, 4, 6, 6)}, ["out"])


def run_parts(parts: Split, feeds: dict[str, Any]) -> dict[str, Any]:
    """Front, body and decoder one after the other, in ONNX Runtime."""
    known = dict(feeds)
    for part in (parts.front, parts.body, parts.decoder):
        if part is not None:
            given = {s.name: known[s.name] for s in part.inputs}
            known.update(open_runner(part, threads=1, optimize=False, integer=False).run(given))
    return known


def test_the_float_tail_becomes_the_decoder() -> None:
    graph = quantized(detector())
    parts = split(graph)
    assert parts.front is None
    assert parts.decoder is not None
    assert {n.op_type for n in parts.decoder.nodes} == {"Sigmoid", "Mul", "Concat"}
    assert [p.name for p in parts.outputs] == ["boxes_dequantized", "scores_dequantized"]
    assert {s.name for s in parts.decoder.inputs} == {"boxes_dequantized", "scores_dequantized"}
    assert [s.name for s in parts.decoder.outputs] == ["out"]
    assert parts.inputs[0].name == "x"
    assert parts.inputs[0].shape == (1, 4, 6, 6)


def test_every_port_knows_its_codes() -> None:
    parts = split(quantized(detector()))
    for port in (*parts.inputs, *parts.outputs):
        assert port.quantization is not None
        assert port.quantization.scale[0] == np.float32(8 / 255)
        assert port.dtype == np.float32


def test_the_parts_compute_what_the_whole_computes() -> None:
    graph = quantized(detector())
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (1, 4, 6, 6)).astype(np.float32)}
    whole = open_runner(graph, threads=1, optimize=False, integer=False).run(feeds)
    assert np.array_equal(run_parts(split(graph), feeds)["out"], whole["out"])


def test_a_float_graph_is_all_body() -> None:
    graph = detector()
    parts = split(graph)
    assert parts.body is graph
    assert parts.front is None
    assert parts.decoder is None
    assert parts.inputs[0].quantization is None
    assert [p.name for p in parts.outputs] == ["out"]


def test_without_a_tail_there_is_no_decoder() -> None:
    nodes: list[Any] = [("Conv", ["x", "w1"], ["a"], PAD), ("Conv", ["a", "w2"], ["out"], PAD)]
    graph = graph_of(nodes, {"w1": weights(1), "w2": weights(2)}, {"x": (1, 4, 6, 6)}, ["out"])
    parts = split(quantized(graph))
    assert parts.decoder is None
    assert [p.name for p in parts.outputs] == ["out"]


def test_an_output_may_also_be_read_by_the_tail() -> None:
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], PAD),
        ("Conv", ["a", "w2"], ["raw"], PAD),
        ("Sigmoid", ["raw"], ["p"], {}),
    ]
    graph = graph_of(nodes, {"w1": weights(1), "w2": weights(2)}, {"x": (1, 4, 6, 6)}, ["raw", "p"])
    parts = split(quantized(graph))
    assert [p.name for p in parts.outputs] == ["raw"]
    assert parts.decoder is not None
    assert [s.name for s in parts.decoder.inputs] == ["raw"]
    assert [s.name for s in parts.decoder.outputs] == ["p"]


def test_float_nodes_before_the_first_codes_become_the_front() -> None:
    nodes: list[Any] = [
        ("Sin", ["x"], ["s"], {}),
        ("Conv", ["s", "w1"], ["a"], PAD),
        ("Conv", ["a", "w2"], ["b"], PAD),
        ("Mul", ["b", "s"], ["out"], {}),
    ]
    graph = quantized(graph_of(nodes, {"w1": weights(1), "w2": weights(2)}, {"x": (1, 4, 6, 6)}, ["out"]))
    parts = split(graph)
    assert parts.front is not None
    assert [n.op_type for n in parts.front.nodes] == ["Sin"]
    assert [p.name for p in parts.inputs] == ["s"]
    assert parts.decoder is not None
    # What the tail needs of the front it computes again.
    assert {s.name for s in parts.decoder.inputs} == {"b_dequantized", "x"}
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (1, 4, 6, 6)).astype(np.float32)}
    whole = open_runner(graph, threads=1, optimize=False, integer=False).run(feeds)
    assert np.array_equal(run_parts(parts, feeds)["out"], whole["out"])


def test_the_front_takes_all_inputs_of_the_graph_and_looks_words_up_where_the_body_cannot() -> None:
    nodes: list[Any] = [
        ("Gather", ["table", "ids"], ["rows"], {"axis": 0}),
        ("Unsqueeze", ["rows", "first"], ["image"], {}),
        ("Conv", ["image", "w1"], ["a"], PAD),
        ("Sin", ["x"], ["s"], {}),
        ("Add", ["a", "s"], ["b"], {}),
        ("Conv", ["b", "w2"], ["out"], PAD),
    ]
    table = np.random.default_rng(0).normal(0, 1, (9, 6, 6))
    constants = {"w1": weights(1), "w2": weights(2), "table": table}
    graph = graph_of(nodes, constants, {"x": (1, 4, 6, 6)}, ["out"], {"ids": (4,)}, {"first": [0]})
    ops = OPS | {"Gather": {"moves": True}, "Unsqueeze": {"moves": True}}
    graph = quantized(graph, ops, integer_inputs=True)
    random = np.random.default_rng(1)
    feeds = {"x": random.normal(0, 1, (1, 4, 6, 6)).astype(np.float32), "ids": np.array([3, 0, 8, 3])}
    whole = open_runner(graph, threads=1, optimize=False, integer=False).run(feeds)
    for lookups in (True, False):
        parts = split(graph, lookups=lookups)
        assert parts.front is not None
        assert [s.name for s in parts.front.inputs] == ["x", "ids"]
        assert [n.op_type for n in parts.front.nodes] == (["Sin"] if lookups else ["Gather", "Sin"])
        assert {p.name for p in parts.inputs} == ({"ids", "s"} if lookups else {"rows", "s"})
        assert np.array_equal(run_parts(parts, feeds)["out"], whole["out"])


def test_what_needs_no_operator_is_in_a_body_that_computes_in_float_too() -> None:
    nodes: list[Any] = [
        ("Unsqueeze", ["ids", "first"], ["mask"], {}),
        ("Cast", ["mask"], ["numbers"], {"to": TensorProto.FLOAT}),
        ("Conv", ["x", "w1"], ["a"], PAD),
        ("Add", ["a", "numbers"], ["b"], {}),
        ("Conv", ["b", "w2"], ["out"], PAD),
    ]
    constants = {"w1": weights(1), "w2": weights(2)}
    graph = graph_of(nodes, constants, {"x": (1, 4, 6, 6)}, ["out"], {"ids": (6,)}, {"first": [0, 1, 2]})
    graph = quantized(graph)
    front = split(graph).front
    assert front is not None
    assert [n.op_type for n in front.nodes] == ["Unsqueeze", "Cast"]
    assert split(graph, mixed=True).front is None


def test_float_nodes_between_integer_ones_are_refused_with_reason_and_remedy() -> None:
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], PAD),
        ("Erf", ["a"], ["e"], {}),
        ("Sin", ["e"], ["s"], {}),
        ("Conv", ["s", "w2"], ["out"], PAD),
    ]
    graph = quantized(graph_of(nodes, {"w1": weights(1), "w2": weights(2)}, {"x": (1, 4, 6, 6)}, ["out"]))
    with pytest.raises(RefusedNodesError) as caught:
        split(graph, {"Erf_e": "the target has no integer kernel for Erf"})
    assert [(n.op, n.node) for n in caught.value.nodes] == [("Erf", "Erf_e"), ("Sin", "Sin_s")]
    assert "no integer kernel for Erf" in caught.value.nodes[0].rule
    assert all(n.remedy for n in caught.value.nodes)
    assert caught.value.exit_code == 2
