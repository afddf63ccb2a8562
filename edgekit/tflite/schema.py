"""What the TFLite schema says about operators: their options tables, enumerations and versions.

Everything comes from the generated schema of LiteRT, so that a new field or operator needs no line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from edgekit.errors import ModelError, ToolError
from edgekit.tflite.model import DType, Operator, Tensor

#: Enumeration a field holds, by the name of the field.
_ENUMS: Mapping[str, str] = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "weightsFormat": "FullyConnectedOptionsWeightsFormat",
    "mode": "MirrorPadMode",
    "quantizedBiasType": "TensorType",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
    "outType": "TensorType",
    "outputType": "TensorType",
    "idxOutType": "TensorType",
}

#: Operators whose options table is not called after them.
_TABLES: Mapping[str, str] = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"), "Pool2DOptions"),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), "ReducerOptions"),
    **dict.fromkeys(("REDUCE_ANY", "REDUCE_ALL"), "ReducerOptions"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "MaximumMinimumOptions"),
    "L2_NORMALIZATION": "L2NormOptions",
}


def schema() -> ModuleType:
    """The generated schema.

    Raises:
        ToolError: LiteRT is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise ToolError("ai-edge-litert is not installed", hint="pip install 'edgekit[litert]'") from None
    generated: ModuleType = schema_py_generated
    return generated


@cache
def members(enum: str) -> dict[str, int]:
    """Names and numbers of an enumeration of the schema."""
    return {name: value for name, value in vars(getattr(schema(), enum)).items() if not name.startswith("_")}


@cache
def names(enum: str) -> dict[int, str]:
    """Numbers and names of an enumeration of the schema."""
    return {value: name for name, value in members(enum).items()}


@cache
def options_table(op: str) -> str:
    """Name of an operator's options table; empty where it has none."""
    if op in _TABLES:
        return _TABLES[op]
    wanted = f"{op.replace('_', '')}options".lower()
    return next((table for table in members("BuiltinOptions") if table.lower() == wanted), "")


def label(operator: Operator) -> str:
    """What errors call an operator: its type and its ONNX node, else its first output."""
    return f"{operator.op} {operator.source or next(iter(operator.outputs), '')}"


def pack_options(operator: Operator) -> Any:
    """The schema's options object of an operator; None where it has no table.

    Raises:
        ModelError: A field or an enumeration's member that the schema does not have.
    """
    table = options_table(operator.op)
    where = label(operator)
    if not table:
        if operator.options:
            raise ModelError(
                f"{operator.op} has no options, but {sorted(operator.options)} are set", where=where
            )
        return None
    packed = getattr(schema(), f"{table}T")()
    for name, value in operator.options.items():
        if name not in vars(packed):
            raise ModelError(f"no option {name!r}", where=where, valid=sorted(vars(packed)))
        setattr(packed, name, _code(name, value, where))
    return packed


def _code(name: str, value: Any, where: str) -> Any:
    if isinstance(value, str):
        known = members(_ENUMS[name]) if name in _ENUMS else {}
        if value not in known:
            raise ModelError(f"{name} cannot be {value!r}", where=where, valid=known)
        return known[value]
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else value


def unpack_options(op: str, packed: Any) -> dict[str, Any]:
    """All fields of an options object, enumerations by name; the schema's defaults where `packed` is None.

    Lists that the file leaves out are left out.

    Raises:
        ModelError: A number that is no member of its enumeration.
    """
    table = options_table(op)
    if not table:
        return {}
    found: dict[str, Any] = {}
    for name, value in vars(packed if packed is not None else getattr(schema(), f"{table}T")()).items():
        if name in _ENUMS:
            known = names(_ENUMS[name])
            if value not in known:
                raise ModelError(f"{op}: {name} has the unknown number {value}", valid=known.values())
            found[name] = known[value]
        elif isinstance(value, (np.ndarray, list)):
            found[name] = tuple(int(v) for v in value)
        elif value is not None:
            found[name] = value
    return found


#: (int8, int16) versions of operators whose version depends on the type of their first input alone. A file
#: names the lowest version that knows the types in use; runtimes refuse versions that they do not know.
_BY_TYPE: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D", "RELU", "RELU6", "TANH", "LOGISTIC"), (2, 3)),
    **dict.fromkeys(("SOFTMAX", "MEAN", "MIRROR_PAD", "REDUCE_MAX", "REDUCE_MIN", "RSQRT"), (2, 3)),
    **dict.fromkeys(("BATCH_MATMUL", "CONCATENATION", "PACK", "ABS", "DEQUANTIZE"), (2, 3)),
    **dict.fromkeys(("MAXIMUM", "MINIMUM", "UNPACK", "GATHER"), (2, 4)),
    **dict.fromkeys(("EXP", "LOG", "REDUCE_PROD"), (2, 2)),
    **dict.fromkeys(("SPACE_TO_DEPTH", "SPLIT_V", "SUM", "LOG_SOFTMAX", "SQUARED_DIFFERENCE"), (2, 1)),
    **dict.fromkeys(("L2_NORMALIZATION", "ARG_MAX", "ARG_MIN", "GELU"), (2, 1)),
    **dict.fromkeys(("STRIDED_SLICE",), (2, 1)),
    "BROADCAST_TO": (3, 3),
    "ADD": (2, 3),
    "SUB": (2, 5),
    "MUL": (2, 4),
    # The kernels take int8 from version 1 on; the plain ones are registered for no higher version.
    **dict.fromkeys(("DEPTH_TO_SPACE", "TILE"), (1, 1)),
    "LEAKY_RELU": (1, 2),
    "CAST": (3, 1),
}


