"""One Vela process: jobs in, answers out, started when first needed and again after a crash."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import edgekit
from edgekit.errors import ToolError
from edgekit.targets.ethos_u.profiles import NpuProfile

_WORKER = "edgekit.targets.ethos_u.worker"
_END = ""
_TAIL = 8


class VelaProcess:
    """Compiles models one after another in a process of its own; a context manager.

    Args:
        module: The worker; another one in tests.
    """

    def __init__(self, module: str = _WORKER) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._log: IO[bytes] | None = None
        self._end: weakref.finalize[..., VelaProcess] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def compile(
        self, data: bytes, profile: NpuProfile, *, timeout_s: float = 120, keep: bool = True
    ) -> tuple[dict[str, Any], str]:
        """Compile one ``.tflite`` file.

        Args:
            data: The file.
            profile: The NPU.
            timeout_s: Seconds after which the process is ended.
            keep: Whether the compiled model is wanted.

        Returns:
            The worker's result and what Vela printed.

        Raises:
            ToolError: Vela is not installed, crashed, refused the model or took too long; the message ends
                with the last lines that it printed.
        """
        process, log = self._started()
        began = log.seek(0, os.SEEK_END)
        job: dict[str, Any] = {
            "arch": profile.architecture,
            "system": _system(profile),
            "options": _options(profile),
        }
        job |= {"model": base64.b64encode(data).decode(), "keep": keep}
        try:
            answer = self._ask(process, json.dumps(job), timeout_s)
        except queue.Empty:
            said = _tail(log, began)
            self.close()
            raise ToolError(f"Vela took longer than {timeout_s:g} s and was ended{said}") from None
        except BaseException:
            self.close()  # also on Ctrl-C: its answer would be taken for that of the next job
            raise
        if answer == _END:
            text = f"Vela {_ending(process.wait())}{_tail(log, began)}"
            self.close()
            raise ToolError(text)
        message = _parse(answer)
        if "result" not in message:
            raise ToolError(f"Vela refuses the model: {message['error']}{_tail(log, began)}")
        return message["result"], _read(log, began)

    def close(self) -> None:
        """End the process; the next job starts another one."""
        if self._end is not None:
            self._end()
        self._process, self._end, self._log = None, None, None

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._process is not None and self._log is not None and self._process.poll() is None:
            return self._process, self._log
        self.close()
        _require()
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
        lines.put(line.decode())
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
    if isinstance(message, dict) and ("result" in message or "error" in message):
        return message
    return {"error": f"it wrote {line.strip()[:200]!r}, which is no answer"}


def _require() -> None:
    if importlib.util.find_spec("ethosu") is None:
        raise ToolError(
            "Vela, the compiler for Ethos-U, is not installed", hint="pip install 'edgekit[ethos-u]'"
        )


@cache
def _vela_ini() -> str:
    """The configuration file that ships with Vela.

    Raises:
        ToolError: It is not where Vela 5 has it.
    """
    found = importlib.util.find_spec("ethosu")
    for folder in () if found is None else found.submodule_search_locations or ():
        path = Path(folder) / "config_files" / "Arm" / "vela.ini"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ToolError(
        "Vela's configuration file Arm/vela.ini is missing", hint="pip install 'edgekit[ethos-u]'"
    )


def _system(profile: NpuProfile) -> str:
    """What Vela makes of ``--accelerator-config``, ``--system-config`` and ``--memory-mode``."""
    head = (
        f"[architecture]\nmacs={profile.macs_per_cycle // profile.cores}\ncores={profile.cores}\n"
        f"[vela]\nsystem_config_name={profile.system_config}\nmemory_mode_name={profile.memory_mode}\n"
    )
    return head + _vela_ini()


def _options(profile: NpuProfile) -> str:
    """Vela's defaults, with the profile's SRAM as ``--arena-cache-size``."""
    return (
        "\n[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
        f"\n[scheduler]\noptimize=Performance\narena_size_limit={profile.arena_bytes}\ndisable_feature=\n"
        "cpu_tensor_alignment=16\ntensor_allocator=HillClimb\n"
        "\n[graph]\nsoftmax_int16_neg_exp_range=10.0\n"
    )


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
    return log.read().decode(errors="replace")


def _tail(log: IO[bytes], began: int) -> str:
    lines = _read(log, began).strip().splitlines()[-_TAIL:]
    return "\n" + "\n".join(lines) if lines else ""
