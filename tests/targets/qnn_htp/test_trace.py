"""The trace: the file's names given back, what computes in float, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from edgekit.errors import ToolError
from edgekit.targets.qnn_htp.process import compile_context
from edgekit.targets.qnn_htp.trace import Trace, read_trace, unplaced

SOC, ARCH = 57, 75
Pair = Callable[..., list[NodeProto]]
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def _compiled(model: Path, tmp_path: Path) -> Trace:
    pytest.importorskip("onnxruntime_qnn")
    return compile_context(model, SOC, ARCH, tmp_path / "out").trace


def test_every_node_of_the_file_is_found(convolutions: Path, tmp_path: Path) -> None:
    trace = _compiled(convolutions, tmp_path)
    by_node = {name: mapping for mapping in trace.mappings for name in mapping.nodes}
    assert trace.qnn_of("first") == trace.qnn_of("relu") == ("Conv2d",)
    assert by_node["first"] is by_node["relu"]
    assert by_node["first"].ops == ("Conv", "Relu")
    assert by_node["first"].quantizers == ("w1_DQ", "b_Q", "a_DQ")
    assert trace.qnn_of("gate") == ("Sigmoid",)
    assert by_node["gate"].quantizers == ("b16_DQ", "h16_Q")
    assert trace.qnn_of("scaled") == ("ElementWiseMultiply",)
    assert trace.qnn_of("second") == ("Conv2d",)
    assert trace.qnn_of("flat") == ("Reshape",)
    # From 8 to 16 bits and back: a DQ and a Q with nothing between them.
    assert trace.qnn_of("b16_Q") == ("Convert",)
    assert trace.qnn_of("no such node") == ()
    file = {node.name for node in onnx.load(convolutions).graph.node}
    assert {n for m in trace.mappings for n in (*m.nodes, *m.quantizers)} == file
    assert trace.removed == ()
    assert trace.refused == ()


def test_what_the_layout_needs_is_not_the_files(convolutions: Path, tmp_path: Path) -> None:
    trace = _compiled(convolutions, tmp_path)
    inserted = [mapping for mapping in trace.mappings if not mapping.nodes and not mapping.is_conversion]
    assert len(trace.inserted) == len(inserted) > 0
    assert {mapping.qnn_ops for mapping in inserted} == {("Transpose",)}
    assert all(name.startswith("Transpose") for name in trace.inserted)


def test_counts_add_up(convolutions: Path, tmp_path: Path) -> None:
    trace = _compiled(convolutions, tmp_path)
    assert sum(trace.qnn_ops.values()) == sum(len(mapping.qnn_ops) for mapping in trace.mappings)
    assert trace.qnn_ops["Conv2d"] == 2
    assert trace.qnn_ops["Quantize"] == trace.qnn_ops["Dequantize"] == 1
    assert trace.qnn_ops["Convert"] == 2
    assert trace.conversions == ("a_Q", "b_DQ", "b16_Q", "n16_DQ", "d_Q", "y_DQ")
    assert trace.fusions["DQQFusion"] == 2
    assert trace.complete
    assert trace.supported == trace.total
    assert (trace.soc_model, trace.arch, trace.subgraphs) == (SOC, 0, 1)


def test_nodes_without_their_group_compute_in_float(
    save: Callable[..., Path], pair: Pair, tmp_path: Path
) -> None:
    nodes = [
        *pair("x", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="whole"),
        *pair("b", "c"),
        helper.make_node("Mul", ["c", "c"], ["d"], name="no_q"),
        helper.make_node("Tanh", ["d"], ["e"], name="neither"),
        helper.make_node("Sigmoid", ["e"], ["f"], name="no_dq"),
        *pair("f", "y"),
    ]
    model = save(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]})
    trace = _compiled(model, tmp_path)
    assert trace.float_nodes == ("no_q", "neither", "no_dq")
    assert trace.complete  # the provider takes them all the same
    assert trace.conversions == ("a_Q", "c_DQ", "y_Q", "y_DQ")


def test_an_operator_that_the_provider_takes_in_float_is_found(
    save: Callable[..., Path], pair: Pair, tmp_path: Path
) -> None:
    # 16-bit input and 8-bit slopes: no such kernel, and no complaint.
    nodes = [
        *pair("x", "a", "16"),
        helper.make_node("DequantizeLinear", ["slope_q", "s", "z"], ["slope"], name="slope_DQ"),
        helper.make_node("PRelu", ["a", "slope"], ["b"], name="prelu"),
        *pair("b", "y", "16"),
    ]
    slope = {"slope_q": np.full((4, 1, 1), 140, np.uint8)}
    model = save(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, initializers=slope)
    assert _compiled(model, tmp_path).float_nodes == ("prelu",)


@pytest.mark.parametrize("op", ["ReduceL2", "Max"])
def test_a_node_of_several_operators_in_float_is_found(
    save: Callable[..., Path], pair: Pair, tmp_path: Path, op: str
) -> None:
    """The provider takes the Q and DQ around it, and converts within."""
    inputs = ["a", "axes"] if op == "ReduceL2" else ["a", "b", "a"]
    nodes = [
        *pair("x", "a"),
        helper.make_node("Tanh", ["a"], ["t"], name="tanh"),
        *pair("t", "b"),
        helper.make_node(op, inputs, ["c"], name="op"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["c_q"], name="c_Q"),
        helper.make_node("DequantizeLinear", ["c_q", "s", "z"], ["d"], name="c_DQ"),
        helper.make_node("Add", ["d", "b"], ["e"], name="add"),
        *pair("e", "y"),
    ]
    shape: list[int | str] = [1, 4, 8, 8]
    model = save(nodes, {"x": [1, 4, 8, 8]}, {"y": shape}, initializers={"axes": np.array([1])})
    assert _compiled(model, tmp_path).float_nodes == ("op",)


def test_integer_outputs_are_not_float(save: Callable[..., Path], pair: Pair, tmp_path: Path) -> None:
    nodes = [
        *pair("x", "a"),
        helper.make_node("ArgMax", ["a"], ["b"], name="best", axis=1),
        helper.make_node("Cast", ["b"], ["y"], name="cast", to=TensorProto.INT32),
    ]
    trace = _compiled(save(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 1, 8, 8]}, kind=TensorProto.INT32), tmp_path)
    assert trace.float_nodes == ()
    assert trace.qnn_of("best") == ("Argmax",)


def test_transposes_that_cancel_are_removed(save: Callable[..., Path], pair: Pair, tmp_path: Path) -> None:
    weight = {"w_q": np.full((4, 4, 1, 1), 3, np.int8), "w_s": np.float32(0.1), "w_z": np.int8(0)}
    nodes = [
        *pair("x", "a"),
        helper.make_node("Transpose", ["a"], ["b"], name="to_nchw", perm=[0, 3, 1, 2]),
        *pair("b", "c"),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], name="w_DQ"),
        helper.make_node("Conv", ["c", "w"], ["d"], name="conv"),
        *pair("d", "y"),
    ]
    model = save(nodes, {"x": [1, 8, 8, 4]}, {"y": [1, 4, 8, 8]}, initializers=weight)
    trace = _compiled(model, tmp_path)
    assert trace.removed == ("to_nchw",)
    assert trace.qnn_of("conv") == ("Conv2d",)


def test_names_are_given_back_from_the_file(tmp_path: Path, save: Callable[..., Path], pair: Pair) -> None:
    nodes = [
        *pair("x", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="relu_token_7"),
        *pair("b", "c"),
        helper.make_node("Tanh", ["c"], ["d"], name="tanh"),
        *pair("d", "y"),
    ]
    model = save(nodes, {"x": [1, 8]}, {"y": [1, 8]})
    entries = [
        _entry("Relu", "a_DQ/duplicated", "relu_token_7_token_12", "QuantizeLinear_token_3"),
        _entry("Tanh", "c_DQ/duplicated_1", "tanh_token_9", "y_Q"),
        _entry("Transpose", "Transpose_token_8"),
        _entry("Dequantize", "c_q_to_dq"),
    ]
    trace = read_trace(_write(tmp_path, entries), model)
    assert trace.qnn_of("relu_token_7") == ("Relu",)
    assert trace.mappings[0].quantizers == ("a_DQ", "c_Q")
    assert trace.qnn_of("tanh") == ("Tanh",)
    assert trace.inserted == ("Transpose_token_8",)
    assert trace.float_nodes == ()
    assert trace.removed == ()
    # Without the file a name that ends like one of the provider's loses its end.
    assert read_trace(_write(tmp_path, entries)).qnn_of("relu") == ("Relu",)


def test_a_node_of_several_operators_is_one_mapping(tmp_path: Path) -> None:
    trace = read_trace(_write(tmp_path, [_entry("Transpose", "soft"), _entry("Softmax", "soft")]))
    assert trace.qnn_of("soft") == ("Transpose", "Softmax")
    assert len(trace.mappings) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"subgraph_traces": []}', '{"subgraph_traces": [{}]}'])
def test_another_form_of_trace_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "qnn_op_trace.json").write_text(text)
    with pytest.raises(ToolError, match=r"not as the QNN execution provider 2\.7 writes it"):
        read_trace(tmp_path / "qnn_op_trace.json")


def test_a_missing_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="wrote no trace"):
        read_trace(tmp_path / "qnn_op_trace.json")


def test_reasons_in_the_messages() -> None:
    log = """