def operator_version(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    """The lowest version of an operator that knows its types and options.

    Args:
        operator: The operator.
        inputs: Its input tensors.
        outputs: Its output tensors.
    """
    if operator.op in _SPECIAL:
        return _SPECIAL[operator.op](operator, inputs, outputs)
    int8, int16 = _BY_TYPE.get(operator.op, (1, 1))
    first = _type(inputs, 0)
    if operator.op == "BROADCAST_TO" and first not in (DType.INT8, DType.INT16):
        return 2  # Version 1 was withdrawn.
    if operator.op == "CAST" and outputs[0].dtype is DType.INT8:
        return 3
    return {DType.INT8: int8, DType.INT16: int16}.get(first, 1) if first else 1


_Version = Callable[[Operator, Sequence[Tensor | None], Sequence[Tensor]], int]


def _type(tensors: Sequence[Tensor | None], index: int) -> DType | None:
    found = tensors[index] if index < len(tensors) else None
    return found.dtype if found else None


def _rank(tensors: Sequence[Tensor | None], index: int = 0) -> int:
    found = tensors[index]
    return len(found.shape) if found else 0


def _conv(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    image, weight = inputs[0], inputs[1]
    if operator.options.get("quantizedBiasType", "FLOAT32") != "FLOAT32":
        return 8
    if image and weight and image.shape[-1] != weight.shape[-1]:
        return 6
    return 3 if _type(inputs, 0) is DType.INT8 else 1


def _depthwise(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _type(inputs, 0) is DType.INT8:
        return 3
    dilated = any(operator.options.get(f"dilation{side}Factor", 1) != 1 for side in "WH")
    return 2 if dilated else 1


def _fully_connected(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if operator.options.get("quantizedBiasType", "FLOAT32") != "FLOAT32":
        return 11
    if len(inputs) == 2:
        return 6
    if operator.options.get("keepNumDims", False):
        return 5
    return 4 if _type(inputs, 0) is DType.INT8 else 1


def _transpose_conv(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if operator.options.get("quantizedBiasType", "FLOAT32") != "FLOAT32":
        return 5
    if operator.options.get("fusedActivationFunction", "NONE") != "NONE":
        return 4
    if _type(inputs, 3) is not None:
        return 3
    return 2 if _type(inputs, 1) is DType.INT8 else 1


def _transpose(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _rank(inputs) > 4:
        return 6 if _rank(inputs) > 5 else 4 if _type(inputs, 0) is not DType.INT16 else 5
    return {DType.BOOL: 3, DType.INT8: 2, DType.INT16: 5}.get(_type(inputs, 0) or DType.FLOAT32, 1)


def _split(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    return {DType.INT8: 2, DType.INT32: 3, DType.INT16: 4}.get(_type(inputs, 1) or DType.FLOAT32, 1)


def _slice(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _rank(inputs) > 4:
        return 5
    return {DType.INT8: 2, DType.INT16: 4}.get(_type(inputs, 0) or DType.FLOAT32, 1)


def _pad(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _rank(inputs) > 4:
        return 4
    return {DType.INT8: 2, DType.INT16: 3}.get(_type(inputs, 0) or DType.FLOAT32, 1)


def _resize(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _type(inputs, 0) is DType.INT16:
        return 4
    corners = operator.op == "RESIZE_NEAREST_NEIGHBOR" and operator.options.get("alignCorners", False)
    if operator.options.get("halfPixelCenters", False) or corners:
        return 3
    return 2 if _type(inputs, 0) is DType.INT8 else 1


def _quantize(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    quantization = outputs[0].quantization
    if quantization and len(quantization.scale) > 1:
        return 3
    return 2 if outputs[0].dtype is DType.INT16 else 1


def _mul(operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    if _type(inputs, 0) is not DType.INT8:
        return 4 if _type(inputs, 0) is DType.INT16 else 1
    scales = [t.quantization.scale[0] if t and t.quantization else 0 for t in (*inputs, outputs[0])]
    # Version 3 is the first whose multiplier may be one or more.
    return 3 if all(scales) and scales[0] * scales[1] / scales[2] >= 1 else 2


_SPECIAL: Mapping[str, _Version] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "TRANSPOSE": _transpose,
    "SPLIT": _split,
    "SLICE": _slice,
    "PAD": _pad,
    "PADV2": _pad,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "QUANTIZE": _quantize,
    "MUL": _mul,
}
