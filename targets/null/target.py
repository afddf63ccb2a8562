"""The null target: every node of the file is computed on its own, nothing is fused, nothing is rearranged.

It lets the whole line run without a device or a vendor's toolchain, and it is what the other targets are
compared with: a difference between it and a target is the target's doing, not the graph's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifacts import open_artifact, read_onnx, write_artifact
from edgekit.graph import Graph
from edgekit.hardware import Hardware, load_hardware
from edgekit.quantize.scheme import Scheme
from edgekit.session import OrtRunner
from edgekit.target import Artifact, LeftNode, Placement, Profile

_HARDWARE = Path(__file__).with_name("hardware.toml")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass
class NullTarget:
    """ONNX files, run by ONNX Runtime with its optimizations off.

    Attributes:
        hardware: Content of ``hardware.toml``.
        profile: The one profile there is.
        name: ``null``.
        title: What a person calls it.
        scheme: Number formats; None while the target runs float only.
    """

    hardware: Hardware
    profile: Profile
    name: str
    title: str
    scheme: Scheme | None

    @classmethod
    def create(cls, profile: str | None = None) -> NullTarget:
        hardware = load_hardware(_HARDWARE)
        return cls(hardware, hardware.choose(profile), "null", hardware.title, hardware.scheme)

    def lower(self, graph: Graph) -> Graph:
        """The graph itself."""
        return graph

    def compile(self, graph: Graph, kind: str, folder: Path) -> Artifact:
        """Write ``<kind>.onnx`` into ``folder``.

        Raises:
            UsageError: ``kind`` is not ``float`` or ``int8``.
            OutputError: The file cannot be written.
        """
        return write_artifact(graph, kind, folder)

    def open(self, path: Path, *, threads: int | None = None) -> OrtRunner:
        """Load an artifact so that each node is computed as the file says.

        Raises:
            ModelError: The file is missing or ONNX Runtime refuses it.
        """
        return open_artifact(path, self.profile.threads if threads is None else threads, optimize=False)

    def placement(self, path: Path) -> Placement:
        """Every node that computes does so in float: nothing is fused around the Dequantize nodes.

        Raises:
            ModelError: The file is missing or is not an ONNX model.
        """
        nodes = read_onnx(path).graph.node
        floats = [n for n in nodes if n.op_type not in (*_CONVERSIONS, "Constant")]
        conversions = sum(n.op_type in _CONVERSIONS for n in nodes)
        reason = "the null target computes in float, on the values that the Dequantize nodes give"
        left = (
            tuple(LeftNode(n.name or n.output[0], n.op_type, reason) for n in floats) if conversions else ()
        )
        ops = dict(sorted(Counter(n.op_type for n in nodes).items()))
        return Placement(
            integer_nodes=0, float_nodes=len(floats), conversions=conversions, ops=ops, left=left
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, **self.hardware.describe(self.profile.name)}
