"""Front, compiled body and decoder in one file, run by the QNN provider and the CPU provider together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError, UsageError
from edgekit.graph import Graph
from edgekit.parts import Parts, cut
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.quantized_ends import ENDS_KEY, quantized_ends, read_ends
from edgekit.session import open_runner
from edgekit.targets.qnn_htp.assemble import assemble

SOC, ARCH = 57, 75


def numbers() -> dict[str, np.ndarray[Any, Any]]:
    """Scales, zero points, shapes and limits."""
    return {
        "in_s": np.array(1 / 255, np.float32),
        "in_z": np.array(0, np.uint8),
        "mid_s": np.array(0.01, np.float32),
        "mid_z": np.array(128, np.uint8),
        "w_z": np.array(0, np.int8),
        "w_s": np.array(0.004, np.float32),
        "one": np.array(1 / 255, np.float32),
        "flat4": np.array([1, 4, 64], np.int64),
        "flat2": np.array([1, 2, 64], np.int64),
        "most": np.array([5], np.int64),
        "iou": np.array([0.5], np.float32),
        "least": np.array([0.0], np.float32),
    }


def detector() -> Graph:
    """Pixels in, boxes by NonMaxSuppression and the raw scores out."""
    random = np.random.default_rng(0)
    constants = numbers()
    nodes: list[onnx.NodeProto] = []

    def add(op: str, given: list[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, given, [out], name=f"{op}_{out}", **attributes))
        return out

    def pair(source: str, kind: str) -> str:
        codes = add("QuantizeLinear", [source, f"{kind}_s", f"{kind}_z"], f"{source}_quantized")
        return add("DequantizeLinear", [codes, f"{kind}_s", f"{kind}_z"], f"{source}_dequantized")

    def conv(source: str, out: str, ins: int, outs: int, **attributes: Any) -> str:
        constants[f"{out}_w"] = random.integers(-127, 128, (outs, ins, 3, 3), dtype=np.int8)
        weight = add("DequantizeLinear", [f"{out}_w", "w_s", "w_z"], f"{out}_wd")
        return add("Conv", [source, weight], out, pads=[1] * 4, kernel_shape=[3, 3], **attributes)

    add("Cast", ["pixels"], "floats", to=TensorProto.FLOAT)
    add("Mul", ["floats", "one"], "image")
    stem = add("Relu", [conv(pair("image", "in"), "stem", 3, 8, strides=[2, 2])], "stem_relu")
    body = pair(stem, "mid")
    boxes, scores = pair(conv(body, "boxes", 8, 4), "mid"), pair(conv(body, "scores", 8, 2), "mid")
    add("Mul", [scores, "gain"], "scaled")
    add("Reshape", ["scaled", "flat2"], "by_class")
    add("Transpose", [add("Reshape", [boxes, "flat4"], "rows")], "cells", perm=[0, 2, 1])
    add("NonMaxSuppression", ["cells", "by_class", "most", "iou", "least"], "kept", center_point_box=1)
    add("Mul", [scores, add("ReduceMean", ["image"], "mean", keepdims=1)], "raw")
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("gain", TensorProto.FLOAT, [1, 2, 1, 1]),
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 3, 16, 16]),
        ],
        [
            helper.make_tensor_value_info("raw", TensorProto.FLOAT, [1, 2, 8, 8]),
            helper.make_tensor_value_info("kept", TensorProto.INT64, ["count", 3]),
        ],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def feeds() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "pixels": random.integers(0, 256, (1, 3, 16, 16), dtype=np.uint8),
        "gain": np.array([0.9, 1.1], np.float32).reshape(1, 2, 1, 1),
    }


@dataclass(frozen=True)
class Case:
    whole: Graph
    parts: Parts
    body: Graph
    context: Path


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The detector with its body compiled, codes at the body's ends."""
    pytest.importorskip("onnxruntime_qnn")
    from edgekit.targets.qnn_htp.process import compile_context

    folder = tmp_path_factory.mktemp("assemble")
    whole = detector()
    parts = cut(whole)
    body = quantized_ends(parts.body)
    body.save(folder / "body.onnx")
    return Case(whole, parts, body, compile_context(folder / "body.onnx", SOC, ARCH, folder / "made").context)


