"""What runs where, and what it is estimated to take, in the words that all targets share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgekit.artifacts import read_onnx
from edgekit.graph import Graph
from edgekit.target import Estimate, LeftNode, Placement
from edgekit.targets.qnn_htp.compile import Record, context_path, record_path
from edgekit.targets.qnn_htp.estimate import estimate
from edgekit.targets.qnn_htp.profiles import HtpProfile

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def load_artifact(path: Path) -> Graph:
    """The graph of an artifact.

    Raises:
        ModelError: The file is missing or no ONNX model.
    """
    import onnx_ir as ir

    return Graph(ir.from_proto(read_onnx(path, weights=True)))


def placement(path: Path) -> Placement:
    """Nodes by where they run; of a float artifact, which HTP does not run, all are float.

    Raises:
        ModelError: The file is missing or cannot be read, or an int8 artifact has no record.
    """
    ops = dict(Counter(node.op_type for node in read_onnx(path).graph.node))
    if not any(op in ops for op in _CONVERSIONS) and not record_path(path).is_file():
        return Placement(0, sum(ops.values()), 0, ops)
    found = Record.load(path).coverage
    left: tuple[LeftNode, ...] = found.left
    return Placement(found.on_unit, len(left), ops.get("QuantizeLinear", 0), ops, left)


def estimated(path: Path, profile: HtpProfile) -> Estimate:
    """The roofline of an int8 artifact.

    Raises:
        ModelError: The file is missing or cannot be read, or there is no record beside it.
    """
    record = Record.load(path)
    found = estimate(load_artifact(path), profile)
    binary = context_path(path).with_name(f"{path.stem}.ctx_qnn.bin")
    memory = {name: size for name, size in found.memory.items() if size}
    if binary.is_file():
        memory["context binary"] = binary.stat().st_size
    return Estimate(
        latency=None if record.coverage.left else found.latency,
        missing=record.coverage.left,
        memory=memory,
        layers=found.layers,
        notes=tuple(filter(None, (record.why_not, *found.assumptions))),
    )
