"""Many models in one process: each with its own result, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ToolError
from edgekit.session import open_runner
from edgekit.targets.qnn_htp.child import QnnProcess
from edgekit.targets.qnn_htp.many import compile_many

SOC = 57
Feeds = Callable[..., list[dict[str, np.ndarray[Any, Any]]]]


def test_each_model_has_its_own_result(chain: Callable[..., Path], feeds: Feeds) -> None:
    pytest.importorskip("onnxruntime_qnn")
    ops = ("Relu", "Erf", "Tanh", "Mish", "Sigmoid")
    models = {op: chain(op).read_bytes() for op in ops}
    samples = feeds((1, 4, 8, 8), 2)
    trials = compile_many(models, SOC, feeds={op: samples for op in ops if op != "Sigmoid"})
    assert list(trials) == list(ops)
    assert {op for op in ops if trials[op].placed} == {"Relu", "Tanh", "Sigmoid"}
    for op in ("Relu", "Tanh"):
        expected = open_runner(models[op], threads=1).run(samples[1])["y"]
        assert np.abs(trials[op].outputs[1]["y"] - expected).max() <= 0.0201
    assert trials["Sigmoid"].outputs == ()
    (left,) = trials["Erf"].refused
    assert (left.op, left.node, left.reason) == (
        "Erf",
        "n0",
        "Operators of type `Erf` are not supported by QNN EP",
    )
    assert trials["Erf"].error
    assert [node.op for node in trials["Mish"].refused] == ["Mish"]


def test_all_fail_for_an_unknown_soc_and_the_next_are_well(chain: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime_qnn")
    models = {"a": chain("Relu").read_bytes()}
    with QnnProcess() as process:
        bad = compile_many(models, 9999, process=process)["a"]
        good = compile_many(models, SOC, process=process)["a"]
    assert not bad.placed
    assert bad.trace is None
    assert good.placed
    assert good.float_nodes == ()


def test_a_crash_costs_one_model(chain: Callable[..., Path], fake: Callable[[str], str]) -> None:
    # It ends at every job whose model is the long one.
    code = """
while True:
    if len(open(job["model"], "rb").read()) > %d:
        os.kill(os.getpid(), signal.SIGSEGV)
    print(json.dumps({"result": {"seconds": 2, "run_seconds": 0, "names": []}}), flush=True)
    job = json.loads(sys.stdin.readline())
"""
    short, long = chain("Relu").read_bytes(), chain("Relu", "Tanh").read_bytes()
    with QnnProcess(fake(code % len(short))) as process:
        trials = compile_many({"a": short, "b": long, "c": short}, SOC, process=process)
    assert [trial.seconds for trial in trials.values()] == [2, 0, 2]
    assert "SIGSEGV" in trials["b"].error
    assert not trials["a"].error
    # There was no trace, so that nothing is known of where the nodes are.
    assert not trials["a"].placed


def test_without_the_package_nothing_is_tried(
    chain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match="not installed"):
        compile_many({"a": chain("Relu").read_bytes()}, SOC)