def emulated(path: Path, given: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    from edgekit.targets.qnn_htp.child import Job, QnnProcess

    with QnnProcess() as process:
        answer = process.do(Job(path, SOC, compiled=True, feeds=[given], strict=strict), timeout_s=120)
    assert not answer.refused, answer.refused
    return dict(answer.outputs[0])


def by_hand(case: Case) -> dict[str, Any]:
    """Front on the CPU, body in the emulator, decoder on the CPU, one after the other."""
    from edgekit.coded import dequantize, quantize
    from edgekit.targets.qnn_htp.process import run_emulated

    ends = read_ends(case.body.model.metadata_props)
    assert ends is not None
    assert case.parts.front is not None
    assert case.parts.decoder is not None
    front = open_runner(case.parts.front, threads=1).run(feeds())
    codes = {end.name: quantize(front[end.name], end) for end in ends.inputs}
    (found,) = run_emulated(case.context, [codes], soc=SOC, arch=ARCH)
    real = {end.name: dequantize(found[end.name], end) for end in ends.outputs}
    decoder = open_runner(case.parts.decoder, threads=1)
    return decoder.run({name: (real | feeds())[name] for name in decoder.input_names})


def test_the_assembled_file_computes_what_its_parts_compute_by_hand(case: Case) -> None:
    out = case.context.with_name("whole.ctx.onnx")
    assert assemble(case.parts.front, case.context, case.parts.decoder, out, whole=case.whole) == out
    wanted, found = by_hand(case), emulated(out, feeds(), strict=False)
    assert len(wanted["kept"]), "a test without boxes says nothing"
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    onnx_cpu = open_runner(case.whole, threads=1).run(feeds())
    assert np.abs(found["raw"] - onnx_cpu["raw"]).max() < 0.03, "codes differ by one step or two, no more"


def test_inputs_and_outputs_are_those_of_the_whole_and_the_binary_is_named_beside_it(case: Case) -> None:
    out = assemble(
        case.parts.front, case.context, case.parts.decoder, case.context.with_name("w.onnx"), whole=case.whole
    )
    model = onnx.load(out, load_external_data=False)
    wanted = case.whole.to_proto().graph
    assert list(model.graph.input) == list(wanted.input)
    assert list(model.graph.output) == list(wanted.output)
    ops = [n.op_type for n in model.graph.node]
    assert ops.count("EPContext") == 1
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (1, 2)
    assert ops.count("Cast") == 1, "what front and decoder both need is there once"
    (context,) = (n for n in model.graph.node if n.op_type == "EPContext")
    named = {a.name: helper.get_attribute_value(a) for a in context.attribute}["ep_cache_context"].decode()
    assert (out.parent / named).is_file()
    metadata = {p.key: p.value for p in model.metadata_props}
    assert ENDS_KEY not in metadata
    assert any("compatibility" in key for key in metadata)


def test_without_ends_the_file_is_the_context_with_float_ends_or_codes(case: Case) -> None:
    bare = assemble(None, case.context, None, case.context.with_name("bare.onnx"))
    ends = read_ends({p.key: p.value for p in onnx.load(bare, load_external_data=False).metadata_props})
    assert ends == read_ends(case.body.model.metadata_props)
    floats = assemble(None, case.context, None, case.context.with_name("floats.onnx"), whole=case.parts.body)
    image = np.random.default_rng(2).uniform(0, 1, (1, 3, 16, 16)).astype(np.float32)
    codes = np.clip(np.rint(image / np.float32(1 / 255)), 0, 255).astype(np.uint8)
    first, second = (
        emulated(bare, {"image": codes}, strict=True),
        emulated(floats, {"image": image}, strict=False),
    )
    for name, found in first.items():
        real = (found.astype(np.int32) - 128).astype(np.float32) * np.float32(0.01)
        np.testing.assert_array_equal(second[name], real)


def test_the_order_without_the_whole_is_front_first(case: Case) -> None:
    out = assemble(case.parts.front, case.context, case.parts.decoder, case.context.with_name("o.onnx"))
    model = onnx.load(out, load_external_data=False)
    assert [v.name for v in model.graph.input] == ["gain", "pixels"]
    assert {v.name for v in model.graph.output} == {"raw", "kept"}
    found = emulated(out, feeds(), strict=False)
    np.testing.assert_array_equal(found["raw"], by_hand(case)["raw"])


def test_what_does_not_fit_is_refused(case: Case, tmp_path: Path) -> None:
    front, decoder = case.parts.front, case.parts.decoder
    with pytest.raises(UsageError, match="beside the context model"):
        assemble(front, case.context, decoder, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="'image', which no part gives"):
        assemble(None, case.context, decoder, case.context.with_name("x.onnx"), whole=case.whole)
    with pytest.raises(ModelError, match="holds codes for one part and floats for another"):
        assemble(None, case.context, decoder, case.context.with_name("x.onnx"), whole=case.body)
    case.parts.body.save(tmp_path / "body.onnx")
    with pytest.raises(ModelError, match="no context model"):
        assemble(front, tmp_path / "body.onnx", decoder, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="there is no such file"):
        assemble(front, tmp_path / "none.onnx", decoder, tmp_path / "out.onnx")
    shutil.copy(case.context, tmp_path / case.context.name)
    with pytest.raises(ModelError, match=r"binary .* not beside it"):
        assemble(front, tmp_path / case.context.name, decoder, tmp_path / "out.onnx")
    assert not case.context.with_name("x.onnx").exists()


def test_codes_that_nothing_explains_are_refused(case: Case) -> None:
    model = onnx.load(case.context, load_external_data=False)
    kept = [p for p in model.metadata_props if p.key != ENDS_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    unexplained = case.context.with_name("unexplained.ctx.onnx")
    onnx.save(model, unexplained)
    with pytest.raises(
        ModelError, match=r"'image' is uint8 in the compiled body and float around it.*edgekit\.io"
    ):
        assemble(case.parts.front, unexplained, case.parts.decoder, case.context.with_name("x.onnx"))
