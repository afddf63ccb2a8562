"""Compiling for HTP and running in the emulator, each in a process of its own, with nothing taken on trust.

The toolchain succeeds quietly where it did something else than it was asked: a node on the CPU, a node in
float, another architecture, no context at all. Success here is a context, a trace with every node on HTP, and
a stamp that says the hardware that was asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifacts import read_onnx
from edgekit.errors import ModelError, ToolError
from edgekit.files import write_whole
from edgekit.session import Arrays
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp.child import Answer, Job, QnnProcess
from edgekit.targets.qnn_htp.stamp import Stamp, check_stamp, read_stamp
from edgekit.targets.qnn_htp.trace import FILE_NAME, Trace, read_trace

Feeds = Sequence[Mapping[str, np.ndarray[Any, Any]]]
#: How a context model's file name ends.
SUFFIX = ".ctx.onnx"
_NO_DEVICE = re.compile(r"QNN_DEVICE_ERROR_INVALID_CONFIG|SetupBackend failed")


class RefusedNodesError(ModelError):
    """HTP has no kernel for nodes of the model.

    Attributes:
        refused: All of them, with the provider's reasons.
    """

    def __init__(self, model: Path, refused: tuple[LeftNode, ...]) -> None:
        self.refused = refused
        lines = "".join(f"\n  {node.op} {node.node}: {node.reason}" for node in refused)
        super().__init__(
            f"HTP refuses {len(refused)} node{'s' * (len(refused) > 1)}:{lines}",
            where=str(model),
            hint="Leave what it refuses out of the compiled body; it then runs on the CPU beside it",
        )


@dataclass(frozen=True)
class Compiled:
    """A context and the proof of what it is.

    Attributes:
        context: ``<stem>.ctx.onnx``: one EPContext node that names the binary; both files move together.
        binary: ``<stem>.ctx_qnn.bin``.
        trace: What became of each node.
        stamp: For which hardware it was made.
        seconds: Compiling took on this machine.
        log: Warnings of the libraries.
        outputs: Of the session that compiled, one for each feed.
        run_seconds: The feeds took in the emulator, which says nothing of the chip's time.
    """

    context: Path
    binary: Path
    trace: Trace
    stamp: Stamp
    seconds: float
    log: tuple[str, ...] = ()
    outputs: tuple[Arrays, ...] = field(default=(), repr=False)
    run_seconds: float = 0.0


def compile_context(
    model: Path,
    profile_soc: int,
    arch: int,
    folder: Path,
    *,
    stem: str = "int8",
    timeout_s: float = 300,
    feeds: Feeds = (),
    outputs: Sequence[str] | None = None,
    module: str = "",
) -> Compiled:
    """Compile a QDQ model for HTP, all of it, Q and DQ at its edges included.

    Nodes that compute in float are no error here: they are in ``trace.float_nodes``.

    Args:
        model: ``.onnx`` with static shapes; every node of it has a kernel on HTP.
        profile_soc: QNN's number of the SoC.
        arch: HTP's architecture of that SoC, such as 75.
        folder: Where both files go; made where it is missing.
        stem: Begins their names.
        timeout_s: After which the process is ended, the feeds' time included.
        feeds: What to run on the session that compiles; saves :func:`run_emulated` another compilation.
        outputs: Names of the outputs wanted; None for all, in the model's order.
        module: The worker; another one in tests.

    Raises:
        RefusedNodesError: HTP refuses nodes; all of them are named, with the provider's reasons.
        ModelError: The file is no model.
        ToolError: The package is not installed, the process crashed or hung, the session is not made, the
            trace or a context file is missing, or the context is for other hardware.
        OutputError: ``folder`` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-qnn-") as name:
        place = Path(name)
        context = place / f"{stem}{SUFFIX}"
        job = Job(
            model,
            profile_soc,
            external=_external(model),
            trace=place,
            context=context,
            feeds=feeds,
            outputs=outputs,
        )
        with QnnProcess(module) as process:
            answer = process.do(job, timeout_s=timeout_s)
        trace = _placed(model, place / FILE_NAME, answer, profile_soc)
        stamp = read_stamp(context)
        check_stamp(stamp, profile_soc, arch, model)
        binary = context.with_name(f"{stem}.ctx_qnn.bin")
        write_whole(folder / binary.name, binary.read_bytes())
        write_whole(folder / context.name, context.read_bytes())
    return Compiled(
        context=folder / context.name,
        binary=folder / binary.name,
        trace=trace,
        stamp=stamp,
        seconds=answer.seconds,
        log=answer.log,
        outputs=answer.outputs,
        run_seconds=answer.run_seconds,
    )


