"""The toolchain in a process of its own: what it makes, and one clear error for every way it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from edgekit.errors import ModelError, OutputError, ToolError
from edgekit.session import open_runner
from edgekit.targets.qnn_htp.process import RefusedNodesError, compile_context, run_emulated
from edgekit.targets.qnn_htp.profiles import load_profiles

SOC, ARCH = 57, 75
Feeds = Callable[..., list[dict[str, np.ndarray[Any, Any]]]]
Chain = Callable[..., Path]
Fake = Callable[[str], str]

_RESULT = 'print(json.dumps({"result": {"seconds": 1, "run_seconds": 0, "names": []}}), flush=True)'
_TRACE = {
    "soc_traces": [{"compilation_target": {"htp_arch": "", "soc_model": SOC}}],
    "subgraph_traces": [{"op_mappings": []}],
    "summary": {"fusion_count": {}, "qnn_subgraphs": 1, "supported_nodes": 3, "total_onnx_nodes": 3},
    "unsupported_nodes": [],
}


def _traced(**changed: Any) -> str:
    """Code that writes a trace."""
    trace = {**_TRACE, **changed}
    return f"open(job['trace'] + '/qnn_op_trace.json', 'w').write(json.dumps({trace!r}))\n"


def _context(soc: int = SOC, arch: int = ARCH) -> str:
    """Code that writes a context model and its binary."""
    return f"""
import onnx
from onnx import helper
node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0,
                        ep_cache_context="int8.ctx_qnn.bin", ep_sdk_version="v2.51.0")
