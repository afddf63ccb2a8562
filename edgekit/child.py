"""A worker in a process of its own: jobs in, answers out, and how it may end.

Native code crashes, hangs, prints on both standard streams and holds on to memory; none of that should be
this process's. What goes over the pipes is in :mod:`edgekit.worker`, the other side.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgekit.errors import ToolError

Progress = Callable[[int, int], None]
_END = ""
_TAIL = 8
#: Seconds for a process to end once it has closed its stdout.
_GRACE_S = 5.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ANSWERS = frozenset({"result", "refused", "error"})


@dataclass(frozen=True)
class Need:
    """A package that a worker cannot do without.

    Attributes:
        package: The name it is imported by.
        title: What it is, for the error.
        extra: The extra of edgekit that brings it.
    """

    package: str
    title: str
    extra: str

    def check(self) -> None:
        """Raise the error that says what to install, where the package is missing.

        Raises:
            ToolError: It is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ToolError(f"{self.title} is not installed", hint=f"pip install 'edgekit[{self.extra}]'")


@dataclass(frozen=True)
class Reply:
    """What a job gave.

    Attributes:
        result: Of the worker; empty where it refused.
        refused: Why; empty where it did not.
        printed: What went to stderr during the job, without colours.
        tail: The last lines of it, each behind a line break, to end a message with.
    """

    result: dict[str, Any]
    refused: str = ""
    printed: str = field(default="", repr=False)
    tail: str = ""


class Child:
    """Does jobs one after another in a process of its own; a context manager.

    The process starts with the first job, and again with the next one after a crash. It ends with
    :meth:`close`, or at the latest with this object.

    Args:
        module: The worker, run as ``python -m module``; it calls
            :func:`edgekit.worker.serve`.
        title: What messages call it.
        need: The package that it runs.
        environment: Variables to add to this process's.
        lines: Picks from what was printed the lines to show.
    """

    def __init__(
        self,
        module: str,
        title: str,
        *,
        need: Need | None = None,
        environment: Mapping[str, str] | None = None,
        lines: Callable[[str], Sequence[str]] = str.splitlines,
    ) -> None:
        self._module = module
        self._title = title
        self._need = need
        self._environment = dict(environment or {})
        self._show = lines
        self._running: _Running | None = None
        self._end: weakref.finalize[..., Child] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, job: str, *, timeout_s: float, progress: Progress | None = None, where: str = "") -> Reply:
        """Do one job.

        Args:
            job: One line of JSON.
            timeout_s: Seconds after which the process is ended.
            progress: Called with every progress line.
            where: The file that an error concerns.

        Raises:
            ToolError: The package is not installed, or the process crashed, ran out of memory or time, or
                failed; the message ends with the last lines that it printed.
        """
        running = self._started()
        began = running.log.seek(0, os.SEEK_END)
        try:
            line, message = running.ask(job, timeout_s, progress)
        except queue.Empty:
            said = self._tail(running.printed(began))
            self.close()
            text = f"{self._title} took longer than {timeout_s:g} s and was ended{said}"
            raise ToolError(text, where=where) from None
        except BaseException:
            self.close()  # also on Ctrl-C: its answer would be taken for that of the next job
            raise
        how = running.ending() if line == _END else f"wrote {line.strip()[:200]!r}, which is no answer"
        printed = running.printed(began)
        said = self._tail(printed)
        if not message.keys() & _ANSWERS:
            self.close()
            raise ToolError(f"{self._title} {how}{said}", where=where)
        if "error" in message:
            raise ToolError(f"{self._title} failed: {message['error']}{said}", where=where)
        if "refused" in message:
            return Reply({}, str(message["refused"]) or "it does not say why", printed, said)
        return Reply(dict(message["result"]), "", printed, said)

    def start(self) -> None:
        """Start the process now.

        Raises:
            ToolError: The package is not installed.
        """
        self._started()

    def close(self) -> None:
        """End the process; the next job starts another one."""
        if self._end is not None:
            self._end()
        self._running, self._end = None, None

    def _started(self) -> _Running:
        if self._running is not None and self._running.process.poll() is None:
            return self._running
        self.close()
        if self._need is not None:
            self._need.check()
        self._running = _Running(self._module, _environment(self._environment))
        self._end = weakref.finalize(self, self._running.stop)
        return self._running

    def _tail(self, printed: str) -> str:
        lines = self._show(printed.strip())[-_TAIL:]
        return "\n" + "\n".join(lines) if lines else ""


class _Running:
    """A process and its pipes."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(self.process, self._lines), daemon=True).start()

    def ask(self, job: str, timeout_s: float, progress: Progress | None) -> tuple[str, dict[str, Any]]:
        """The answer, as a line and read; ``_END`` where there is none, ``queue.Empty`` when time is up."""
        deadline = time.monotonic() + timeout_s
        # A thread writes: a worker that hangs before it has read all would block this one for ever.
        threading.Thread(target=_write, args=(self.process, job), daemon=True).start()
        while True:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            message = _read(line)
            if "progress" not in message:
                return line, message
            if progress is not None:
                progress(*message["progress"])

    def ending(self) -> str:
        """How a process that has closed its stdout ended."""
        try:
            return _ending(self.process.wait(_GRACE_S))
        except subprocess.TimeoutExpired:
            return "closed its stdout without an answer and was ended"

    def printed(self, began: int) -> str:
        self.log.seek(began)
        return _COLOUR.sub("", self.log.read().decode(errors="replace"))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            # What was left in the buffer has no reader any more.
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.log.close()


def _write(process: subprocess.Popen[bytes], job: str) -> None:
    if process.stdin is None:
        raise RuntimeError("the process was started without pipes")
    try:
        process.stdin.write(job.encode() + b"\n")
        process.stdin.flush()
    except (OSError, ValueError):
        pass  # it ended before it read its job; the end of its stdout says so


def _pump(process: subprocess.Popen[bytes], lines: queue.Queue[str]) -> None:
    if process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    with process.stdout as stream:
        for line in stream:
            lines.put(line.decode(errors="replace"))
    lines.put(_END)


def _read(line: str) -> dict[str, Any]:
    """The message in a line; empty where it is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended early with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}{', most often because memory ran out' if name == 'SIGKILL' else ''}"


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with edgekit importable."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **added}
