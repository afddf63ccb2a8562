"""A process for the QNN execution provider: jobs in, answers out, and how it may end.

The provider is native code that is registered once for a whole process, prints on both standard streams and
crashes on some models.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.child import Child, Need
from edgekit.session import Arrays
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp.trace import unplaced

_WORKER = "edgekit.targets.qnn_htp.worker"
NEED = Need("onnxruntime_qnn", "onnxruntime-qnn, the compiler and emulator for Qualcomm's HTP,", "qnn")
#: The Q and DQ at the graph's edge are HTP's too: with "1", the default, they stay on the CPU.
_OPTIONS = {"enable_htp_fp16_precision": "0", "offload_graph_io_quantization": "0"}
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


class QnnProcess(Child):
    """Makes sessions one after another in a process of its own; a context manager.

    Args:
        module: The worker; another one in tests.
    """

    def __init__(self, module: str = "") -> None:
        super().__init__(module or _WORKER, "the QNN toolchain", need=NEED, lines=_lines)

    def do(self, job: Job, *, timeout_s: float = 300) -> Answer:
        """Make a session and run its feeds.

        Raises:
            ToolError: The package is not installed, the process crashed, took too long or failed; the message
                ends with the last lines that it printed.
        """
        self.start()
        with tempfile.TemporaryDirectory(prefix="edgekit-qnn-") as name:
            folder = Path(name)
            reply = self.ask(_write_job(job, folder), timeout_s=timeout_s)
            left, lines = unplaced(reply.printed), _lines(reply.printed)
            if reply.refused:
                return Answer(reply.refused, left, log=lines)
            return _read_answer(reply.result, job, folder, left, lines)


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


def _lines(printed: str) -> tuple[str, ...]:
    """The messages from warnings upwards, each once, and what comes from elsewhere."""
    quiet = False
    lines: dict[str, None] = {}
    for line in printed.splitlines():
        head = _HEAD.match(line)
        # A message may go on in indented lines.
        quiet = head[1] in _QUIET if head else quiet and line.startswith((" ", "\t"))
        if not quiet and not _CHATTER.search(line):
            lines[line.split("] ", 1)[-1].rstrip() if head else line.rstrip()] = None
    return tuple(lines)