values = [helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
info = "v2:6:2.51.0:5.51.0:0:{soc}:0:0"
helper.set_model_props(model, {{"ep_compatibility_info.QNNExecutionProvider": info}})
onnx.save(model, job["context"])
binary = os.path.dirname(job["context"]) + "/int8.ctx_qnn.bin"
open(binary, "wb").write(b"soc_type=SM1;arch={arch};vtcm_size=4096;")
"""


def test_a_context_and_the_proof_of_it(convolutions: Path, feeds: Feeds, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    samples = feeds((1, 4, 16, 16), 2)
    made = compile_context(convolutions, SOC, ARCH, tmp_path / "out", stem="net", feeds=samples)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["net.ctx.onnx", "net.ctx_qnn.bin"]
    assert (made.stamp.soc, made.stamp.arch, made.stamp.soc_model) == ("SM8650", ARCH, SOC)
    assert made.stamp.vtcm_bytes == 8 << 20
    assert made.trace.complete
    assert made.trace.float_nodes == ()
    assert made.log == ()
    assert made.seconds > 0
    (node,) = onnx.load(made.context).graph.node
    assert node.op_type == "EPContext"
    assert (list(node.input), list(node.output)) == (["x"], ["y"])
    assert next(a.s for a in node.attribute if a.name == "ep_cache_context") == b"net.ctx_qnn.bin"
    expected = open_runner(convolutions, threads=1).run(samples[1])["y"]
    assert np.abs(made.outputs[1]["y"] - expected).max() <= 0.0201  # one code
    assert made.outputs[1]["y"].std() > 0.1

    # Moved together, and loaded again, it gives what the session that made it gave.
    shutil.move(tmp_path / "out", tmp_path / "moved")
    again = run_emulated(tmp_path / "moved" / made.context.name, samples, soc=SOC, arch=ARCH)
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(again, made.outputs, strict=True))
    assert not np.array_equal(again[0]["y"], again[1]["y"])


def test_one_model_gives_one_binary(chain: Chain, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    model = chain("Relu", "Tanh")
    (tmp_path / "elsewhere").mkdir()
    other = Path(shutil.copy(model, tmp_path / "elsewhere" / "other.onnx"))
    first = compile_context(model, SOC, ARCH, tmp_path / "a")
    second = compile_context(other, SOC, ARCH, tmp_path / "b")
    assert first.binary.read_bytes() == second.binary.read_bytes()
    assert first.context.read_bytes() == second.context.read_bytes()


def test_outputs_come_in_the_models_order_and_type(
    save: Callable[..., Path], pair: Callable[..., list[NodeProto]], feeds: Feeds
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    nodes = [
        *pair("x", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["z_out"], name="codes"),
        helper.make_node("Tanh", ["a"], ["c"], name="tanh"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["a_out"], name="others"),
    ]
    shape = [1, 4, 8, 8]
    model = save(nodes, {"x": shape}, {"z_out": shape, "a_out": shape}, kind=TensorProto.UINT8)
    samples = feeds(tuple(shape))
    (both,) = run_emulated(model, samples, soc=SOC, arch=ARCH)
    assert list(both) == ["z_out", "a_out"]
    assert {array.dtype for array in both.values()} == {np.dtype(np.uint8)}
    (one,) = run_emulated(model, samples, soc=SOC, arch=ARCH, outputs=["a_out"])
    assert list(one) == ["a_out"]
    assert np.array_equal(one["a_out"], both["a_out"])


@pytest.mark.parametrize(
    ("soc", "arch", "name"), [(30, 68, "SM8350"), (43, 73, "SM8550"), (69, 79, "SM8750")]
)
def test_the_binary_says_what_it_is_for(chain: Chain, tmp_path: Path, soc: int, arch: int, name: str) -> None:
    pytest.importorskip("onnxruntime_qnn")
    made = compile_context(chain("Relu"), soc, arch, tmp_path / "out")
    assert (made.stamp.soc, made.stamp.arch) == (name, arch)
    with pytest.raises(ToolError, match=rf"made for {name} \(SoC {soc}, v{arch}\), not for SoC 57, v75"):
        run_emulated(made.context, [], soc=SOC, arch=ARCH)


@pytest.mark.parametrize(
    ("soc", "arch"),
    [(soc, profile.arch) for profile in load_profiles().values() for soc in profile.socs.values()],
)
def test_every_soc_of_a_profile_gets_its_architecture(
    convolutions: Path, tmp_path: Path, soc: int, arch: int
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    stamp = compile_context(convolutions, soc, arch, tmp_path / "out").stamp
    assert (stamp.soc_model, stamp.arch) == (soc, arch)


def test_an_architecture_that_the_soc_has_not_is_an_error(chain: Chain, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(ToolError, match=r"SM8550 \(SoC 43, v73\), not for SoC 43, v75.*belong together"):
        compile_context(chain("Relu"), 43, 75, tmp_path / "out")
    # SM8475 is v69, but this toolchain prepares for v68.
    with pytest.raises(ToolError, match=r"v68\), not for SoC 42, v69"):
        compile_context(chain("Relu"), 42, 69, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_soc_is_an_error(chain: Chain, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(ToolError, match="has no SoC 9999: QNN SetupBackend failed"):
        compile_context(chain("Relu"), 9999, ARCH, tmp_path / "out")


@pytest.mark.parametrize(
    ("ops", "node", "reason"),
    [
        (("Erf",), "n0", "not supported by QNN EP"),  # nothing is left for HTP, so that there is no trace
        (("Relu", "Erf", "Tanh"), "n1", "not supported by QNN EP"),
        (("Relu", "Mish"), "n1", "does not support"),  # ONNX Runtime puts its definition in its place
    ],
)
def test_refused_nodes_are_named(
    chain: Chain, tmp_path: Path, ops: tuple[str, ...], node: str, reason: str
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(RefusedNodesError, match="HTP refuses 1 node:") as caught:
        compile_context(chain(*ops), SOC, ARCH, tmp_path / "out")
    (left,) = caught.value.refused
    assert left.node == node
    assert left.op in ops
    assert reason in left.reason
    assert f"{left.op} {node}: {left.reason}" in str(caught.value)


def test_non_max_suppression_is_refused(
    save: Callable[..., Path], pair: Callable[..., list[NodeProto]], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    nodes = [
        *pair("boxes", "b"),
        *pair("x", "a"),
        helper.make_node("Sigmoid", ["a"], ["c"], name="scores"),
        *pair("c", "d"),
        helper.make_node("NonMaxSuppression", ["b", "d", "most"], ["y"], name="nms"),
    ]
    most = {"most": np.array([10], np.int64)}
    model = save(
        nodes,
        {"boxes": [1, 16, 4], "x": [1, 2, 16]},
        {"y": ["n", 3]},
        initializers=most,
        kind=TensorProto.INT64,
    )
    with pytest.raises(ModelError, match="NonMaxSuppression nms: "):
        compile_context(model, SOC, ARCH, tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV\nlast words$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL, most often because memory ran out"),
        ("raise SystemExit(3)", "ended early with exit code 3\nlast words$"),
        ("time.sleep(60)", r"took longer than 1 s and was ended\nlast words$"),
        ("print('no JSON')", "'no JSON', which is no answer"),
        (
            'print(json.dumps({"error": "RuntimeError: no device"}))',
            "failed: RuntimeError: no device\nlast words",
        ),
        (
            'print(json.dumps({"refused": "cannot compile"}))',
            "session on HTP is not made: cannot compile\nlast w",
        ),
        (_RESULT, "wrote no trace"),
        (_traced() + _RESULT, "wrote no context model"),
        (_traced(summary={}) + _RESULT, "trace is not as the QNN .* writes it: KeyError"),
        (
            _traced(summary={**_TRACE["summary"], "supported_nodes": 2}) + _RESULT,  # type: ignore[dict-item]
            "not say that the whole model is on HTP, but 2 of 3 nodes in 1 parts",
        ),
        (_traced() + _context(arch=68) + _RESULT, r"made for SM1 \(SoC 57, v68\), not for SoC 57, v75"),
        (_traced() + _context(soc=43) + _RESULT, r"made for SM1 \(SoC 43, v75\), not for SoC 57, v75"),
    ],
)
def test_every_failure_is_one_clear_error(
    chain: Chain, fake: Fake, tmp_path: Path, code: str, message: str
) -> None:
    head = "print('2026-01-01 12:00:00 [V:onnxruntime:, x.cc:1 F] small talk', file=sys.stderr)\n"
    head += "print('last words', file=sys.stderr, flush=True)\n"
    # The time for which a hang is waited for; the others must start within it.
    timeout = 1 if "sleep" in code else 60
    with pytest.raises(ToolError, match=message):
        compile_context(chain("Relu"), SOC, ARCH, tmp_path / "o", timeout_s=timeout, module=fake(head + code))
    assert not (tmp_path / "o").exists()


def test_refusals_of_the_trace_are_one_error(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    left = [
        {"node_name": "t0_DQ", "op_type": "DequantizeLinear", "reason": "no Foo"},
        {"node_name": "n0_token_3", "op_type": "Relu", "reason": "no Foo"},
        {"node_name": "y_Q", "op_type": "QuantizeLinear", "reason": "no Bar"},
    ]
    code = _traced(unsupported_nodes=left) + 'print(json.dumps({"refused": "fallback is disabled"}))'
    with pytest.raises(
        RefusedNodesError, match=r"2 nodes:\n  Relu n0: no Foo\n  QuantizeLinear y_Q: no Bar"
    ) as e:
        compile_context(chain("Relu"), SOC, ARCH, tmp_path / "out", module=fake(code))
    assert [node.node for node in e.value.refused] == ["n0", "y_Q"]


def test_a_fake_that_does_all_of_it_passes(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    done = compile_context(
        chain("Relu"), SOC, ARCH, tmp_path / "out", module=fake(_traced() + _context() + _RESULT)
    )
    assert done.binary.read_bytes().startswith(b"soc_type")
    assert done.stamp.to_json()["sdk"] == "v2.51.0"


def test_a_job_says_everything_that_matters(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'job.json')!r}, 'w').write(json.dumps(job))\n"
    model = chain("Relu")
    with pytest.raises(ToolError):
        compile_context(model, SOC, ARCH, tmp_path / "out", stem="a", module=fake(code))
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["strict"] is True
    assert job["options"] == {
        "soc_model": "57",
        "enable_htp_fp16_precision": "0",
        "offload_graph_io_quantization": "0",
    }
    assert Path(job["context"]).name == "a.ctx.onnx"
    assert job["trace"]
    assert job["external"] == ""


def test_without_the_package_the_error_says_what_to_install(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"not installed.*edgekit\[qnn\]"):
        compile_context(chain("Relu"), SOC, ARCH, tmp_path / "out")


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a protobuf \xff\xff")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        compile_context(tmp_path / "model.onnx", SOC, ARCH, tmp_path / "out")


def test_a_context_without_its_binary_is_an_error(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    done = compile_context(
        chain("Relu"), SOC, ARCH, tmp_path / "out", module=fake(_traced() + _context() + _RESULT)
    )
    done.binary.unlink()
    with pytest.raises(ToolError, match="binary is missing or empty"):
        run_emulated(done.context, [], soc=SOC, arch=ARCH)


def test_a_context_that_does_not_load_is_an_error(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    done = compile_context(
        chain("Relu"), SOC, ARCH, tmp_path / "out", module=fake(_traced() + _context() + _RESULT)
    )
    module = fake('print(json.dumps({"refused": "bad blob"}))')
    with pytest.raises(ToolError, match="does not load the context: bad blob"):
        run_emulated(done.context, [], soc=SOC, arch=ARCH, module=module)


def test_a_folder_that_cannot_be_written_is_an_error(chain: Chain, fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        compile_context(
            chain("Relu"), SOC, ARCH, tmp_path / "out", module=fake(_traced() + _context() + _RESULT)
        )
