"""Bring float16 and float64 to float32, the one float format that the other passes and targets know.

Weights, inputs, outputs, Cast targets and constants in attributes all change, in subgraphs too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph
from edgekit.passes.edit import set_constant

#: Formats that are converted.
OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.DOUBLE)

_TYPE_ATTRIBUTES = {"to", "dtype"}


def widen_floats(graph: Graph) -> Graph:
    """Convert the whole graph to float32; the history says which inputs and outputs changed their type.

    Raises:
        ModelError: A float64 weight is too large for float32.
    """
    result = graph.copy()
    main = result.model.graph
    interface = [str(v.name) for v in (*main.inputs, *main.outputs) if v.dtype in OTHER_FLOATS]
    weights = sum(_widen_weight(v) for g in (main, *main.subgraphs()) for v in list(g.initializers.values()))
    for value in main.inputs:
        _widen_type(value)
    attributes = 0
    for node in main.all_nodes():
        attributes += _widen_attributes(node)
        for out in node.outputs:
            _widen_type(out)
    details: dict[str, Any] = {"weights": weights, "attributes": attributes, "interface": interface}
    text = f"{weights} weights brought to float32"
    if interface:
        text += f", and with them {', '.join(interface)}"
    return result.with_change(Change("widen_floats", text, details=details))


def _widen_weight(value: ir.Value) -> bool:
    if value.dtype not in OTHER_FLOATS or value.const_value is None:
        return False
    set_constant(value, _to_float32(value.const_value.numpy(), str(value.name)))
    return True


def _widen_type(value: ir.Value) -> None:
    # A new type, because copies of a graph share type objects.
    if value.dtype in OTHER_FLOATS:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> int:
    changed = 0
    for name, attribute in list(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
            if attribute.as_int() in OTHER_FLOATS:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                changed += 1
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in OTHER_FLOATS:
            values = _to_float32(attribute.as_tensor().numpy(), str(node.name or node.outputs[0].name))
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(values))
            changed += 1
    return changed


def _to_float32(values: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if values.dtype == np.float64 and (np.isinf(result) & np.isfinite(values)).any():
        raise ModelError("holds float64 values that float32 cannot hold", where=f"tensor '{where}'")
    return result
