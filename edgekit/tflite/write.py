"""A TFLite model as the bytes of a ``.tflite`` file.

The format is a FlatBuffer of the schema's ``Model`` table
(https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.schema import label, members, operator_version, options_table, pack_options, schema

#: Version of the schema that all runtimes of today read.
SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
#: The signature that callers find a model's inputs and outputs under.
SIGNATURE = "serving_default"
#: Kernels read constants in place, so each starts at a multiple of this many bytes, as the schema asks.
_ALIGNMENT = 16
#: Offsets in a FlatBuffer are signed 32-bit numbers.
_LARGEST = 2**31 - 1


def write_model(model: TfliteModel) -> bytes:
    """The bytes of a ``.tflite`` file; the same for the same model.

    Raises:
        ModelError: The model contradicts itself or the schema, or is larger than the format can hold.
        ToolError: LiteRT is not installed.
    """
    from flatbuffers import Builder

    _check(model)
    generated = schema()
    buffers = _Buffers()
    root = generated.ModelT()
    root.version = SCHEMA_VERSION
    root.description = model.description
    graph = _subgraph(model, buffers)
    codes: dict[tuple[str, int], int] = {}
    index = {name: i for i, name in enumerate(model.tensors)}
    graph.operators = [_operator(operator, model, index, codes) for operator in model.operators]
    root.subgraphs = [graph]
    root.operatorCodes = [_operator_code(op, version) for op, version in codes]
    root.metadata = [_metadata(name, text, buffers) for name, text in model.metadata.items()]
    root.signatureDefs = [_signature(model)]
    root.buffers = [_Buffer(data) for data in buffers.data]
    size = sum(len(data) for data in buffers.data)
    if size > _LARGEST - 2**20:
        raise ModelError(f"the model holds {size:,} bytes of constants, a .tflite file at most 2 GiB")
    builder = Builder(1 << 16)
    builder.Finish(root.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


class _Buffers:
    """Contents of the file's buffers, each once; buffer 0 stands for "no data" and stays empty."""

    def __init__(self) -> None:
        self.data: list[bytes] = [b""]
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        if data not in self._known:
            self._known[data] = len(self.data)
            self.data.append(data)
        return self._known[data]

    def add_activation(self) -> int:
        """An empty buffer of its own: LiteRT's tools tell tensors that are computed by it."""
        self.data.append(b"")
        return len(self.data) - 1


