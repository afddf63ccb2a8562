"""What the operators of a package compute in, read back from its files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from edgekit.artifacts import read_onnx
from edgekit.target import LeftNode, Placement
from edgekit.tflite.model import DType, Operator, TfliteModel
from edgekit.tflite.package import NOTES_ENTRY, companion, read_package

CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_INTEGER = (DType.INT8, DType.INT16)
_ENDS = {
    "front": "it stands before the first integer operator: ONNX Runtime computes it ahead of the .tflite",
    "decoder": "it stands behind the last integer operator: ONNX Runtime computes it after the .tflite",
}


def placement(path: Path) -> Placement:
    """Integer and float operators of a ``.tflite`` and of the ONNX files that belong to it.

    A QUANTIZE between two integer formats is a conversion too. Operators of TFLite and of ONNX are counted by
    their own names.

    Raises:
        ModelError: A file is missing or cannot be read.
    """
    model, io = read_package(path)
    kinds = [kind_of(operator, model) for operator in model.operators]
    left = [
        LeftNode(operator.source or operator.outputs[0], operator.op, _reason(operator, model))
        for operator, kind in zip(model.operators, kinds, strict=True)
        if kind == "float"
    ]
    ops = Counter(operator.op for operator in model.operators)
    for name, expected in (("front", io.front), ("decoder", io.decoder)):
        if expected is not None:
            nodes = onnx_nodes(companion(path, name))
            ops.update(op for _, op in nodes)
            left += [LeftNode(node, op, _ENDS[name]) for node, op in nodes]
    integer, floats = kinds.count("integer"), len(left)
    return Placement(
        integer_nodes=integer,
        float_nodes=floats,
        conversions=kinds.count("conversion"),
        ops=dict(sorted(ops.items())),
        # A file without integer operators is the float network: nothing was left behind.
        left=tuple(left) if integer else (),
    )


def layout_notes(path: Path) -> list[dict[str, Any]]:
    """Every TRANSPOSE and QUANTIZE that the lowering had to insert, as the file's metadata has it.

    Raises:
        ModelError: The file is missing or cannot be read.
    """
    model, _ = read_package(path)
    return list(json.loads(model.metadata.get(NOTES_ENTRY, "[]")))


def kind_of(operator: Operator, model: TfliteModel) -> str:
    """``integer``, ``float``, ``conversion`` or ``other`` (indices, booleans)."""
    if operator.op in CONVERSIONS:
        return "conversion"
    types = [model.tensors[name].dtype for name in operator.outputs]
    types += [model.tensors[name].dtype for name in operator.inputs if name is not None]
    if DType.FLOAT32 in types:
        return "float"
    return "integer" if any(dtype in _INTEGER for dtype in types) else "other"


def _reason(operator: Operator, model: TfliteModel) -> str:
    names = [name for name in (*operator.inputs, *operator.outputs) if name is not None]
    plain = next(name for name in names if model.tensors[name].dtype is DType.FLOAT32)
    return f"its tensor '{model.tensors[plain].source or plain}' is not quantized"


def onnx_nodes(path: Path) -> list[tuple[str, str]]:
    """Name and op of every node of an ONNX file that computes.

    Raises:
        ModelError: The file is missing or no ONNX model.
    """
    nodes = read_onnx(path).graph.node
    return [(node.name or node.output[0], node.op_type) for node in nodes if node.op_type != "Constant"]
