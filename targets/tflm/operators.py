"""The operators of TFLite Micro and how a program registers them."""

from __future__ import annotations

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, Operator, TfliteModel

#: Operators that have a kernel for int8 codes, but none for int16.
INT8_ONLY = frozenset(
    {
        "DEPTH_TO_SPACE", "DIV", "ELU", "GATHER", "HARD_SWISH", "L2_NORMALIZATION", "LOG_SOFTMAX",
        "MIRROR_PAD", "REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "SPACE_TO_DEPTH",
    }
)  # fmt: skip
#: Method of ``MicroMutableOpResolver`` by built-in operator (tflite-micro,
#: tensorflow/lite/micro/micro_mutable_op_resolver.h), as far as edgekit writes the operator and it
#: has a kernel for int8 codes.
METHODS = {
    "ABS": "AddAbs", "ADD": "AddAdd", "ARG_MAX": "AddArgMax", "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul", "BROADCAST_TO": "AddBroadcastTo", "CAST": "AddCast",
    "CONCATENATION": "AddConcatenation", "CONV_2D": "AddConv2D", "DEPTH_TO_SPACE": "AddDepthToSpace",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D", "DEQUANTIZE": "AddDequantize", "DIV": "AddDiv",
    "ELU": "AddElu", "EXPAND_DIMS": "AddExpandDims",
    "FULLY_CONNECTED": "AddFullyConnected", "GATHER": "AddGather", "HARD_SWISH": "AddHardSwish",
    "L2_NORMALIZATION": "AddL2Normalization", "LEAKY_RELU": "AddLeakyRelu",
    "LOG_SOFTMAX": "AddLogSoftmax", "LOGISTIC": "AddLogistic", "MAXIMUM": "AddMaximum",
    "MAX_POOL_2D": "AddMaxPool2D", "MEAN": "AddMean", "MINIMUM": "AddMinimum",
    "MIRROR_PAD": "AddMirrorPad", "MUL": "AddMul", "PACK": "AddPack", "PAD": "AddPad",
    "PADV2": "AddPadV2", "PRELU": "AddPrelu", "QUANTIZE": "AddQuantize", "REDUCE_MAX": "AddReduceMax",
    "REDUCE_MIN": "AddReduceMin", "RELU": "AddRelu", "RELU6": "AddRelu6", "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear", "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "RSQRT": "AddRsqrt", "SLICE": "AddSlice", "SOFTMAX": "AddSoftmax",
    "SPACE_TO_DEPTH": "AddSpaceToDepth", "SPLIT": "AddSplit", "SPLIT_V": "AddSplitV",
    "SQUARED_DIFFERENCE": "AddSquaredDifference", "SQUEEZE": "AddSqueeze",
    "STRIDED_SLICE": "AddStridedSlice", "SUB": "AddSub", "SUM": "AddSum", "TANH": "AddTanh",
    "TRANSPOSE": "AddTranspose", "TRANSPOSE_CONV": "AddTransposeConv", "UNPACK": "AddUnpack",
}  # fmt: skip
#: What to do about an operator that TFLite Micro does not have.
_REMEDIES = {
    "GELU": "replace GELU by HardSwish or Relu and recover with distillation",
    "RELU_0_TO_1": "write the Clip so that it follows a convolution, which absorbs it",
    "RELU_N1_TO_1": "write the Clip so that it follows a convolution, which absorbs it",
    "TILE": "write it as Concat",
}


def check_operators(model: TfliteModel) -> None:
    """Refuse what TFLite Micro cannot run.

    Raises:
        ModelError: Operators are missing there; the message lists all of them with node and remedy.
    """
    missing = [op for op in model.operators if op.op not in METHODS or _is_too_wide(op, model)]
    if not missing:
        return
    listed = [
        f"{'16-bit ' if op.op in INT8_ONLY else ''}{op.op} of node '{op.source or op.outputs[0]}'"
        for op in missing
    ]
    remedies = {op.op: _REMEDIES.get(op.op, "leave the node in float") for op in missing}
    hint = "; ".join(f"{op}: {remedy}" for op, remedy in remedies.items())
    raise ModelError(f"TFLite Micro has no integer kernel for {', '.join(listed)}", hint=hint)


def _is_too_wide(operator: Operator, model: TfliteModel) -> bool:
    names = [name for name in (*operator.inputs, *operator.outputs) if name is not None]
    return operator.op in INT8_ONLY and any(model.tensors[name].dtype is DType.INT16 for name in names)


def methods(model: TfliteModel) -> tuple[str, ...]:
    """The methods that register what the model needs, sorted.

    Raises:
        ModelError: TFLite Micro lacks an operator.
    """
    check_operators(model)
    return tuple(sorted({METHODS[operator.op] for operator in model.operators}))
