"""What pruned forms of a network cost on an Ethos-U: Vela is asked for the cycles of each kernel.

    latency = scale x sum of cycles[node] + sum of rate[op] x bytes + fixed

1. Conv, ConvTranspose, Gemm and MatMul: a ``.tflite`` of that one operator is compiled, at every width that
   is asked for. Cycles jump where the NPU's blocks end (on a U55 between 32 and 36 channels to more than
   twice as many), so no width is guessed from its neighbours.
2. All other nodes: cycles per byte, from the compiled whole network.
3. ``scale`` brings the kernels to the same whole network, where Vela keeps tensors in SRAM from one to the
   next.

Cycles are remembered in the user's cache folder, for the NPU and the version of Vela.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgekit.errors import OutputError, UsageError
from edgekit.files import write_whole
from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.prune.pricing import as_is, cache_file, moved_bytes, other_bytes
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import NodeRequest
from edgekit.targets.ethos_u.process import VelaProcess
from edgekit.targets.ethos_u.profiles import NpuProfile
from edgekit.targets.ethos_u.single import Single, model_of, single
from edgekit.targets.ethos_u.vela import VelaResult, compile_model

if TYPE_CHECKING:
    from edgekit.quantize.scheme import Scheme

#: Kernels that multiply and accumulate, as Vela's core names them.
KERNELS = frozenset({"Conv2D", "DepthwiseConv2D", "TransposeConv2D", "FullyConnected", "BatchMatMul"})
#: ONNX operators by Vela's name, where the names differ.
_ONNX = {
    "AvgPool": ("AveragePool",),
    "Mean": ("ReduceMean", "GlobalAveragePool"),
    "Maximum": ("Max",),
    "Minimum": ("Min",),
    "ResizeNearestNeighbor": ("Resize",),
    "ResizeBilinear": ("Resize",),
    "Relu6": ("Clip",),
    "Prelu": ("PRelu",),
}
_RANGE = (0.0, 0.99609375)
_FORMAT = 1


@dataclass
class VelaCost:
    """A :class:`~edgekit.target.CostModel`; make one with :meth:`open`.

    Attributes:
        profile: The NPU.
        path: File in which cycles are remembered; None for nowhere.
        known: Cycles by description of the operator; -1 for one that Vela leaves to the CPU.
        asked: Operators compiled by this object (others were known).
        notes: What the reader must know.
    """

    profile: NpuProfile
    path: Path | None
    known: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    notes: tuple[str, ...] = ()
    _process: VelaProcess = field(default_factory=VelaProcess)
    _rates: dict[str, float] = field(default_factory=dict)
    _scale: float = 1.0
    _fixed: float = 0.0

    @classmethod
    def open(
        cls, profile: NpuProfile, scheme: Scheme | None, graph: Graph, kind: str, *, cache: bool = True
    ) -> VelaCost:
        """Compile the network as it is and get the table of its kernels ready.

        Args:
            profile: The NPU.
            scheme: Number formats.
            graph: The network before pruning; captured, float.
            kind: ``int8``: the NPU has no float.
            cache: Whether cycles are remembered in the user's cache folder.

        Raises:
            UsageError: ``kind`` is not ``int8``.
            ModelError: The network has nodes that TFLite cannot express.
            ToolError: Vela is not installed or failed.
        """
        if kind != "int8" or scheme is None:
            raise UsageError("an Ethos-U computes in integers only", where="cost_kind", valid=("int8",))
        cost = cls(profile, _cache_file(profile) if cache else None)
        cost._load()
        cost.calibrate(graph, compile_whole(graph, scheme, profile))
        return cost

    @property
    def parts(self) -> int:
        """Cycles jump where the NPU's blocks end, and asking Vela is quick."""
        return 8

    @property
    def fixed_ms(self) -> float:
        return self._fixed

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        """See :class:`~edgekit.target.CostModel`; what is not known yet is asked of Vela now."""
        return [self.profile.milliseconds(self._scale * cycles) for cycles in self.cycles(requests)]

    def cycles(self, requests: Sequence[NodeRequest]) -> list[int]:
        """Cycles of single nodes by themselves; 0 for one that is left to the CPU, which is noted.

        Raises:
            ToolError: Vela failed.
        """
        ones = [single(request) for request in requests]
        fresh = {one.key: one for one in ones if one.key not in self.known}
        for key, one in fresh.items():
            self.known[key] = self._ask(one)
        self.asked += len(fresh)
        if fresh:
            self._save()
        for request, one in zip(requests, ones, strict=True):
            if self.known[one.key] < 0:
                self._note(f"'{request.node.name}' is left to the CPU, and its time is not in the estimate")
        return [max(0, self.known[one.key]) for one in ones]

    def byte_ms(self, node: ir.Node) -> float:
        """See :class:`~edgekit.target.CostModel`."""
        return 0.0 if node.op_type in MAC_OPS else self._rates.get(node.op_type, self._rates.get("", 0.0))

    def predict(self, graph: Graph) -> Measurement:
        """The latency of a pruned form of the network.

        Raises:
            ToolError: Vela failed.
        """
        kernels = sum(self.node_ms([as_is(node) for node in graph.nodes if node.op_type in MAC_OPS]))
        others = sum(self.byte_ms(node) * moved_bytes(node) for node in graph.nodes)
        spread = {"kernels": kernels, "others": others, "fixed": self._fixed}
        note = f"from Vela's cycles of single kernels on {self.profile.accelerator}"
        return Measurement(kernels + others + self._fixed, "ms", Method.COMPILER_ESTIMATE, spread, note)

    def calibrate(self, graph: Graph, whole: VelaResult) -> None:
        """Scale, rates and the fixed part, from what Vela made of the whole network."""
        table = sum(self.cycles([as_is(n) for n in graph.nodes if n.op_type in MAC_OPS]))
        own = sum(layer.cycles for layer in whole.layers if layer.op in KERNELS)
        self._scale = own / table if own and table else 1.0
        others: dict[str, int] = {}
        for layer in whole.layers:
            if layer.op not in KERNELS:
                others[layer.op] = others.get(layer.op, 0) + layer.cycles
        # Layers that run in cascades overlap, so that the whole can take less than their sum.
        rest = whole.cycles - own - sum(others.values())
        self._fixed = self.profile.milliseconds(max(0, rest))
        self._rates = _rates(graph, {op: self.profile.milliseconds(n) for op, n in others.items()})
        for warning in whole.warnings:
            self._note(warning)

    def _ask(self, one: Single) -> int:
        from edgekit.tflite.write import write_model

        data = write_model(model_of(one))
        result = compile_model(data, self.profile, process=self._process, keep=False)
        return result.cycles if result.complete else -1

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes = (*self.notes, text)

    def _load(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] == _FORMAT:
                self.known.update({str(key): int(cycles) for key, cycles in content["cycles"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note(f"the remembered cycles are not used: {error}")

    def _save(self) -> None:
        if self.path is None:
            return
        content = {"format": _FORMAT, "npu": self.profile.accelerator, "cycles": self.known}
        try:
            write_whole(self.path, json.dumps(content, indent=0).encode())
        except OutputError as error:
            self._note(f"cycles are not remembered: {error}")


def compile_whole(graph: Graph, scheme: Scheme, profile: NpuProfile) -> VelaResult:
    """What Vela makes of a float network that is quantized with made-up ranges: right for time alone.

    Every range is that of a Sigmoid's codes, so that nothing has to be rescaled behind one.

    Raises:
        ModelError: The network has nodes that TFLite cannot express.
        ToolError: Vela is not installed or failed.
    """
    from edgekit.tflite.package import write_package

    quantized = with_made_up_ranges(graph, scheme, _RANGE)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        package = write_package(quantized, "int8", Path(folder))
        return compile_model(package.path.read_bytes(), profile, keep=False)


def _cache_file(profile: NpuProfile) -> Path:
    try:
        version = metadata.version("ethos-u-vela")
    except metadata.PackageNotFoundError:
        version = ""  # what comes next says that it is not installed
    identity = [version, profile.model_dump(mode="json", exclude={"sources", "clock_hz"})]
    return cache_file(f"vela-{profile.accelerator}", identity)


def _rates(graph: Graph, ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds per byte by ONNX operator; under the empty name those that Vela does not name.

    An operator that Vela names shares its time among its nodes. All the rest (layout changes) is shared by
    the nodes that it does not name, which they were made from.
    """
    sizes = other_bytes(graph)
    times: dict[str, float] = {}
    rest = 0.0
    for op, time in ms.items():
        owners = [name for name in _ONNX.get(op, (op,)) if sizes.get(name)]
        total = sum(sizes[name] for name in owners)
        for name in owners:
            times[name] = times.get(name, 0.0) + time * sizes[name] / total
        rest += 0.0 if owners else time
    unnamed = sum(size for op, size in sizes.items() if op not in times)
    named = {op: time / sizes[op] for op, time in times.items()}
    return {**named, "": rest / unnamed if unnamed else 0.0}
