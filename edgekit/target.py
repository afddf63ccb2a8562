"""What every target offers. A target is one folder under ``targets/``; see ``docs/add-a-target.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekit.graph import Graph
from edgekit.session import Runner

if TYPE_CHECKING:
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
    """

    kind: str
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class LeftNode:
    """A node that does not run in the number format that was asked for."""

    node: str
    op: str
    reason: str


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
