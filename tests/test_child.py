"""A worker's process: every way it can end badly is one ToolError, and none is left running."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.child import Child, Need
from edgekit.errors import ToolError

Plant = Callable[[str], Child]
_HEAD = "import json, os, sys, time\n"
_SERVE = f"""{_HEAD}from edgekit.worker import RefusedError, serve
def do(job, emit):
    {{}}
serve(do)
"""


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """``plant(code)``: a child whose worker is that code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code: str) -> Child:
        (tmp_path / "planted.py").write_text(code, encoding="utf-8")
        return Child("planted", "the worker", environment={"PLANTED": "yes"})

    return make


def test_one_process_does_job_after_job(plant: Plant) -> None:
    code = "print('noise', job, file=sys.stderr); return {'job': job, 'pid': os.getpid(), **dict(os.environ)}"
    with plant(_SERVE.format(code)) as child:
        first, second = (child.ask(f'"{name}"', timeout_s=20) for name in "ab")
    assert [first.result["job"], second.result["job"]] == ["a", "b"]
    assert first.result["pid"] == second.result["pid"] != os.getpid()
    assert first.result["PLANTED"] == "yes"
    assert [first.printed, second.printed] == ["noise a\n", "noise b\n"]
    assert second.tail == "\nnoise b"
    _assert_gone(first.result["pid"])


def test_progress_is_passed_on(plant: Plant) -> None:
    seen: list[tuple[int, int]] = []
    code = "[emit({'progress': [i, 2]}) for i in (1, 2)]; return {}"
    with plant(_SERVE.format(code)) as child:
        child.ask("0", timeout_s=20, progress=lambda done, total: seen.append((done, total)))
        child.ask("0", timeout_s=20)
    assert seen == [(1, 2), (2, 2)]


def test_a_refusal_is_no_error_and_a_failure_is_one(plant: Plant) -> None:
    code = "os.write(1, b'native\\n'); raise (RefusedError if job else ValueError)('not this')"
    with plant(_SERVE.format(code)) as child:
        reply = child.ask("1", timeout_s=20)
        assert (reply.refused, reply.tail) == ("not this", "\nnative")
        with pytest.raises(ToolError, match=r"^a\.bin: the worker failed: ValueError: not this\nnative$"):
            child.ask("0", timeout_s=20, where="a.bin")
        assert child.ask("1", timeout_s=20).refused


def test_a_refusal_without_a_reason_is_still_one(plant: Plant) -> None:
    with plant(_SERVE.format("raise RefusedError")) as child:
        assert child.ask("1", timeout_s=20).refused


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('why', file=sys.stderr); sys.exit(3)", "the worker ended early with exit code 3\nwhy"),
        ("sys.exit(0)", "ended early with exit code 0"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL, most often because memory ran out"),
        ("os.abort()", "was ended by SIGABRT"),
        ("print(json.dumps({'error': 'no such op'}))", "the worker failed: no such op"),
        ("print('hello')", "the worker wrote 'hello', which is no answer"),
        ("print(json.dumps([1]))", "which is no answer"),
        ("print(json.dumps({'results': 1}))", "which is no answer"),
        ("raise MemoryError('planted')", "MemoryError: planted"),
    ],
)
def test_a_bad_end_is_a_tool_error_with_the_reason(code: str, message: str, plant: Plant) -> None:
    with plant(f"{_HEAD}sys.stdin.readline(); {code}") as child, pytest.raises(ToolError) as caught:
        child.ask("0", timeout_s=20)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1


def test_only_the_last_lines_are_shown(plant: Plant) -> None:
    code = "[print('\\x1b[31mline', i, '\\x1b[0m', file=sys.stderr) for i in range(100)]; sys.exit(1)"
    with plant(f"{_HEAD}{code}") as child, pytest.raises(ToolError) as caught:
        child.ask("0", timeout_s=20)
    lines = str(caught.value).splitlines()
    assert lines[-1].strip() == "line 99"
    assert len(lines) == 9


def test_after_a_crash_the_next_job_has_another_process(plant: Plant) -> None:
    with plant(_SERVE.format("return {'pid': os.getpid()} if job else os.abort()")) as child:
        first = child.ask("1", timeout_s=20)
        with pytest.raises(ToolError, match="SIGABRT"):
            child.ask("0", timeout_s=20)
        second = child.ask("1", timeout_s=20)
    assert first.result["pid"] != second.result["pid"]


def test_a_worker_that_hangs_is_ended(plant: Plant, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid())); print('stuck', file=sys.stderr, flush=True)"
    began = time.monotonic()
    # A job larger than a pipe's buffer, which nobody reads.
    with plant(f"{_HEAD}{code}; time.sleep(60)") as child:
        with pytest.raises(ToolError, match=r"the worker took longer than 1 s and was ended\nstuck"):
            child.ask(f'"{"x" * 1_000_000}"', timeout_s=1)
        _assert_gone(int(pid.read_text(encoding="ascii")))
    assert time.monotonic() - began < 10


def test_ctrl_c_leaves_no_worker_behind(plant: Plant) -> None:
    seen: list[int] = []

    def interrupt(pid: int, _: int) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    child = plant(_SERVE.format("emit({'progress': [os.getpid(), 0]}); time.sleep(60)"))
    with pytest.raises(KeyboardInterrupt):
        child.ask("0", timeout_s=30, progress=interrupt)
    _assert_gone(seen[0])


def test_a_child_that_is_forgotten_ends_its_process(plant: Plant) -> None:
    child = plant(_SERVE.format("return {'pid': os.getpid()}"))
    pid = child.ask("0", timeout_s=20).result["pid"]
    del child
    gc.collect()
    _assert_gone(pid)


def test_a_missing_package_is_told_before_anything_starts() -> None:
    child = Child("planted", "it", need=Need("no_such_package", "The compiler", "ethos-u"))
    with pytest.raises(
        ToolError, match=r"^The compiler is not installed\. pip install 'edgekit\[ethos-u\]'$"
    ):
        child.start()


def _assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
