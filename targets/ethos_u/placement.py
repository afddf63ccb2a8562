"""What runs on the NPU, what on the CPU, and what stays in float beside the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifacts import read_onnx
from edgekit.target import LeftNode, Placement

if TYPE_CHECKING:
    from edgekit.targets.ethos_u.vela import VelaResult


def npu_placement(path: Path, result: VelaResult) -> Placement:
    """Operators of an int8 package, by where they run.

    Args:
        path: The ``.tflite``.
        result: What Vela made of it.

    Raises:
        ModelError: A file of the package is missing or cannot be read.
    """
    from edgekit.tflite.package import read_package
    from edgekit.tflite.placement import kind_of, placement

    whole = placement(path)
    model, _ = read_package(path)
    reasons = {op.name: op.reason for op in result.cpu_ops}
    counts = {"integer": 0, "conversion": 0, "float": 0, "other": 0}
    left = []
    for operator in model.operators:
        reason = next((reasons[name] for name in operator.outputs if name in reasons), None)
        kind = kind_of(operator, model)
        if reason is not None:
            name = operator.source or operator.outputs[0]
            left.append(LeftNode(name, operator.op, f"on the CPU: {reason}"))
        else:
            counts[kind] += 1
    inside = sum(1 for operator in model.operators if kind_of(operator, model) == "float")
    ends = whole.left[inside:]
    return Placement(
        counts["integer"], len(left) + len(ends), counts["conversion"], whole.ops, (*left, *ends)
    )


def float_placement(path: Path) -> Placement:
    """The float reference: every node is float, on purpose.

    Raises:
        ModelError: The file is no ONNX model.
    """
    ops = Counter(node.op_type for node in read_onnx(path).graph.node)
    return Placement(0, ops.total(), 0, dict(ops))
