"""The target object: what edgekit asks of LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifacts import KINDS
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.hardware import Hardware, load_hardware
from edgekit.quantize.scheme import Scheme
from edgekit.session import cores
from edgekit.target import Artifact, Placement, Profile, RuntimeParity
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.target import TfliteTarget

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.litert.delegation import Delegation
    from edgekit.tflite.package import PackageRunner

_HARDWARE = Path(__file__).with_name("hardware.toml")
#: A CPU computes in float as well.
_DIALECT = Dialect(mixed=True)


@dataclass
class LiteRtTarget(TfliteTarget):
    """``.tflite`` files, run by LiteRT with XNNPACK.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The hardware asked for.
        name: ``litert``.
        title: What a person calls it.
        scheme: Number formats: those of LiteRT's int8 kernels.
        io: What the int8 artifact takes and returns.
    """

    hardware: Hardware
    profile: Profile
    name: str
    title: str
    scheme: Scheme | None
    io: Literal["quantized", "float"] = "quantized"

    @classmethod
    def create(cls, profile: str | None = None) -> LiteRtTarget:
        hardware = load_hardware(_HARDWARE)
        chosen = hardware.choose(profile)
        return cls(hardware, chosen, "litert", f"{hardware.title}: {chosen.title}", hardware.scheme)

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write ``<kind>.tflite`` into ``folder`` and, where the network ends in float, its ONNX files.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            ModelError: The network has nodes that TFLite cannot express.
            OutputError: The file cannot be written.
        """
        from edgekit.tflite.package import write_package

        if kind not in KINDS:
            raise UsageError(f"there is no artifact kind '{kind}'", valid=KINDS)
        package = write_package(graph, kind, folder, io=self.io, dialect=_DIALECT)
        return Artifact(kind, package.path, package.size_bytes, package.companions)

    def open(self, path: Path, *, threads: int | None = None) -> PackageRunner:
        """Load an artifact in LiteRT with the kernels that applications get: XNNPACK's, else LiteRT's own.

        On this machine a board's profile runs on this machine's CPU: the numbers that come out are right up
        to the rounding of the kernels, the time they take is not the board's.

        Raises:
            ModelError: A file is missing or LiteRT refuses it.
            ToolError: LiteRT is not installed.
        """
        from edgekit.tflite.interpreter import Kernels
        from edgekit.tflite.package import open_package

        wanted = self.profile.threads if threads is None else threads
        return open_package(path, kernels=Kernels.XNNPACK, threads=min(wanted or cores(), cores()))

    def open_reference(self, path: Path) -> PackageRunner:
        """Load an artifact with LiteRT's reference kernels, which say what each operator means.

        Raises:
            ModelError: A file is missing or LiteRT refuses it.
            ToolError: LiteRT is not installed.
        """
        from edgekit.tflite.interpreter import Kernels
        from edgekit.tflite.package import open_package

        return open_package(path, kernels=Kernels.REFERENCE, threads=1)

    def placement(self, path: Path) -> Placement:
        """What the file's operators compute in, and what is left to float operators and to the decoder.

        Raises:
            ModelError: A file is missing or cannot be read.
        """
        from edgekit.tflite.placement import placement

        return placement(path)

    def compare_runtimes(
        self, path: Path, graph: Graph, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]
    ) -> RuntimeParity | None:
        """How far LiteRT's kernels, edgekit's integer reference and ONNX Runtime are apart.

        Raises:
            ModelError: A file is missing or LiteRT refuses it.
            ToolError: LiteRT is not installed.
        """
        from edgekit.tflite.parity import compare_runtimes

        if self.io == "float":
            return None  # its codes are inside
        return compare_runtimes(path, graph, feeds, dialect=_DIALECT)

    def delegation(self, path: Path) -> Delegation:
        """Which of the operators of a file XNNPACK takes over on this machine.

        Raises:
            ModelError: A file is missing or LiteRT refuses it.
            ToolError: LiteRT is not installed, or does not tell.
        """
        from edgekit.targets.litert.delegation import delegation

        return delegation(path)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, **self.hardware.describe(self.profile.name)}
