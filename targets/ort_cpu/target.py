"""The target object: what edgekit asks of ONNX Runtime's CPU provider."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifacts import open_artifact, write_artifact
from edgekit.graph import Graph
from edgekit.hardware import Hardware, load_hardware
from edgekit.quantize.scheme import Scheme
from edgekit.session import OrtRunner
from edgekit.target import Artifact, CostModel, Placement, Profile
from edgekit.targets.ort_cpu.lift_biases import lift_biases

_HARDWARE = Path(__file__).with_name("hardware.toml")


@dataclass
class OrtCpuTarget:
    """ONNX files with QuantizeLinear and DequantizeLinear nodes, run by ONNX Runtime.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The hardware asked for.
        name: ``ort-cpu``.
        title: What a person calls it.
        scheme: Number formats; ONNX Runtime fuses the nodes around an op that it has an integer kernel for.
    """

    hardware: Hardware
    profile: Profile
    name: str
    title: str
    scheme: Scheme | None

    @classmethod
    def create(cls, profile: str | None = None) -> OrtCpuTarget:
        hardware = load_hardware(_HARDWARE)
        chosen = hardware.choose(profile)
        return cls(hardware, chosen, "ort-cpu", f"{hardware.title}: {chosen.title}", hardware.scheme)

    def lower(self, graph: Graph) -> Graph:
        """ONNX is what ONNX Runtime reads, and it fuses at load time; one trap is taken out of its way."""
        return lift_biases(graph)

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write ``<kind>.onnx`` into ``folder``.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            OutputError: The file cannot be written.
        """
        return write_artifact(graph, kind, folder)

    def open(self, path: Path, *, threads: int | None = None) -> OrtRunner:
        """Load an artifact in ONNX Runtime, with all its optimizations.

        On this machine a board's profile runs on this machine's CPU: the numbers that come out are right up
        to the rounding of the kernels, the time they take is not the board's.

        Raises:
            ModelError: The file is missing or ONNX Runtime refuses it.
        """
        return open_artifact(path, self.profile.threads if threads is None else threads, optimize=True)

    def placement(self, path: Path) -> Placement:
        """What ONNX Runtime fused into integer kernels on this machine, and what it left in float.

        Raises:
            ModelError: The file is missing or ONNX Runtime refuses it.
        """
        from edgekit.targets.ort_cpu.placement import placement

        return placement(path)

    def cost_model(self, graph: Graph, kind: str, threads: int) -> CostModel:
        """Times single nodes on this machine; see :mod:`edgekit.targets.ort_cpu.latency_table`.

        Raises:
            UsageError: The profile is not this machine, or ``kind`` is not ``float`` or ``int8``.
            ToolError: The measurement failed.
        """
        from edgekit.targets.ort_cpu.latency_table import LatencyTable

        return LatencyTable.open(self.profile, self.scheme, graph, kind, threads)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, **self.hardware.describe(self.profile.name)}
