"""The target object: what edgekit asks of Vela and of the reference kernels that define an int8 model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifacts import KINDS, open_artifact, write_artifact
from edgekit.errors import ModelError, UsageError
from edgekit.files import write_whole
from edgekit.graph import Graph
from edgekit.hardware import Hardware, load_hardware
from edgekit.quantize.scheme import Scheme
from edgekit.session import Runner
from edgekit.target import Artifact, CostModel, Estimate, LeftNode, Placement, Profile, RuntimeParity
from edgekit.targets.ethos_u.profiles import Family, NpuProfile, load_npu
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.target import TfliteTarget

if TYPE_CHECKING:
    from edgekit.targets.ethos_u.vela import VelaResult
    from edgekit.tflite.model import Array

_HARDWARE = Path(__file__).with_name("hardware.toml")


@dataclass
class EthosUTarget(TfliteTarget):
    """``.tflite`` files, compiled by Vela.

    ``int8.tflite`` says what is computed and runs in LiteRT's reference kernels, ``int8.vela.tflite`` is the
    same network for the device, ``int8.vela.json`` what Vela says about it.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The hardware asked for.
        npu: What Vela needs to know of it.
        name: ``ethos-u``.
        title: What a person calls it.
        scheme: Number formats: those of the operators that Vela keeps on the NPU.
        io: What the int8 artifact takes and returns.
    """

    hardware: Hardware
    profile: Profile
    npu: NpuProfile
    name: str
    title: str
    scheme: Scheme | None
    io: Literal["quantized", "float"] = "quantized"

    @classmethod
    def create(cls, profile: str | None = None) -> EthosUTarget:
        hardware = load_hardware(_HARDWARE)
        chosen = hardware.choose(profile)
        title = f"{hardware.title}: {chosen.title}"
        return cls(hardware, chosen, load_npu(chosen.name), "ethos-u", title, hardware.scheme)

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write the artifact into ``folder``.

        ``float`` is ``float.onnx``, the reference that ONNX Runtime runs: the NPU has no float. ``int8`` is
        ``int8.tflite`` (with ONNX files for the network's float ends) and beside it what Vela made of it.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            ModelError: The network has nodes that TFLite cannot express.
            OutputError: A file cannot be written.
            ToolError: Vela or LiteRT is not installed, or Vela failed.
        """
        from edgekit.targets.ethos_u.vela import compile_model
        from edgekit.tflite.package import write_package

        if kind not in KINDS:
            raise UsageError(f"there is no artifact kind '{kind}'", valid=KINDS)
        if kind == "float":
            return write_artifact(graph, kind, folder)
        package = write_package(graph, kind, folder, io=self.io, dialect=self._dialect)
        data = package.path.read_bytes()
        result = compile_model(data, self.npu)
        write_whole(compiled_path(package.path), result.model)
        self._remember(package.path, data, result)
        beside = (*package.companions, compiled_path(package.path), report_path(package.path))
        return Artifact(kind, package.path, package.size_bytes, beside)

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Load an artifact: the float model in ONNX Runtime, int8 in LiteRT's reference kernels.

        The NPU computes int8 as these kernels do; the optimized file runs on the NPU only.

        Raises:
            ModelError: A file is missing or the runtime refuses it.
            ToolError: LiteRT is not installed.
        """
        from edgekit.tflite.interpreter import Kernels
        from edgekit.tflite.package import open_package

        if _is_tflite(path):
            return open_package(path, kernels=Kernels.REFERENCE, threads=1)
        return open_artifact(path, threads or self.profile.threads, optimize=True)

    def placement(self, path: Path) -> Placement:
        """What Vela put on the NPU, what it left to the CPU and why, and what stays in float beside it.

        ``integer_nodes`` run on the NPU; ``float_nodes`` and ``left`` count everything that does not: int8
        operators that Vela leaves to the CPU, and float nodes before and after the model.

        Raises:
            ModelError: The file is missing or cannot be read.
            ToolError: Vela is not installed or failed.
        """
        from edgekit.targets.ethos_u.placement import float_placement, npu_placement

        if not _is_tflite(path):
            return float_placement(path)
        return npu_placement(path, self.vela(path))

    def compare_runtimes(
        self, path: Path, graph: Graph, feeds: Sequence[Mapping[str, Array]]
    ) -> RuntimeParity | None:
        """The unoptimized int8 model in the runtimes that are here; see :mod:`edgekit.tflite.parity`.

        Raises:
            ModelError: A file cannot be used.
            ToolError: LiteRT is not installed.
        """
        from edgekit.tflite.parity import compare_runtimes

        if self.io == "float":
            return None  # its codes are inside
        return compare_runtimes(path, graph, feeds, dialect=self._dialect)

    def estimate(self, path: Path) -> Estimate:
        """Vela's estimate of an int8 artifact; without a latency where operators are left to the CPU.

        Raises:
            ModelError: The file is missing or no int8 artifact.
            ToolError: Vela is not installed or failed.
        """
        found = self.vela(path)
        layers = sorted(found.layers, key=lambda layer: -layer.cycles)
        memory = {
            "SRAM": found.sram_bytes,
            "DRAM": found.dram_bytes,
            "on-chip flash": found.on_chip_flash_bytes,
            "off-chip flash": found.off_chip_flash_bytes,
        }
        return Estimate(
            latency=found.estimate(),
            missing=tuple(LeftNode(op.name, op.op, op.reason, self._remedy) for op in found.cpu_ops),
            memory={name: size for name, size in memory.items() if size},
            layers=tuple(
                {
                    "name": layer.name,
                    "op": layer.op,
                    "cycles": layer.cycles,
                    "macs": layer.macs,
                    "utilization": layer.utilisation,
                }
                for layer in layers
            ),
            notes=found.warnings,
        )

    @property
    def _remedy(self) -> str:
        """Vela names operators of the file; which node of the network breaks which rule, the linter knows."""
        return f"edgekit inspect --target {self.name}:{self.profile.name} names the node and what to change"

    def vela(self, path: Path) -> VelaResult:
        """What Vela says about an int8 artifact: read from beside it, asked again where that is out of date.

        Raises:
            ModelError: The file is missing or no ``.tflite``.
            ToolError: Vela is not installed or failed.
        """
        from edgekit.targets.ethos_u.vela import VelaResult, compile_model

        if not path.is_file():
            raise ModelError("there is no such file", where=str(path))
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ModelError("is no .tflite file", where=str(path))
        try:
            known = json.loads(report_path(path).read_text(encoding="utf-8"))
            if known["made_for"] == self._made_for(data):
                return VelaResult.from_json(known["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never written, moved away or edited: Vela is asked again
        return compile_model(data, self.npu)

    def check(self, graph: Graph) -> tuple[LeftNode, ...]:
        """Which nodes of a float network will leave the NPU, before any work is done."""
        from edgekit.targets.ethos_u.rules import check

        found = check(graph, self.npu)
        return tuple(LeftNode(item.node, item.op, item.rule, item.remedy) for item in found)

    def cost_model(self, graph: Graph, kind: str, threads: int) -> CostModel:
        """Asks Vela for the cycles of single nodes; see :mod:`edgekit.targets.ethos_u.cost`.

        Raises:
            UsageError: ``kind`` is not ``int8``.
            ToolError: Vela is not installed or failed.
        """
        from edgekit.targets.ethos_u.cost import VelaCost

        return VelaCost.open(self.npu, self.scheme, graph, kind)

    def describe(self) -> dict[str, Any]:
        described = self.hardware.describe(self.profile.name)
        return {"name": self.name, "title": self.title, **described, "npu": self.npu.model_dump(mode="json")}

    @property
    def _dialect(self) -> Dialect:
        """Only a U85 looks up rows of a table by computed indices."""
        from edgekit.tflite.lower.lower import AVOIDABLE

        return Dialect(lookups=self.npu.family is Family.U85, avoid=AVOIDABLE)

    def _remember(self, path: Path, data: bytes, result: VelaResult) -> None:
        content = {"made_for": self._made_for(data), "result": result.to_json()}
        write_whole(report_path(path), (json.dumps(content, indent=1) + "\n").encode())

    def _made_for(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        return {"tflite_sha256": digest, "npu": self.npu.model_dump(mode="json", exclude={"sources"})}


def compiled_path(path: Path) -> Path:
    """Where the file for the device lies, by that of the ``.tflite`` that it was made from."""
    return path.with_name(f"{path.stem}.vela.tflite")


def report_path(path: Path) -> Path:
    """Where Vela's result lies, by the ``.tflite`` that it is about."""
    return path.with_name(f"{path.stem}.vela.json")


def _is_tflite(path: Path) -> bool:
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"