2026-01-01 1:2 [V:onnxruntime:, a.cc:1 F] Validation PASSED for 1 nodes in OrtNodeUnit (QuantizeLinear) :
	Operator type: QuantizeLinear Node name: q Node index: 0

2026-01-01 1:2 [V:onnxruntime:, a.cc:1 F] Validation FAILED for 3 nodes in OrtNodeUnit (Erf) :
	Operator type: DequantizeLinear Node name: dq Node index: 1
	Operator type: Erf Node name: an erf Node index: 2
	Operator type: QuantizeLinear Node name: q Node index: 3
	REASON : No Erf.Erf node `an erf` will not be assigned to QNN EP.

2026-01-01 1:2 [E:onnxruntime:, a.cc:1 F] Unsupported nodes in QNN EP: { name: an erf, type: Erf }\
{ name: m, type: Mish }{ name: QNNExecutionProvider_1_0, type: QNNExecutionProvider_1 },
"""
    assert [(n.node, n.op, n.reason) for n in unplaced(log)] == [
        ("an erf", "Erf", "No Erf"),
        ("m", "Mish", "The QNN execution provider does not support it"),
    ]
    assert unplaced("") == ()


@pytest.mark.parametrize("name", ["mobilefacenet", "yolox_nano"])
def test_names_of_a_real_model(name: str, tmp_path: Path) -> None:
    """Float as it is: HTP takes it so, and every node is found; what is left of none is named."""
    pytest.importorskip("onnxruntime_qnn")
    source = Path(__file__).parents[3].parent / "shared" / "models" / f"{name}.onnx"
    if not source.is_file():
        pytest.skip("no ../shared/models here")
    trace = compile_context(source, SOC, ARCH, tmp_path / "out").trace
    nodes = [n for n in onnx.load(source).graph.node if n.op_type not in (*_QDQ, "Constant")]
    missing = {n.name: n.op_type for n in nodes if not trace.qnn_of(n.name)}
    assert set(trace.removed) == set(missing)
    assert set(missing.values()) <= {"Transpose", "Slice", "Concat"}
    assert len(missing) < len(nodes) / 10
    assert len(trace.float_nodes) > len(nodes) / 2


def _entry(op: str, *names: str) -> dict[str, Any]:
    sources = [{"name": name, "type": "OP"} for name in names]
    return {"dst_qnn_op_type": op, "dst_name": names[0], "node_group_type": "OrtNodeUnit", "sources": sources}


def _write(folder: Path, entries: list[dict[str, Any]]) -> Path:
    trace = {
        "soc_traces": [{"compilation_target": {"htp_arch": "V75", "soc_model": 0}}],
        "subgraph_traces": [{"op_mappings": entries}],
        "summary": {"fusion_count": {}, "qnn_subgraphs": 1, "supported_nodes": 1, "total_onnx_nodes": 1},
        "unsupported_nodes": [],
    }
    path = folder / "qnn_op_trace.json"
    path.write_text(json.dumps(trace))
    return path
