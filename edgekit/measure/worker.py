"""Running a measurement job in a process of its own and reading its answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from edgekit.errors import ToolError

Progress = Callable[[int, int], None]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_END = ""


def run_worker(
    module: str, job: str, *, threads: int, timeout_s: float, progress: Progress | None = None
) -> dict[str, Any]:
    """Run ``python -m module`` with ``job`` on its stdin.

    Args:
        module: The worker. It writes JSON lines: ``{"progress": [done, total]}``, then ``{"result": {…}}`` or
            ``{"error": "…"}``.
        job: What it reads.
        threads: Put into the environment for libraries that ask there.
        timeout_s: Seconds after which the process is ended.
        progress: Called with every progress line.

    Raises:
        ToolError: The process crashed, ran out of memory or time, or reported a failure; the message ends
            with the last lines of its stderr.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(threads),
        )
        try:
            answer = _talk(process, job, time.monotonic() + timeout_s, progress)
        except queue.Empty:
            raise ToolError(
                f"the measurement took longer than {timeout_s:g} s and was ended{_tail(errors)}"
            ) from None
        finally:
            # Also on Ctrl-C: a worker that is left running would spoil the next measurement.
            if process.poll() is None:
                process.kill()
            code = process.wait()
        if answer is None:
            raise ToolError(f"the measurement process {_ending(code)}{_tail(errors)}")
        if "error" in answer:
            raise ToolError(f"the measurement failed: {answer['error']}{_tail(errors)}")
        return dict(answer["result"])


def _talk(
    process: subprocess.Popen[bytes], job: str, deadline: float, progress: Progress | None
) -> dict[str, Any] | None:
    """The last answer, or None when the process ended without one; ``queue.Empty`` when time is up."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process, job, lines), daemon=True).start()
    while line := lines.get(timeout=max(0.0, deadline - time.monotonic())):
        message = _parse(line)
        if "progress" not in message:
            # The process still has to unload its libraries; waiting keeps its end out of the next
            # measurement.
            _wait(process, deadline)
            return dict(message)
        if progress is not None:
            progress(*message["progress"])
    _wait(process, deadline)
    return None


def _parse(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {"error": f"it wrote {line.strip()[:200]!r}, not JSON"}


def _read(process: subprocess.Popen[bytes], job: str, lines: queue.Queue[str]) -> None:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    try:
        process.stdin.write(job.encode())
        process.stdin.close()
    except OSError:
        pass  # it ended before it read its job; the end of its stdout says so below
    for line in process.stdout:
        lines.put(line.decode())
    lines.put(_END)
    process.stdout.close()


def _wait(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(timeout=max(0.1, min(5.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return  # the caller ends it


def _environment(threads: int) -> dict[str, str]:
    """This process's environment, with edgekit importable and one thread count for every library."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
    }


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended early with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = ", most often because memory ran out" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


def _tail(errors: IO[bytes], lines: int = 8) -> str:
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    return "\n" + "\n".join(text.splitlines()[-lines:]) if text else ""
