"""What runs where, and what it is estimated to take, in the words that all targets share."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import ModelError
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
    import onnx
    import onnx_ir as ir

    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    try:
        graph = Graph(ir.from_proto(onnx.load(path)))
    except Exception as error:  # OSError, or the DecodeError of protobuf, which has no typed import
        raise ModelError(f"cannot be read as ONNX: {error}", where=str(path)) from error
    if not list(graph.nodes):
        raise ModelError("is no ONNX model: it has no nodes", where=str(path))
    return graph


def placement(path: Path) -> Placement:
    """Nodes by where they run; of a float artifact, which HTP does not run, all are float.

    Raises:
        ModelError: The file is missing or cannot be read, or an int8 artifact has no record.
    """
    graph = load_artifact(path)
    ops: dict[str, int] = {}
    for node in graph.nodes:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
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
