"""The target object: what edgekit asks of Qualcomm's toolchain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from edgekit.artifacts import write_artifact
from edgekit.errors import UsageError
from edgekit.formats import split_profile
from edgekit.graph import Graph
from edgekit.hardware import Hardware, load_hardware
from edgekit.quantize.scheme import Scheme
from edgekit.session import Arrays, Runner, cores
from edgekit.target import (
    Artifact,
    CostModel,
    Coverage,
    Estimate,
    LeftNode,
    Placement,
    Profile,
    RuntimeParity,
)
from edgekit.targets.qnn_htp.profiles import HtpProfile, load_htp

if TYPE_CHECKING:
    import numpy as np

_HARDWARE = Path(__file__).with_name("hardware.toml")


@dataclass
class QnnHtpTarget:
    """QDQ files and the contexts that Qualcomm's compiler makes of them.

    ``int8.onnx`` says what is computed and runs in ONNX Runtime anywhere. ``int8.ctx.onnx`` with
    ``int8.ctx_qnn.bin`` is the same network for the device; ``int8.qnn.json`` says what runs where.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The hardware and number format asked for.
        htp: What the compiler and the estimate need to know of it.
        fmt: ``a8w8`` or ``a16w8``.
        name: ``qnn-htp``.
        title: What a person calls it.
        scheme: Number formats.
        io: What the int8 artifact takes and returns.
    """

    hardware: Hardware
    profile: Profile
    htp: HtpProfile
    fmt: str
    name: str
    title: str
    scheme: Scheme | None
    io: Literal["quantized", "float"] = "float"

    @classmethod
    def create(cls, profile: str | None = None) -> QnnHtpTarget:
        """The target for one profile, or the default one for None.

        Raises:
            UnknownNameError: There is no such profile.
        """
        hardware = load_hardware(_HARDWARE)
        chosen = hardware.choose(profile)
        base, fmt = split_profile(chosen.name, hardware.formats)
        title = f"{hardware.title}: {chosen.title}"
        scheme = hardware.scheme_of(chosen.name)
        return cls(hardware, chosen, load_htp(base), fmt or "a8w8", "qnn-htp", title, scheme)

    def with_io(self, io: Literal["quantized", "float"]) -> Self:
        """The same target whose int8 artifacts have other ends."""
        other = copy(self)
        other.io = io
        return other

    def prepare(self, graph: Graph) -> Graph:
        """The float network with the operators that HTP has kernels for."""
        from edgekit.targets.qnn_htp.prepare import prepare

        return prepare(graph, fmt=self.fmt)

    def lower(self, graph: Graph) -> Graph:
        """QDQ is what the toolchain reads; scales that its 16-bit kernels lose are raised."""
        from edgekit.targets.qnn_htp.small_scales import raise_small_scales

        return raise_small_scales(graph)

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write the artifact into ``folder``.

        ``float`` is ``float.onnx``, for comparison. ``int8`` is ``int8.onnx`` and, where the toolchain is
        installed, what it made of it; ``int8.qnn.json`` says which.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            ModelError: The network has nodes in its middle that HTP does not take.
            ToolError: The compiler crashed, hung, or made something else than it was asked for.
            OutputError: A file cannot be written.
        """
        from edgekit.passes.quantized_ends import quantized_ends
        from edgekit.targets.qnn_htp.compile import compile_network, record_path
        from edgekit.targets.qnn_htp.host import write_sources

        if kind != "int8":
            return write_artifact(graph, kind, folder)
        ready = quantized_ends(graph) if self.io == "quantized" else graph
        artifact = write_artifact(ready, kind, folder)
        record = compile_network(ready, artifact.path, self.htp, self.fmt)
        files = [*(folder / name for name in record.files), record_path(artifact.path)]
        notes: tuple[str, ...] = (record.why_not,) if record.why_not else ()
        if record.files:
            sources, notes = write_sources(artifact.path)
            files += sources
        return Artifact(kind, artifact.path, artifact.size_bytes, tuple(files), notes)

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Load an artifact in ONNX Runtime on this machine's CPU.

        The numbers are those of HTP up to the rounding of its kernels, see :meth:`compare_runtimes`; the
        time says nothing of the device.

        Raises:
            ModelError: The file is missing or ONNX Runtime refuses it.
        """
        from edgekit.coded import open_coded

        wanted = self.profile.threads if threads is None else threads
        return open_coded(path, min(wanted or cores(), cores()), optimize=True)

    def emulate(self, path: Path, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> list[Arrays]:
        """Outputs of an int8 artifact in the emulator of HTP; float, whatever the artifact's ends are.

        Raises:
            ModelError: The file is missing or was not made by this target.
            ToolError: The toolchain is not installed, crashed or hung.
        """
        from edgekit.targets.qnn_htp.emulate import emulate

        return emulate(path, feeds, self.htp)

    def compare_runtimes(
        self, path: Path, graph: Graph, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]
    ) -> RuntimeParity | None:
        """How far HTP's emulator and ONNX Runtime are apart; None where nothing was compiled.

        Raises:
            ModelError: A file cannot be used.
            ToolError: The toolchain crashed or hung.
        """
        from edgekit.targets.qnn_htp.emulate import compare_runtimes

        return compare_runtimes(path, graph, feeds, self.htp)

    def placement(self, path: Path) -> Placement:
        """What runs on HTP: as compiled, or by the rules where the toolchain is not installed.

        Raises:
            ModelError: The file is missing, cannot be read, or was not made by this target.
        """
        from edgekit.targets.qnn_htp.placement import placement

        return placement(path)

    def coverage(self, path: Path) -> Coverage:
        """What runs on HTP, by operator, from the record beside an int8 artifact.

        Raises:
            ModelError: There is no record: the artifact was not made by this target.
        """
        from edgekit.targets.qnn_htp.compile import Record

        return Record.load(path).coverage

    def try_coverage(self, graph: Graph) -> Coverage:
        """What runs on HTP of a float network, which is quantized with made-up ranges and compiled.

        Raises:
            ModelError: The network has nodes in its middle that HTP does not take.
            ToolError: The compiler crashed or hung.
        """
        from edgekit.quantize.made_up import with_made_up_ranges
        from edgekit.targets.qnn_htp.compile import try_network

        if self.scheme is None:
            raise UsageError("the target has no number formats", where=self.name)
        quantized = self.lower(with_made_up_ranges(graph, self.scheme))
        return try_network(quantized, self.htp, self.fmt)

    def check(self, graph: Graph) -> tuple[LeftNode, ...]:
        """Which nodes of a float network HTP does not take, by the rules."""
        from edgekit.targets.qnn_htp.rules import check

        return check(graph, self.fmt)

    def estimate(self, path: Path) -> Estimate:
        """A roofline of an int8 artifact; without a latency where nodes run beside HTP.

        Raises:
            ModelError: The file is missing, cannot be read, or was not made by this target.
        """
        from edgekit.targets.qnn_htp.placement import estimated

        return estimated(path, self.htp)

    def cost_model(self, graph: Graph, kind: str, threads: int) -> CostModel:
        """A cost model on top of the estimate; see :mod:`edgekit.targets.qnn_htp.cost`.

        Raises:
            UsageError: ``kind`` is not ``int8``.
        """
        from edgekit.targets.qnn_htp.cost import HtpCost

        return HtpCost.open(self.htp, graph, kind, item=2 if self.fmt == "a16w8" else 1)

    def describe(self) -> dict[str, Any]:
        described = self.hardware.describe(self.profile.name)
        return {"name": self.name, "title": self.title, **described, "htp": self.htp.model_dump(mode="json")}
