"""A ``.tflite`` file as a model in memory, from edgekit or any other tool."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, ModelError
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.schema import names, schema, unpack_options
from edgekit.tflite.write import IDENTIFIER, SCHEMA_VERSION

#: Tensors of more elements are taken for damage: no device of today could hold them.
_MOST_ELEMENTS = 2**31 - 1


def read_model(data: bytes) -> TfliteModel:
    """The model in a ``.tflite`` file; options tables come with all their fields.

    Inputs and outputs have the names of the file's first signature, or those of their tensors.

    Raises:
        ModelError: The file is damaged, or holds what a TfliteModel cannot: several subgraphs, custom
            operators, other element types, sparse or variable tensors.
        ToolError: LiteRT is not installed.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError(f"this is no TFLite file: bytes 4 to 8 are {data[4:8]!r}", valid=[IDENTIFIER])
    generated = schema()
    try:
        return _model(generated.ModelT.InitFromPackedBuf(data), data)
    except EdgekitError:
        raise
    except Exception as error:
        # A damaged offset sends the generated code anywhere, so any error may come of it.
        raise ModelError(f"the TFLite file is damaged: {type(error).__name__}: {error}") from None


def _model(root: Any, data: bytes) -> TfliteModel:
    if root.version != SCHEMA_VERSION:
        raise ModelError(f"version {root.version} of the TFLite schema", valid=[SCHEMA_VERSION])
    graphs = root.subgraphs or []
    if len(graphs) != 1:
        raise ModelError(f"the file has {len(graphs)} subgraphs, edgekit reads models with one")
    graph = graphs[0]
    tensors = [_tensor(packed, index, root) for index, packed in enumerate(_list(graph.tensors))]
    tensors = _unique(tensors)
    inputs, outputs = _indices(graph.inputs, tensors, "input"), _indices(graph.outputs, tensors, "output")
    aliases = _signature(root)
    operators = tuple(_operator(packed, root, tensors) for packed in _list(graph.operators))
    return TfliteModel(
        tensors={tensor.name: tensor for tensor in tensors},
        operators=operators,
        inputs=_ports(inputs, aliases[0], tensors),
        outputs=_ports(outputs, aliases[1], tensors),
        metadata=_metadata(root),
        description=_text(root.description),
    )


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _tensor(packed: Any, index: int, root: Any) -> Tensor:
    name = _text(packed.name) or f"tensor_{index}"
    where = f"tensor {name!r}"
    type_name = names("TensorType").get(packed.type, str(packed.type))
    if type_name not in DType.__members__:
        raise ModelError(f"its element type is {type_name}", where=where, valid=DType.__members__)
    for what, found in (("sparse", packed.sparsity), ("variable", packed.isVariable)):
        if found:
            raise ModelError(f"{what} tensors are not supported", where=where)
    if packed.externalBuffer:
        raise ModelError("its values lie in another file", where=where)
    shape = tuple(int(n) for n in _list(packed.shape))
    count = 1
    for n in shape:
        count *= n
    if min(shape, default=0) < 0 or count > _MOST_ELEMENTS:
        raise ModelError(f"its shape is {list(shape)}", where=where)
    dtype = DType[type_name]
    tensor = Tensor(name, shape, dtype, _quantization(packed.quantization, shape, where))
    content = _buffer(root, int(packed.buffer), where)
    if not len(content):
        return tensor
    if len(content) != tensor.size_bytes:
        raise ModelError(
            f"{dtype} {list(shape)} needs {tensor.size_bytes:,} bytes, not {len(content):,}", where=where
        )
    values = np.frombuffer(content, dtype.numpy.newbyteorder("<")).astype(dtype.numpy).reshape(shape)
    return Tensor(name, shape, dtype, tensor.quantization, values)


def _buffer(root: Any, index: int, where: str) -> Any:
    buffers = _list(root.buffers)
    if not 0 <= index < len(buffers):
        raise ModelError(f"buffer {index} of {len(buffers)}", where=where)
    buffer = buffers[index]
    if buffer.offset > 1:
        raise ModelError("values outside the FlatBuffer are not supported", where=where)
    return np.asarray([] if buffer.data is None else buffer.data, np.uint8).tobytes()


