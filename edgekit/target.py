"""What every target offers. A target is one folder under ``targets/``; see ``docs/add-a-target.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from edgekit.graph import Graph
from edgekit.session import Arrays, Runner

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.measure.result import Measurement
    from edgekit.quantize.scheme import Scheme


@dataclass(frozen=True)
class Profile:
    """One piece of hardware that a target can be asked for.

    Attributes:
        name: Short name, the part after the colon in ``ort-cpu:host``.
        title: What a person calls it.
        threads: CPU threads the network may use; 0 is one per physical core.
        memory_bytes: Memory of the board; 0 where it is this machine's.
        host: True when this machine is the profile's hardware, so that latency can be measured here.
        source: Where the figures come from.
        align: Channels that kernels work on at once: a width between two multiples costs as much as the upper
            one. 0 where it is not known.
    """

    name: str
    title: str
    threads: int = 0
    memory_bytes: int = 0
    host: bool = False
    source: str = ""
    align: int = 0


@dataclass(frozen=True)
class Artifact:
    """One file that a target made.

    Attributes:
        kind: ``float`` or ``int8``.
        path: The file.
        size_bytes: Its size.
        companions: Files beside it that belong to it, such as the float end of a network whose body runs on
            an NPU.
        notes: What who loads it must know, such as the layout that the hardware computes in.
    """

    kind: str
    path: Path
    size_bytes: int
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftNode:
    """A node that does not run in the number format, or not on the unit, that was asked for.

    Attributes:
        node: Its name.
        op: Its type.
        reason: The rule that it breaks, in words.
        remedy: What to change; empty where nothing is known to help.
    """

    node: str
    op: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a target's compiler says of an artifact that cannot be run here.

    Attributes:
        latency: For one inference; None where the compiler does not account for all of it.
        missing: The nodes that it leaves out; they would run on a CPU beside the NPU.
        memory: Bytes by kind of memory.
        layers: One entry for each operator, slowest first: ``name``, ``op``, ``cycles``, ``macs``,
            ``utilization``; what is not known is left out.
        notes: What the reader of the figures must know.
        problems: Why the artifact does not run on the hardware; empty where it does.
        unmeasured: Why there is no latency, where nothing is missing.
    """

    latency: Measurement | None
    missing: tuple[LeftNode, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)
    layers: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unmeasured: str = ""


@dataclass(frozen=True)
class Placement:
    """What the runtime really made of an artifact.

    Attributes:
        integer_nodes: Nodes that run on integer kernels.
        float_nodes: Nodes that compute in float.
        conversions: Quantize and Dequantize nodes left over.
        ops: Count of every op type in the optimized graph.
        left: The float nodes, with the reason.
    """

    integer_nodes: int
    float_nodes: int
    conversions: int
    ops: dict[str, int] = field(default_factory=dict)
    left: tuple[LeftNode, ...] = ()


@dataclass(frozen=True)
class OpCoverage:
    """What became of the nodes of one type.

    Attributes:
        op: The type.
        nodes: How many there are.
        on_unit: How many of them run on the unit.
        kernels: What they became there: name of the unit's operation and count.
    """

    op: str
    nodes: int
    on_unit: int
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """Which nodes of a quantized network run on a unit.

    Attributes:
        unit: Name of the unit, such as ``HTP``.
        method: ``compiled`` where the vendor's compiler placed the nodes, ``rules`` where it is not there.
        ops: By type; without QuantizeLinear and DequantizeLinear.
        left: The nodes that do not run there.
        boundary: Conversions at the network's edge that run beside the unit.
        inserted: What the compiler added, such as changes of the layout: name of the operation and count.
        stamp: What it was compiled for, as the compiled file itself says.
        notes: What the reader must know.
    """

    unit: str
    method: Literal["compiled", "rules"]
    ops: tuple[OpCoverage, ...]
    left: tuple[LeftNode, ...] = ()
    boundary: tuple[LeftNode, ...] = ()
    inserted: dict[str, int] = field(default_factory=dict)
    stamp: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """Nodes in all."""
        return sum(row.nodes for row in self.ops)

    @property
    def on_unit(self) -> int:
        """Nodes that run on the unit."""
        return sum(row.on_unit for row in self.ops)


@dataclass(frozen=True)
class NodeRequest:
    """A node as it would be after pruning: the same operator and attributes, other shapes.

    Attributes:
        node: The node as it is in the original graph, with its neighbours.
        inputs: Shape of each input; None for one that is left out.
        outputs: Shape of each output.
    """

    node: ir.Node
    inputs: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, ...], ...]