class _Buffer:
    """Stands in for ``BufferT``, whose ``Pack`` leaves out the alignment that the schema asks for."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802 (the name the generated code calls)
        generated = schema()
        start = None
        if self.data:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head = builder.Head() - len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data
            start = builder.EndVector()
        generated.BufferStart(builder)
        if start is not None:
            generated.BufferAddData(builder, start)
        return int(generated.BufferEnd(builder))


def _subgraph(model: TfliteModel, buffers: _Buffers) -> Any:
    graph = schema().SubGraphT()
    graph.name = "main"
    index = {name: i for i, name in enumerate(model.tensors)}
    graph.tensors = [_tensor(tensor, buffers) for tensor in model.tensors.values()]
    graph.inputs = [index[name] for name in model.inputs.values()]
    graph.outputs = [index[name] for name in model.outputs.values()]
    return graph


def _tensor(tensor: Tensor, buffers: _Buffers) -> Any:
    packed = schema().TensorT()
    packed.name = tensor.name
    packed.shape = [int(n) for n in tensor.shape]
    packed.hasRank = True  # Tells a scalar from a tensor of unknown rank.
    packed.type = members("TensorType")[tensor.dtype.name]
    if tensor.data is None:
        packed.buffer = buffers.add_activation()
    else:
        packed.buffer = buffers.add(_little_endian(tensor.data))
    packed.quantization = _quantization(tensor.quantization)
    return packed


def _little_endian(data: Array) -> bytes:
    return np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<"), copy=False).tobytes()


def _quantization(quantization: Quantization | None) -> Any:
    packed = schema().QuantizationParametersT()
    if quantization is not None:
        packed.scale = quantization.scale.astype(np.float32)
        packed.zeroPoint = quantization.zero_point.astype(np.int64)
        packed.quantizedDimension = quantization.axis
    return packed


def _operator(
    operator: Operator, model: TfliteModel, index: dict[str, int], codes: dict[tuple[str, int], int]
) -> Any:
    inputs = [None if name is None else model.tensors[name] for name in operator.inputs]
    version = operator_version(operator, inputs, [model.tensors[name] for name in operator.outputs])
    packed = schema().OperatorT()
    packed.opcodeIndex = codes.setdefault((operator.op, version), len(codes))
    packed.inputs = [-1 if name is None else index[name] for name in operator.inputs]
    packed.outputs = [index[name] for name in operator.outputs]
    packed.builtinOptions = pack_options(operator)
    packed.builtinOptionsType = members("BuiltinOptions")[options_table(operator.op) or "NONE"]
    return packed


def _operator_code(op: str, version: int) -> Any:
    packed = schema().OperatorCodeT()
    packed.builtinCode = members("BuiltinOperator")[op]
    # Readers older than the 128th operator look at this field alone.
    placeholder = members("BuiltinOperator")["PLACEHOLDER_FOR_GREATER_OP_CODES"]
    packed.deprecatedBuiltinCode = min(packed.builtinCode, placeholder)
    packed.version = version
    return packed


def _metadata(name: str, text: str, buffers: _Buffers) -> Any:
    packed = schema().MetadataT()
    packed.name = name
    packed.buffer = buffers.add(text.encode())
    return packed


def _signature(model: TfliteModel) -> Any:
    generated = schema()
    index = {name: i for i, name in enumerate(model.tensors)}

    def entries(names: Sequence[tuple[str, str]]) -> list[Any]:
        found = []
        for alias, tensor in names:
            entry = generated.TensorMapT()
            entry.name, entry.tensorIndex = alias, index[tensor]
            found.append(entry)
        return found

    packed = generated.SignatureDefT()
    packed.signatureKey = SIGNATURE
    packed.subgraphIndex = 0
    packed.inputs = entries(tuple(model.inputs.items()))
    packed.outputs = entries(tuple(model.outputs.items()))
    return packed


def _check(model: TfliteModel) -> None:
    known = set(model.tensors)
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        missing = set(ports.values()) - known
        if missing:
            raise ModelError(f"the model's {kind}s name tensors that it does not have: {sorted(missing)}")
    made = {name for name, tensor in model.tensors.items() if tensor.data is not None} | set(
        model.inputs.values()
    )
    for operator in model.operators:
        where = label(operator)
        if operator.op not in members("BuiltinOperator"):
            raise ModelError(f"TFLite has no operator {operator.op!r}", where=where)
        unknown = {name for name in (*operator.inputs, *operator.outputs) if name is not None} - known
        if unknown:
            raise ModelError(f"it names tensors that the model does not have: {sorted(unknown)}", where=where)
        early = {name for name in operator.inputs if name is not None} - made
        if early:
            raise ModelError(f"it reads {sorted(early)} before anything computes them", where=where)
        made |= set(operator.outputs)
        _check_bias(operator, model)
    for name, tensor in model.tensors.items():
        _check_tensor(name, tensor)


#: Which input is the bias.
_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


def _check_bias(operator: Operator, model: TfliteModel) -> None:
    """LiteRT reads the bias of 16-bit kernels as int64, whatever its type; an option can change that."""
    index = _BIAS.get(operator.op, len(operator.inputs))
    name = operator.inputs[index] if index < len(operator.inputs) else None
    if name is None or operator.options.get("quantizedBiasType", "FLOAT32") != "FLOAT32":
        return
    bias, output = model.tensors[name], model.tensors[operator.outputs[0]]
    if output.dtype is DType.INT16 and bias.dtype is not DType.INT64:
        raise ModelError(f"the bias of a 16-bit kernel is {bias.dtype}, not int64", where=f"tensor {name!r}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    where = f"tensor {name!r}"
    if tensor.name != name:
        raise ModelError(f"it is listed as {name!r}, but calls itself {tensor.name!r}", where=where)
    if tensor.data is not None:
        if tuple(tensor.data.shape) != tuple(tensor.shape) or tensor.data.dtype != tensor.dtype.numpy:
            found, wanted = (tensor.data.dtype, list(tensor.data.shape)), (tensor.dtype, list(tensor.shape))
            raise ModelError(
                f"its values are {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}", where=where
            )
        if not tensor.data.size:
            raise ModelError("the format cannot tell a constant without values from no constant", where=where)
    quantization = tensor.quantization
    if quantization is None:
        return
    count = len(quantization.scale)
    if len(quantization.zero_point) != count:
        raise ModelError(f"{count} scales, but {len(quantization.zero_point)} zero points", where=where)
    axis = quantization.axis
    if count > 1 and not (axis < len(tensor.shape) and tensor.shape[axis] == count):
        raise ModelError(f"{count} scales on axis {axis} of {list(tensor.shape)}", where=where)
    if not (np.isfinite(quantization.scale).all() and (quantization.scale > 0).all()):
        raise ModelError("scales must be positive and finite", where=where)
