"""Many small models through the toolchain, one after another in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import ToolError
from edgekit.session import Arrays
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp.child import Answer, Job, QnnProcess
from edgekit.targets.qnn_htp.process import Feeds, refusals
from edgekit.targets.qnn_htp.trace import FILE_NAME, Trace, read_trace


@dataclass(frozen=True)
class Trial:
    """What became of one model.

    Attributes:
        error: Why it does not compile or run; empty where it did.
        refused: The nodes that the execution provider left, with its reasons.
        trace: None where the process wrote none.
        outputs: Of the emulator, one for each feed.
        seconds: Compiling took on this machine.
    """

    error: str
    refused: tuple[LeftNode, ...] = ()
    trace: Trace | None = None
    outputs: tuple[Arrays, ...] = field(default=(), repr=False)
    seconds: float = 0.0

    @property
    def placed(self) -> bool:
        """Whether the session was made with every node on HTP."""
        return not self.error and self.trace is not None and self.trace.complete

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """The nodes that HTP computes in float, as it does where it finds no Q and DQ around one."""
        return () if self.trace is None else self.trace.float_nodes


def compile_many(
    models: Mapping[str, bytes],
    soc: int,
    *,
    feeds: Mapping[str, Feeds] | None = None,
    strict: bool = True,
    timeout_s: float = 60,
    process: QnnProcess | None = None,
) -> dict[str, Trial]:
    """Compile each model strictly for HTP and run its feeds in the emulator.

    One process does all; it is started again after a model that crashes it or hangs. No context is written.

    Args:
        models: ``.onnx`` files by a name.
        soc: QNN's number of the SoC.
        feeds: By the model's name; a model without any is compiled only.
        strict: False lets ONNX Runtime compute on the CPU what HTP refuses.
        timeout_s: For each model, its feeds included.
        process: One to use; it is left running.

    Raises:
        ToolError: The toolchain is not installed. What fails for one model is in its :class:`Trial`.
    """
    trials: dict[str, Trial] = {}
    worker = process or QnnProcess()
    try:
        worker.start()
        for name, data in models.items():
            with tempfile.TemporaryDirectory(prefix="edgekit-qnn-") as folder:
                model = Path(folder) / "model.onnx"
                model.write_bytes(data)
                job = Job(model, soc, trace=Path(folder), feeds=(feeds or {}).get(name, ()), strict=strict)
                trials[name] = _try(worker, job, timeout_s)
    finally:
        if process is None:
            worker.close()
    return trials


def _try(worker: QnnProcess, job: Job, timeout_s: float) -> Trial:
    answer = Answer("")
    error = ""
    try:
        answer = worker.do(job, timeout_s=timeout_s)
        error = answer.refused
    except ToolError as failed:
        error = str(failed)
    path = (job.trace or Path()) / FILE_NAME
    trace = read_trace(path, job.model) if path.is_file() else None
    return Trial(error, refusals(answer, trace), trace, answer.outputs, answer.seconds)
