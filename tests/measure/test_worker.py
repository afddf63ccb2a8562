"""The worker process: every way it can end badly is one ToolError, and none is left running."""

import os
import time
from pathlib import Path

import pytest

from edgekit.errors import ToolError
from edgekit.measure.worker import run_worker


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a file ``planted.py`` is the worker."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "planted.py"


def _run(code: str, plant: Path, timeout_s: float = 20.0) -> dict[str, object]:
    plant.write_text(f"import json, os, sys, time\n{code}\n", encoding="utf-8")
    return run_worker("planted", "the job", threads=3, timeout_s=timeout_s)


def test_the_job_goes_in_and_the_result_comes_out(plant: Path) -> None:
    code = (
        "job = sys.stdin.read()\n"
        "print('noise', file=sys.stderr)\n"
        "print(json.dumps({'result': {'job': job, 'omp': os.environ['OMP_NUM_THREADS']}}))"
    )
    assert _run(code, plant) == {"job": "the job", "omp": "3"}


def test_progress_is_passed_on(plant: Path) -> None:
    plant.write_text(
        "import json\nfor i in (1, 2): print(json.dumps({'progress': [i, 2]}), flush=True)\n"
        "print(json.dumps({'result': {}}))",
        encoding="utf-8",
    )
    seen: list[tuple[int, int]] = []
    run_worker(
        "planted", "", threads=1, timeout_s=20, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('the reason', file=sys.stderr); sys.exit(3)", "exit code 3\nthe reason"),
        ("sys.exit(0)", "ended early with exit code 0"),
        ("os.kill(os.getpid(), 9)", "SIGKILL, most often because memory ran out"),
        ("os.abort()", "SIGABRT"),
        ("print(json.dumps({'error': 'no such op'}))", "the measurement failed: no such op"),
        ("print('hello')", "it wrote 'hello', not JSON"),
        ("print(json.dumps([1]))", "not JSON"),
        ("raise MemoryError('planted')", "MemoryError: planted"),
    ],
)
def test_a_bad_end_is_a_tool_error_with_the_reason(code: str, message: str, plant: Path) -> None:
    with pytest.raises(ToolError) as caught:
        _run(code, plant)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1


def test_only_the_last_lines_of_stderr_are_shown(plant: Path) -> None:
    with pytest.raises(ToolError) as caught:
        _run("[print('line', i, file=sys.stderr) for i in range(100)]; sys.exit(1)", plant)
    assert str(caught.value).splitlines()[-1] == "line 99"
    assert len(str(caught.value).splitlines()) < 12


def test_a_worker_that_hangs_is_ended(plant: Path) -> None:
    pid_file = plant.with_name("pid")
    code = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); print('stuck', file=sys.stderr)"
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"longer than 1 s and was ended\nstuck"):
        _run(f"{code}; time.sleep(60)", plant, timeout_s=1.0)
    assert time.monotonic() - started < 10
    _assert_gone(int(pid_file.read_text(encoding="ascii")))


def test_ctrl_c_leaves_no_worker_behind(plant: Path) -> None:
    plant.write_text(
        "import json, os, time\n"
        "print(json.dumps({'progress': [os.getpid(), 0]}), flush=True)\n"
        "time.sleep(60)",
        encoding="utf-8",
    )
    seen: list[int] = []

    def interrupt(pid: int, _: int) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker("planted", "", threads=1, timeout_s=30, progress=interrupt)
    _assert_gone(seen[0])


def _assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
