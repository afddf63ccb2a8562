"""A process for the QNN execution provider: jobs in, answers out, and how it may end.

The provider is native code that is registered once for a whole process, prints on both standard streams and
crashes on some models.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

import edgekit
from edgekit.errors import ToolError
from edgekit.session import Arrays
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp.trace import unplaced

_WORKER = "edgekit.targets.qnn_htp.worker"
_END = ""
#: The Q and DQ at the graph's edge are HTP's too: with "1", the default, they stay on the CPU.
_OPTIONS = {"enable_htp_fp16_precision": "0", "offload_graph_io_quantization": "0"}
_TAIL = 8
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: What the libraries print whatever the model is.
_CHATTER = re.compile(
    r"LIBNATIVE|^\s*$|File mapped weights feature|EPContext encryption config|Removing initializer"
)
_HEAD = re.compile(r"^\S+ \S+ \[([VIWEF]):")
_QUIET = ("V", "I")


@dataclass(frozen=True)
class Job:
    """One session of the execution provider.

    Attributes:
        model: The ``.onnx`` file.
        soc: QNN's number of the SoC to compile for.
        compiled: Whether the file is a context model.
        external: Folder of the model's external data; None where it has none.
        trace: Folder for the trace; None for none.
        context: The context model to write; None for none.
        feeds: What to run on the session, all with the same inputs.
        outputs: Names of the outputs wanted; None for all in the model's order.
        strict: Whether a node outside of HTP is an error.
    """

    model: Path
    soc: int
    compiled: bool = False
    external: Path | None = None
    trace: Path | None = None
    context: Path | None = None
    feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]] = ()
    outputs: Sequence[str] | None = None
    strict: bool = True


@dataclass(frozen=True)
class Answer:
    """What a job gave.

    Attributes:
        refused: Why ONNX Runtime does not make the session; empty where it did.
        unplaced: The nodes that the execution provider left, as far as its messages name them.
        outputs: One for each feed.
        seconds: The session's making took, compilation included.
        run_seconds: All feeds took in the emulator: time of this machine, which says nothing of the chip's.
        log: What the libraries printed, without their chatter.
    """

    refused: str
    unplaced: tuple[LeftNode, ...] = ()
    outputs: tuple[Arrays, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    run_seconds: float = 0.0
    log: tuple[str, ...] = ()


class QnnProcess:
    """Does jobs one after another in a process of its own; a context manager.

    The process starts with the first job, and again with the next one after a crash.

    Args:
        module: The worker; another one in tests.
    """

    def __init__(self, module: str = "") -> None:
        self._module = module or _WORKER
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._log: IO[bytes] | None = None
        self._end: weakref.finalize[..., QnnProcess] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def do(self, job: Job, *, timeout_s: float = 300) -> Answer:
        """Make a session and run its feeds.

        Raises:
            ToolError: The package is not installed, the process crashed, took too long or failed; the message
                ends with the last lines that it printed.
        """
        process, log = self._started()
        began = log.seek(0, os.SEEK_END)
        with tempfile.TemporaryDirectory(prefix="edgekit-qnn-") as name:
            folder = Path(name)
            try:
                line = self._ask(process, _write_job(job, folder), timeout_s)
            except queue.Empty:
                said = _tail(log, began)
                self.close()
                raise ToolError(
                    f"the QNN toolchain took longer than {timeout_s:g} s and was ended{said}"
                ) from None
            except BaseException:
                self.close()  # also on Ctrl-C: its answer would be taken for that of the next job
                raise
            if line == _END:
                text = f"the QNN toolchain {_ending(process.wait())}{_tail(log, began)}"
                self.close()
                raise ToolError(text)
            message = _parse(line)
            left, lines = unplaced(_read(log, began)), _lines(log, began)
            if "refused" in message:
                return Answer(str(message["refused"]), left, log=lines)
            if "result" not in message:
                raise ToolError(f"the QNN toolchain failed: {message['error']}{_tail(log, began)}")
            return _read_answer(message["result"], job, folder, left, lines)

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
        self._process, self._end, self._log = None, None, None

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._process is not None and self._log is not None and self._process.poll() is None:
            return self._process, self._log
        self.close()
        require()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
        )
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True).start()
        self._end = weakref.finalize(self, _stop, self._process, self._log)
        return self._process, self._log

    def _ask(self, process: subprocess.Popen[bytes], job: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        # A thread writes: a worker that hangs before it has read all would block this one for ever.
        threading.Thread(target=_write, args=(process, job), daemon=True).start()
        return self._lines.get(timeout=max(0.0, deadline - time.monotonic()))


def require() -> None:
    """Raise the error that says what to install, where the package is missing.

    Raises:
        ToolError: ``onnxruntime-qnn`` is not installed.
    """
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise ToolError(
            "onnxruntime-qnn, the compiler and emulator for Qualcomm's HTP, is not installed",
            hint="pip install 'edgekit[qnn]'",
        )


def _write_job(job: Job, folder: Path) -> str:
    names = sorted(job.feeds[0]) if job.feeds else []
    feeds = [folder / f"in{i}.npz" for i in range(len(job.feeds))]
    for path, feed in zip(feeds, job.feeds, strict=True):
        np.savez(path, *(feed[name] for name in names))
    return json.dumps(
        {
            "model": str(job.model.resolve()),
            "compiled": job.compiled,
            "external": "" if job.external is None else str(job.external.resolve()),
            "options": _OPTIONS | {"soc_model": str(job.soc)},
            "strict": job.strict,
            "trace": "" if job.trace is None else str(job.trace.resolve()),
            "context": "" if job.context is None else str(job.context.resolve()),
            "names": names,
            "feeds": [str(path) for path in feeds],
            "outputs": None if job.outputs is None else list(job.outputs),
            "answers": [str(folder / f"out{i}.npz") for i in range(len(feeds))],
        }
    )


def _read_answer(
    result: dict[str, Any], job: Job, folder: Path, left: tuple[LeftNode, ...], log: tuple[str, ...]
) -> Answer:
    outputs: list[Arrays] = []
    for i in range(len(job.feeds)):
        with np.load(folder / f"out{i}.npz") as arrays:
            outputs.append({name: arrays[f"arr_{k}"] for k, name in enumerate(result["names"])})
    return Answer("", left, tuple(outputs), float(result["seconds"]), float(result["run_seconds"]), log)


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
    for line in process.stdout:
        lines.put(line.decode(errors="replace"))
    lines.put(_END)


def _stop(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What was left in the buffer has no reader any more.
            with contextlib.suppress(OSError):
                pipe.close()
    log.close()


def _parse(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if isinstance(message, dict) and message.keys() & {"result", "refused", "error"}:
        return message
    return {"error": f"it wrote {line.strip()[:200]!r}, which is no answer"}


def _environment() -> dict[str, str]:
    """This process's environment, with edgekit importable."""
    root = str(Path(edgekit.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended early with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}{', most often because memory ran out' if name == 'SIGKILL' else ''}"


def _read(log: IO[bytes], began: int) -> str:
    log.seek(began)
    return _COLOUR.sub("", log.read().decode(errors="replace"))


def _lines(log: IO[bytes], began: int) -> tuple[str, ...]:
    """The messages from warnings upwards, each once, and what comes from elsewhere."""
    quiet = False
    lines: dict[str, None] = {}
    for line in _read(log, began).splitlines():
        head = _HEAD.match(line)
        # A message may go on in indented lines.
        quiet = head[1] in _QUIET if head else quiet and line.startswith((" ", "\t"))
        if not quiet and not _CHATTER.search(line):
            lines[line.split("] ", 1)[-1].rstrip() if head else line.rstrip()] = None
    return tuple(lines)


def _tail(log: IO[bytes], began: int) -> str:
    lines = _lines(log, began)[-_TAIL:]
    return "\n" + "\n".join(lines) if lines else ""