class CostModel(Protocol):
    """Latency of pruned forms of one network on one target, without building them."""

    @property
    def fixed_ms(self) -> float:
        """The part that no node accounts for."""
        ...

    @property
    def parts(self) -> int:
        """Equal steps of a width at which kernels are asked for: few where asking means timing."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the figures must know."""
        ...

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        """Milliseconds of Conv, ConvTranspose, Gemm and MatMul nodes with what the target fuses into them."""
        ...

    def byte_ms(self, node: ir.Node) -> float:
        """Milliseconds per byte that any other node reads and writes; 0 for one that is fused away."""
        ...

    def predict(self, graph: Graph) -> Measurement:
        """The whole network."""
        ...


@runtime_checkable
class HasCostModel(Protocol):
    """A target that can tell what a network costs while it is being pruned."""

    def cost_model(self, graph: Graph, kind: str, threads: int) -> CostModel:
        """The cost model for pruned forms of ``graph``.

        Args:
            graph: The network before pruning.
            kind: ``float`` or ``int8``.
            threads: Threads it will run with; 0 is the profile's.
        """
        ...


@dataclass(frozen=True)
class CodeDifference:
    """How far the codes of a tensor in two runtimes are apart.

    Attributes:
        tensor: Name of the ONNX tensor.
        op: What computes it.
        different: Share of the codes that differ.
        rms_steps: Root mean square of the differences, in steps of 8 bits.
        max_steps: Largest difference, in steps of 8 bits, rounded up.
    """

    tensor: str
    op: str
    different: float
    rms_steps: float
    max_steps: int


@dataclass(frozen=True)
class RuntimeParity:
    """The same int8 network in several runtimes.

    Attributes:
        reference: The runtime that the others are compared with.
        budget_steps: Most steps that an output may be off.
        samples: How many were compared.
        outputs: By runtime, one entry for each output.
        layers: By runtime, one entry for each inner tensor that both have.
        notes: What the reader of the figures must know.
    """

    reference: str
    budget_steps: int
    samples: int
    outputs: dict[str, tuple[CodeDifference, ...]]
    layers: dict[str, tuple[CodeDifference, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every output is within the budget."""
        return all(row.max_steps <= self.budget_steps for rows in self.outputs.values() for row in rows)


@runtime_checkable
class Prepares(Protocol):
    """A target that wants the float network in another form before it is quantized."""

    def prepare(self, graph: Graph) -> Graph:
        """An equivalent float graph; every change is in its history."""
        ...


@runtime_checkable
class Lints(Protocol):
    """A target that can tell from a float network what will leave its unit."""

    def check(self, graph: Graph) -> tuple[LeftNode, ...]:
        """The nodes that will not run on the target's unit, with the rule and the remedy."""
        ...


@runtime_checkable
class Estimates(Protocol):
    """A target whose hardware is not here, but whose compiler estimates."""

    def estimate(self, path: Path) -> Estimate:
        """What the compiler says of an int8 artifact.

        Raises:
            ModelError: The file was not made by the target.
        """
        ...


@runtime_checkable
class ChoosesEnds(Protocol):
    """A target whose int8 artifacts take and return codes or float, as asked.

    Attributes:
        io: ``quantized`` or ``float``.
    """

    io: Literal["quantized", "float"]

    def with_io(self, io: Literal["quantized", "float"]) -> Target:
        """The same target with the other ends."""
        ...


@runtime_checkable
class ComparesRuntimes(Protocol):
    """A target whose int8 artifacts several runtimes here can run."""

    def compare_runtimes(
        self, path: Path, graph: Graph, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]
    ) -> RuntimeParity | None:
        """How far the codes that runtimes compute are apart; None where they cannot be compared.

        Args:
            path: The artifact.
            graph: The quantized graph that it was made from; ONNX Runtime runs it as the reference.
            feeds: Float inputs by name.
        """
        ...


@runtime_checkable
class Covers(Protocol):
    """A target whose compiler tells node by node what runs on its unit."""

    def coverage(self, path: Path) -> Coverage:
        """What runs on the unit of an int8 artifact."""
        ...

    def try_coverage(self, graph: Graph) -> Coverage:
        """The same of a float network that is quantized with made-up ranges, before any work."""
        ...


@runtime_checkable
class Emulates(Protocol):
    """A target whose int8 artifacts an emulator of the unit runs here, slowly."""

    def emulate(self, path: Path, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> list[Arrays]:
        """Outputs of the artifact, one entry for each sample.

        Raises:
            ToolError: The emulator is not installed or failed.
        """
        ...


class Target(Protocol):
    """A place where networks run."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def profile(self) -> Profile: ...

    @property
    def scheme(self) -> Scheme | None:
        """Number formats for quantization; None for a target that runs float only."""
        ...

    def lower(self, graph: Graph) -> Graph:
        """Rewrite the (quantized or float) graph into the form the target wants."""
        ...

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write the artifact into ``folder``."""
        ...

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Load an artifact; ``threads`` overrides the profile's."""
        ...

    def placement(self, path: Path) -> Placement:
        """Ask the runtime what it did with the artifact."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything ``edgekit targets NAME`` shows, JSON-ready."""
        ...
