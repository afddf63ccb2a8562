"""The target object: what edgekit asks of TFLite Micro."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifacts import KINDS, open_artifact, write_artifact
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.quantize.scheme import Scheme
from edgekit.session import OrtRunner
from edgekit.target import Artifact, Estimate, Placement, Profile
from edgekit.targets.tflm.fit import NEED_FILE, Fit, Need, fit, load_need
from edgekit.targets.tflm.hardware import Board, BoardHardware, load_boards
from edgekit.tflite.target import TfliteTarget

if TYPE_CHECKING:
    from edgekit.tflite.package import Package, PackageRunner

_HARDWARE = Path(__file__).with_name("hardware.toml")


@dataclass
class TflmTarget(TfliteTarget):
    """``.tflite`` files and the same as C++ source, run by TFLite Micro's interpreter.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The board asked for.
        name: ``tflm``.
        title: What a person calls it.
        scheme: Number formats: those of TFLite Micro's int8 kernels.
        io: What the int8 artifact takes and returns.
    """

    hardware: BoardHardware
    profile: Profile
    name: str
    title: str
    scheme: Scheme | None
    io: Literal["quantized", "float"] = "quantized"

    @classmethod
    def create(cls, profile: str | None = None) -> TflmTarget:
        hardware = load_boards(_HARDWARE)
        chosen = hardware.choose(profile)
        return cls(hardware, chosen, "tflm", f"{hardware.title}: {chosen.title}", hardware.scheme)

    @property
    def board(self) -> Board:
        """All figures of the profile."""
        return self.hardware.profiles[self.profile.name]

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write ``int8.tflite``, its C++ source and what it needs; or ``float.onnx``, for comparison.

        Beside ``int8.tflite`` lie ``model.cc`` and ``model.h``, ``memory.json`` and, where the network ends
        in float, ``int8.decoder.onnx``.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            ModelError: The network has nodes that TFLite or TFLite Micro does not have.
            ToolError: TFLite Micro is not installed, or the compiler refuses the source.
            OutputError: A file cannot be written.
        """
        if kind not in KINDS:
            raise UsageError(f"there is no artifact kind '{kind}'", valid=KINDS)
        if kind == "float":
            return write_artifact(graph, kind, folder)
        from edgekit.targets.tflm.operators import check_operators
        from edgekit.tflite.package import write_package

        package = write_package(graph, kind, folder, io=self.io, check=check_operators)
        return Artifact(
            kind,
            package.path,
            package.size_bytes,
            (*package.companions, *_write_need(package, folder)),
        )

    def fit(self, path: Path) -> Fit:
        """Whether the ``int8.tflite`` at ``path`` fits the profile's board.

        Raises:
            ModelError: What was measured when it was compiled is not beside it.
        """
        return fit(load_need(path), self.board)

    def estimate(self, path: Path) -> Estimate:
        """Flash and arena of an int8 artifact against the board's; there is no latency.

        Raises:
            ModelError: What was measured when it was compiled is not beside it.
        """
        found = self.fit(path)
        texts = [f"{item.text}. {item.remedy}" if item.remedy else item.text for item in found.findings]
        blocked = [item.blocks for item in found.findings]
        return Estimate(
            latency=None,
            memory={"flash": found.need.flash_bytes, "arena": found.need.arena_bytes},
            notes=(
                *(text for text, blocks in zip(texts, blocked, strict=True) if not blocks),
                found.need.arena.note,
                found.need.source,
            ),
            problems=tuple(text for text, blocks in zip(texts, blocked, strict=True) if blocks),
            unmeasured="what TFLite Micro takes on this machine says nothing about the board",
        )

    def open(self, path: Path, *, threads: int | None = None) -> OrtRunner | PackageRunner:
        """Load an artifact: ``.tflite`` in TFLite Micro's interpreter, ``.onnx`` in ONNX Runtime.

        Neither is made to be fast on this machine; the time it takes says nothing about the board.

        Raises:
            ModelError: A file is missing, or the runtime refuses it.
            ToolError: TFLite Micro is not installed, or its process ended.
        """
        if path.suffix == ".onnx":
            wanted = self.profile.threads if threads is None else threads
            return open_artifact(path, wanted, optimize=False)
        from edgekit.targets.tflm.engine import TflmEngine
        from edgekit.tflite.package import compose, read_package

        model, io = read_package(path)
        return compose(path, io, TflmEngine(path, model))

    def placement(self, path: Path) -> Placement:
        """What the operators compute in. TFLite Micro runs a file as it is, so the file tells.

        Raises:
            ModelError: A file is missing or cannot be read.
        """
        from edgekit.tflite.placement import onnx_nodes, placement

        if path.suffix != ".onnx":
            return placement(path)
        nodes = onnx_nodes(path)
        return Placement(0, len(nodes), 0, dict(sorted(Counter(op for _, op in nodes).items())))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, **self.hardware.describe(self.profile.name)}


def _write_need(package: Package, folder: Path) -> tuple[Path, ...]:
    """The C++ source, and what the network needs; returns the files."""
    from edgekit.files import write_whole
    from edgekit.targets.tflm.engine import TflmEngine
    from edgekit.targets.tflm.operators import methods
    from edgekit.targets.tflm.source import check_source, write_source
    from edgekit.tflite.placement import onnx_nodes

    engine = TflmEngine(package.path, package.model, measure=True)
    engine.close()
    data = package.path.read_bytes()
    source, header = write_source(package.model, data, engine.arena_bytes, folder)
    need = Need(
        flash_bytes=len(data),
        arena_bytes=engine.arena_bytes,
        decoder_nodes=len(onnx_nodes(package.decoder)) if package.decoder is not None else 0,
        operators=methods(package.model),
        source=check_source(source).text,
    )
    write_whole(folder / NEED_FILE, need.to_bytes())
    return source, header, folder / NEED_FILE
