"""Give every tensor its element type and, where it follows from the inputs, its shape.

One walk in execution order: each node's outputs follow from its inputs by the operator's own inference
function (``onnx.shape_inference.infer_node_outputs``). Weights are never copied for it, unlike in whole-model
inference.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph
from edgekit.passes.edit import is_constant, static_shape

#: A constant with more elements than this is a weight, which no operator's output shape depends on.
_SHAPE_INPUT_LIMIT = 4096


def infer_shapes(graph: Graph) -> Graph:
    """Infer type and shape of every node output anew.

    What was declared stays only where nothing can be inferred.

    Raises:
        ModelError: The shapes around a node do not fit together.
    """
    result = graph.copy()
    nodes = list(result.model.graph)
    for node in nodes:
        infer_node(node, result.model.opset_imports)
    known = sum(static_shape(out) is not None for node in nodes for out in node.outputs if out.name)
    total = sum(1 for node in nodes for out in node.outputs if out.name)
    return result.with_change(Change("infer_shapes", f"{known} of {total} tensors have a known shape"))


def infer_node(node: ir.Node, opsets: dict[str, int]) -> None:
    """Set type and shape of a node's outputs from those of its inputs, in place.

    Raises:
        ModelError: The operator refuses these input shapes.
    """
    import onnx
    import onnx.defs
    import onnx.shape_inference

    version = opsets.get(node.domain, 0)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return
    if schema.deprecated:
        return  # the checker inside refuses it; what the model declares stays
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            _types(node),
            _data(node),
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        RuntimeError,
        KeyError,
    ) as error:
        raise ModelError(_reason(error), where=f"{node.op_type} node '{node.name}'") from error
    for out in node.outputs:
        if out.name and out.name in inferred:
            _take(out, inferred[out.name])


def _types(node: ir.Node) -> dict[str, Any]:
    import onnx

    types: dict[str, Any] = {}
    for value in node.inputs:
        if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        shape = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
        types[str(value.name)] = onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
    return types


def _data(node: ir.Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in node.inputs:
        if value is None or not is_constant(value) or value.const_value is None:
            continue
        if value.const_value.size <= _SHAPE_INPUT_LIMIT:
            found[str(value.name)] = ir.serde.serialize_tensor(value.const_value)
    return found


def _take(out: ir.Value, inferred: Any) -> None:
    if not inferred.HasField("tensor_type"):
        out.type = ir.serde.deserialize_type_proto_for_type(inferred)
        return
    tensor = inferred.tensor_type
    if tensor.elem_type:
        out.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if not tensor.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    declared = static_shape(out)
    if None in dims and declared is not None and len(declared) == len(dims):
        # The operator's function knows less than the model says (it may not follow computed sizes).
        return
    out.shape = ir.Shape(dims)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"the shapes do not fit: {text[0] if text else type(error).__name__}"
