"""From a QDQ graph to what a device loads, with a record of what became of it.

1. What the rules refuse stays outside of the body. The body is compiled strictly; should the compiler refuse
   nodes that the rules let pass, they leave the body too, each with the compiler's reason.
2. The context and its binary hold the body. Where float ends are left, one more model holds the whole network
   around the context.
3. ``<stem>.qnn.json`` says what was compiled, for what, and what runs where.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError, ToolError
from edgekit.files import write_whole
from edgekit.graph import Graph
from edgekit.target import Coverage, LeftNode, OpCoverage
from edgekit.targets.qnn_htp.assemble import assemble
from edgekit.targets.qnn_htp.body import Body, settled
from edgekit.targets.qnn_htp.coverage import compiled_coverage, ruled_coverage
from edgekit.targets.qnn_htp.process import Compiled, RefusedNodesError, compile_context
from edgekit.targets.qnn_htp.profiles import HtpProfile
from edgekit.targets.qnn_htp.rules import check

#: Times that nodes which the compiler refuses are taken out of the body.
TRIES = 4
#: What a record is called, after the artifact's stem.
RECORD = ".qnn.json"


@dataclass(frozen=True)
class Record:
    """What ``<stem>.qnn.json`` holds.

    Attributes:
        made_for: Hash of the artifact, SoC, architecture and version of the compiler.
        why_not: Why nothing was compiled; empty where it was.
        seconds: Compiling took.
        refused: Names of the nodes that were taken out of the body.
        coverage: What runs where.
        files: Names of the files beside the artifact.
    """

    made_for: dict[str, Any]
    why_not: str
    seconds: float
    refused: tuple[str, ...]
    coverage: Coverage
    files: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """As the file has it."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def load(cls, artifact: Path) -> Record:
        """Read the record beside an artifact.

        Raises:
            ModelError: There is none, or it was not written by edgekit.
        """
        path = record_path(artifact)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            coverage = content.pop("coverage")
            lists = {k: tuple(LeftNode(**item) for item in coverage.pop(k)) for k in ("left", "boundary")}
            ops = tuple(OpCoverage(**row) for row in coverage.pop("ops"))
            notes = tuple(coverage.pop("notes"))
            found = Coverage(**{**coverage, **lists, "ops": ops, "notes": notes})
            pairs = {k: tuple(content.pop(k)) for k in ("refused", "files")}
            return cls(**{**content, **pairs, "coverage": found})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"has no usable record of its compilation beside it: {error}",
                where=str(artifact),
                hint="Compile it again",
            ) from error


def record_path(artifact: Path) -> Path:
    """Where the record lies, by the artifact."""
    return artifact.with_name(f"{artifact.stem}{RECORD}")


def context_path(artifact: Path) -> Path:
    """Where the context model of the body lies, by the artifact."""
    return artifact.with_name(f"{artifact.stem}.ctx.onnx")


def device_path(artifact: Path) -> Path:
    """What a device loads: the context, or the model with float ends around it."""
    whole = artifact.with_name(f"{artifact.stem}.device.onnx")
    return whole if whole.is_file() else context_path(artifact)


def compile_network(graph: Graph, artifact: Path, profile: HtpProfile, fmt: str) -> Record:
    """Compile the body of a QDQ graph; the files go beside the artifact.

    Args:
        graph: The graph.
        artifact: The ``.onnx`` file that it was written to.
        profile: For what hardware.
        fmt: ``a8w8`` or ``a16w8``.

    Raises:
        ModelError: What HTP does not take stands in the middle of the network.
        ToolError: The compiler crashed, hung, or made something else than it was asked for.
        OutputError: A file cannot be written.
    """
    graph = settled(graph)
    reasons = {item.node: item for item in check(graph, fmt)}
    made_for = _made_for(artifact, profile)
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        why = "it was not compiled: onnxruntime-qnn is not installed (pip install 'edgekit[qnn]')"
        body = Body.of(graph, reasons)
        record = Record(made_for, why, 0.0, tuple(reasons), ruled_coverage(body, reasons, why))
    else:
        record = _compile(graph, artifact, profile, reasons, made_for)
    write_whole(record_path(artifact), record.to_bytes())
    return record


def try_network(graph: Graph, profile: HtpProfile, fmt: str) -> Coverage:
    """Compile a QDQ graph for what runs where alone.

    Raises:
        ModelError: What HTP does not take stands in the middle of the network.
        ToolError: The compiler crashed, hung, or made something else than it was asked for.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        artifact = Path(folder) / "int8.onnx"
        graph.save(artifact)
        return compile_network(graph, artifact, profile, fmt).coverage


def _compile(
    graph: Graph,
    artifact: Path,
    profile: HtpProfile,
    reasons: Mapping[str, LeftNode],
    made_for: dict[str, Any],
) -> Record:
    known = dict(reasons)
    for _ in range(TRIES):
        body = Body.of(graph, known)
        try:
            compiled = _compile_body(body, artifact, profile)
            break
        except RefusedNodesError as error:
            fresh = {item.node: item for item in error.refused if item.node not in known}
            if not fresh:
                raise
            known |= fresh
    else:
        raise ToolError(f"HTP refuses further nodes after {TRIES} attempts", where=str(artifact))
    files = [compiled.context.name, compiled.binary.name]
    if body.parts.front is not None or body.parts.decoder is not None:
        whole = artifact.with_name(f"{artifact.stem}.device.onnx")
        assemble(body.parts.front, compiled.context, body.parts.decoder, whole, whole=graph)
        files.append(whole.name)
    coverage = compiled_coverage(body, compiled, known)
    return Record(made_for, "", compiled.seconds, tuple(known), coverage, tuple(files))


def _compile_body(body: Body, artifact: Path, profile: HtpProfile) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        model = Path(folder) / "body.onnx"
        body.parts.body.save(model)
        compiled = compile_context(
            model, profile.soc_model, profile.arch, artifact.parent, stem=artifact.stem
        )
    if compiled.trace.float_nodes:
        names = ", ".join(f"'{name}'" for name in compiled.trace.float_nodes[:8])
        raise ModelError(
            f"HTP would compute {names} in float",
            where=str(artifact),
            hint="The emulator runs that in 32 bits, the device in 16: give the operator a rule",
        )
    return replace(compiled, log=tuple(line for line in compiled.log if line))


def _made_for(artifact: Path, profile: HtpProfile) -> dict[str, Any]:
    try:
        version = metadata.version("onnxruntime-qnn")
    except metadata.PackageNotFoundError:
        version = ""
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    return {"sha256": digest, "soc": profile.soc_model, "arch": profile.arch, "onnxruntime-qnn": version}