def _quantization(packed: Any, shape: tuple[int, ...], where: str) -> Quantization | None:
    if packed is None or packed.scale is None or not len(packed.scale):
        return None
    if packed.detailsType:
        raise ModelError("custom quantization is not supported", where=where)
    scale = np.array(packed.scale, np.float32)
    zero_point = np.array(_list(packed.zeroPoint) or [0] * len(scale), np.int64)
    axis = int(packed.quantizedDimension)
    if len(zero_point) == 1:
        zero_point = np.repeat(zero_point, len(scale))
    if len(zero_point) != len(scale):
        raise ModelError(f"{len(scale)} scales, but {len(zero_point)} zero points", where=where)
    if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        raise ModelError(f"{len(scale)} scales on axis {axis} of {list(shape)}", where=where)
    return Quantization(scale, zero_point, axis)


def _unique(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors under names of their own: the format lets several share one."""
    taken: set[str] = set()
    found = []
    for index, tensor in enumerate(tensors):
        name = tensor.name
        if name in taken:
            name = f"{tensor.name}:{index}"
        taken.add(name)
        found.append(
            tensor
            if name == tensor.name
            else Tensor(name, tensor.shape, tensor.dtype, tensor.quantization, tensor.data)
        )
    return found


def _indices(packed: Any, tensors: list[Tensor], kind: str) -> list[int]:
    found = [int(i) for i in _list(packed)]
    wrong = [i for i in found if not 0 <= i < len(tensors)]
    if wrong:
        raise ModelError(f"{kind} tensors {wrong} of {len(tensors)}")
    return found


_Aliases = dict[int, list[str]]


def _signature(root: Any) -> tuple[_Aliases, _Aliases]:
    """Names by tensor index, of inputs and outputs; a tensor may have several."""
    first = next(iter(_list(root.signatureDefs)), None)
    found: tuple[_Aliases, _Aliases] = ({}, {})
    if first is not None:
        for aliases, entries in zip(found, (first.inputs, first.outputs), strict=True):
            for entry in _list(entries):
                aliases.setdefault(int(entry.tensorIndex), []).append(_text(entry.name))
    return found


def _ports(indices: list[int], aliases: _Aliases, tensors: list[Tensor]) -> dict[str, str]:
    found: dict[str, str] = {}
    for i in indices:
        left = aliases.get(i, [])
        alias = left.pop(0) if left else tensors[i].name
        found[alias if alias not in found else f"{alias}:{i}"] = tensors[i].name
    return found


def _operator(packed: Any, root: Any, tensors: list[Tensor]) -> Operator:
    codes = _list(root.operatorCodes)
    if not 0 <= packed.opcodeIndex < len(codes):
        raise ModelError(f"operator code {packed.opcodeIndex} of {len(codes)}")
    code = codes[packed.opcodeIndex]
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    op = names("BuiltinOperator").get(number, "")
    if not op or op == "CUSTOM" or packed.builtinOptions2 is not None:
        raise ModelError(f"operator {_text(code.customCode) or number} is not one of TFLite's built-in ones")
    inputs = [int(i) for i in _list(packed.inputs)]
    _indices([i for i in inputs if i != -1], tensors, op)
    outputs = _indices(packed.outputs, tensors, op)
    options = packed.builtinOptions
    if packed.builtinOptionsType and options is None:
        raise ModelError(f"{op}: the options table {packed.builtinOptionsType} is unknown")
    return Operator(
        op=op,
        inputs=tuple(None if i == -1 else tensors[i].name for i in inputs),
        outputs=tuple(tensors[i].name for i in outputs),
        options=unpack_options(op, options),
    )


def _metadata(root: Any) -> dict[str, str]:
    found = {}
    for entry in _list(root.metadata):
        content = _buffer(root, int(entry.buffer), f"metadata {_text(entry.name)!r}")
        found[_text(entry.name)] = content.rstrip(b"\0").decode(errors="replace")
    return found