def run_emulated(
    model: Path,
    feeds: Feeds,
    *,
    soc: int,
    arch: int,
    outputs: Sequence[str] | None = None,
    timeout_s: float = 600,
    module: str = "",
) -> list[Arrays]:
    """Run feeds in the emulator of HTP.

    Args:
        model: A QDQ ``.onnx``, which is compiled first and forgotten, or a ``.ctx.onnx``, whose outputs are
            bit for bit those of the session that made it.
        feeds: Arrays by the inputs' names, in the inputs' types.
        soc: QNN's number of the SoC.
        arch: HTP's architecture of that SoC.
        outputs: Names of the outputs wanted; None for all, in the model's order.
        timeout_s: For everything; at 640² one image takes up to half a minute.
        module: The worker; another one in tests.

    Raises:
        RefusedNodesError: HTP refuses nodes of the model.
        ToolError: As :func:`compile_context`; also where a context was made for other hardware.
    """
    if not model.name.endswith(SUFFIX):
        with tempfile.TemporaryDirectory(prefix="edgekit-qnn-") as name:
            compiled = compile_context(
                model, soc, arch, Path(name), timeout_s=timeout_s, feeds=feeds, outputs=outputs, module=module
            )
        return list(compiled.outputs)
    check_stamp(read_stamp(model), soc, arch, model)
    with QnnProcess(module) as process:
        answer = process.do(Job(model, soc, compiled=True, feeds=feeds, outputs=outputs), timeout_s=timeout_s)
    if answer.refused:
        raise ToolError(f"ONNX Runtime does not load the context: {_said(answer)}", where=str(model))
    return list(answer.outputs)


def refusals(answer: Answer, trace: Trace | None) -> tuple[LeftNode, ...]:
    """The nodes that HTP refuses, from the trace, or from the provider's messages where it does not say."""
    if trace is not None and (trace.complete or trace.refused):
        return trace.refused
    return answer.unplaced


def _placed(model: Path, path: Path, answer: Answer, soc: int) -> Trace:
    """The trace of a session in which every node is on HTP."""
    trace = read_trace(path, model) if path.is_file() or not answer.refused else None
    refused = refusals(answer, trace)
    if refused:
        raise RefusedNodesError(model, refused)
    if answer.refused:
        no_device = next((line for line in answer.log if _NO_DEVICE.search(line)), "")
        if no_device:
            raise ToolError(f"the QNN toolchain has no SoC {soc}: {no_device}", where=str(model))
        raise ToolError(f"the session on HTP is not made: {_said(answer)}", where=str(model))
    if trace is None or not trace.complete:
        told = "" if trace is None else f"{trace.supported} of {trace.total} nodes in {trace.subgraphs} parts"
        raise ToolError(
            f"the trace does not say that the whole model is on HTP, but {told or 'nothing'}",
            where=str(model),
        )
    return trace


def _said(answer: Answer) -> str:
    return "\n".join((answer.refused, *answer.log[-8:]))


def _external(model: Path) -> Path | None:
    """The folder of a model's external data; None where all is in the file.

    Raises:
        ModelError: The file is no model.
    """
    import onnx

    proto = read_onnx(model)
    outside = onnx.TensorProto.EXTERNAL
    return model.parent if any(t.data_location == outside for t in proto.graph.initializer) else None
