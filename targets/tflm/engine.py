"""TFLite Micro on this machine, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgekit.errors import ModelError, ToolError
from edgekit.targets.tflm import worker
from edgekit.tflite.interpreter import check_inputs
from edgekit.tflite.model import Array, TfliteModel

#: Seconds after which a call has failed.
TIMEOUT_S = 300.0


class TflmEngine:
    """A :class:`~edgekit.tflite.package.CodeRunner` over TFLite Micro's own interpreter.

    Args:
        path: The ``.tflite``.
        model: What it holds.
        measure: Also find the smallest arena, which sets the model up some twenty times.

    Attributes:
        arena_bytes: The smallest arena that the model runs in, on this machine; 0 without ``measure``.

    Raises:
        ModelError: TFLite Micro refuses the model.
        ToolError: It is not installed, or its process ended.
    """

    def __init__(self, path: Path, model: TfliteModel, *, measure: bool = False) -> None:
        self.model = model
        self._path = path
        # Lives as long as the process: its stderr.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-P", worker.__file__, str(path), str(enough(model))]
        self._process = subprocess.Popen(
            [*command, "measure" if measure else "run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._close = weakref.finalize(self, _end, self._process, self._errors)
        header, _ = self._answer()
        refusal = f"TFLite Micro refuses the model: {self._why(header)}" if "error" in header else ""
        if "ready" not in header:
            self.close()
        if "missing" in header:
            raise ToolError("tflite-micro is not installed", hint="pip install 'edgekit[tflm]'")
        if refusal:
            raise ModelError(refusal, where=str(path))
        self.arena_bytes = int(header["arena"])

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, as stored.

        Raises:
            InputError: An input is missing, unknown, or of another shape or type.
            ToolError: TFLite Micro failed, or its process ended.
        """
        check_inputs(self.model, values)
        names = list(self.model.outputs)
        if self._process.stdin is None:
            raise RuntimeError("the process was started without pipes")
        try:
            given = [values[name] for name in self.model.inputs]
            worker.send(self._process.stdin, {"outputs": len(names)}, given)
        except OSError:
            pass  # it has ended; reading its answer says how
        header, arrays = self._answer()
        if "error" in header:
            raise ToolError(f"TFLite Micro failed: {self._why(header)}", where=str(self._path))
        shapes = [self.model.tensors[name].shape for name in self.model.outputs.values()]
        return {name: a.reshape(s) for name, a, s in zip(names, arrays, shapes, strict=True)}

    def close(self) -> None:
        """End the process."""
        self._close()

    def _answer(self) -> tuple[dict[str, Any], list[Array]]:
        if self._process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        watchdog = threading.Timer(TIMEOUT_S, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            received = worker.receive(self._process.stdout)
        finally:
            watchdog.cancel()
        if received is None:
            code = self._process.wait()
            raise ToolError(
                f"TFLite Micro's process ended with code {code}{_tail(self._errors)}", where=str(self._path)
            )
        return received

    def _why(self, header: Mapping[str, Any]) -> str:
        # Its own message names the call that failed; what it printed names the operator.
        return f"{header['error']}{_tail(self._errors)}"


def enough(model: TfliteModel) -> int:
    """An arena in bytes that is large enough for sure: every tensor at once, and room for bookkeeping."""
    tensors = sum(tensor.size_bytes for tensor in model.tensors.values() if tensor.data is None)
    scales = sum(len(t.quantization.scale) for t in model.tensors.values() if t.quantization is not None)
    total = 2 * tensors + 32 * scales + 1024 * (len(model.tensors) + len(model.operators)) + 65536
    return -(-total // worker.ALIGNMENT) * worker.ALIGNMENT


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue  # what was not sent yet is of no use to a process that has ended
    try:
        process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


def _tail(errors: IO[bytes], lines: int = 4) -> str:
    if errors.closed:
        return ""
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    return ": " + " | ".join(text.splitlines()[-lines:]) if text else ""
