"""The operators of TFLite that the integer reference runs, and where LiteRT runs them in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class OpInfo:
    """What is known of one operator.

    Attributes:
        op: Its name in the TFLite schema.
        onnx: ONNX operators it comes from; none for operators that only other tools' files have.
        int8: LiteRT has a kernel for int8 activations.
        int16: LiteRT has a kernel for int16 activations, and int8 weights where there are weights.
        xnnpack: XNNPACK takes the int8 form, in the form the lowering writes; else LiteRT's own kernel runs.
        note: What the lowering has to keep to, and kernels more than one step off the reference.
    """

    op: str
    onnx: tuple[str, ...]
    int8: bool
    int16: bool
    xnnpack: bool
    note: str = ""


#: How the columns are found: a model of the one operator is handed to LiteRT, which takes its int8 or int16
#: activations or refuses them, and the interpreter lists XNNPACK's delegate among its nodes or does not.
_ROWS: tuple[OpInfo, ...] = (
    OpInfo("ABS", ("Abs",), True, True, False),
    OpInfo("ADD", ("Add",), True, True, True),
    OpInfo("ARG_MAX", ("ArgMax",), True, False, False),
    OpInfo(
        "AVERAGE_POOL_2D",
        ("AveragePool",),
        True,
        True,
        False,
        "One scale for input and output. MEAN over height and width is taken by XNNPACK.",
    ),
    OpInfo(
        "BATCH_MATMUL",
        ("MatMul",),
        True,
        True,
        True,
        "XNNPACK only takes a second operand with zero point 0.",
    ),
    OpInfo("BROADCAST_TO", ("Expand",), True, True, False),
    OpInfo("CAST", ("Cast",), True, True, False, "Converts codes, not real values."),
    OpInfo(
        "CONCATENATION",
        ("Concat",),
        True,
        True,
        True,
        "One scale for all inputs and the output, which LiteRT insists on. XNNPACK takes 5 inputs at most.",
    ),
    OpInfo("CONV_2D", ("Conv",), True, True, True),
    OpInfo("DEPTHWISE_CONV_2D", ("Conv",), True, True, True),
    OpInfo("DEPTH_TO_SPACE", ("DepthToSpace",), True, False, True, "Mode DCR."),
    OpInfo("DEQUANTIZE", ("DequantizeLinear",), True, True, True),
    OpInfo("DIV", ("Div",), True, True, False),
    OpInfo(
        "ELU",
        ("Elu",),
        True,
        False,
        True,
        "LiteRT's reference kernels do not include it; held against the optimized one.",
    ),
    OpInfo("EXP", ("Exp",), True, True, False),
    OpInfo("FULLY_CONNECTED", ("Gemm", "MatMul"), True, True, True),
    OpInfo("GATHER", ("Gather",), True, True, False, "Indices that are not negative."),
    OpInfo("GELU", ("Gelu",), True, True, False, "int16: one step off where the C library's erfc is."),
    OpInfo("HARD_SWISH", ("HardSwish",), True, False, False, "Input scale below 128 times the output's."),
    OpInfo(
        "L2_NORMALIZATION",
        ("LpNormalization",),
        True,
        False,
        False,
        "Along the last axis, output scale 1/128 and zero point 0.",
    ),
    OpInfo(
        "LEAKY_RELU",
        ("LeakyRelu",),
        True,
        True,
        True,
        "XNNPACK takes scale ratios in / out and alpha * in / out from 1/256 to 128.",
    ),
    OpInfo("LOG", ("Log",), True, True, False),
    OpInfo(
        "LOGISTIC",
        ("Sigmoid",),
        True,
        True,
        True,
        "Output scale 1/256 and zero point -128, for int16 1/32768. int16 with an input scale of 1/4096: "
        "optimized kernels are up to 7 steps off.",
    ),
    OpInfo(
        "LOG_SOFTMAX",
        ("LogSoftmax",),
        True,
        False,
        False,
        "Along the last axis, output scale 1/16 and zero point 127.",
    ),
    OpInfo("MAXIMUM", ("Max", "Clip"), True, True, False, "One scale for inputs and output."),
    OpInfo("MAX_POOL_2D", ("MaxPool",), True, True, True, "One scale for input and output."),
    OpInfo("MEAN", ("ReduceMean", "GlobalAveragePool"), True, True, True),
    OpInfo("MINIMUM", ("Min", "Clip"), True, True, False, "One scale for inputs and output."),
    OpInfo("MIRROR_PAD", ("Pad",), True, True, False),
    OpInfo("MUL", ("Mul", "Neg", "Pow", "Div"), True, True, True),
    OpInfo("NEG", (), True, True, False, "Negates codes: one scale, zero point 0 on both sides."),
    OpInfo("PACK", (), True, True, False, "One scale for all inputs and the output."),
    OpInfo("PAD", ("Pad",), True, True, True, "Fills with the zero point. One scale for input and output."),
    OpInfo("PADV2", ("Pad",), True, True, False, "One scale for input and output."),
    OpInfo(
        "PRELU",
        ("PRelu",),
        True,
        True,
        False,
        "Slopes int8 in both cases: the kernel reads int16 slopes as bytes.",
    ),
    OpInfo("QUANTIZE", ("QuantizeLinear",), True, True, True, "From int8 to int16 LiteRT's own kernel runs."),
    OpInfo("REDUCE_MAX", ("ReduceMax", "GlobalMaxPool"), True, True, True, "One scale for input and output."),
    OpInfo("REDUCE_MIN", ("ReduceMin",), True, True, True, "One scale for input and output."),
    OpInfo("RELU", ("Relu",), True, True, False, "Costs nothing where it is fused into the operator before."),
    OpInfo(
        "RELU6", ("Clip",), True, True, False, "Costs nothing where it is fused into the operator before."
    ),
    OpInfo("RELU_0_TO_1", (), True, False, False),
    OpInfo(
        "RELU_N1_TO_1",
        ("Clip",),
        True,
        False,
        False,
        "Costs nothing where it is fused into the operator before.",
    ),
    OpInfo(
        "RESHAPE",
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        True,
        True,
        True,
        "One scale for input and output.",
    ),
    OpInfo("RESIZE_BILINEAR", ("Resize",), True, True, True, "One scale for input and output."),
    OpInfo("RESIZE_NEAREST_NEIGHBOR", ("Resize",), True, True, False, "One scale for input and output."),
    OpInfo("RSQRT", ("Sqrt",), True, True, False, "Fails on codes below the input's zero point."),
    OpInfo(
        "SLICE",
        ("Slice", "Split"),
        True,
        True,
        True,
        "One scale for input and output. XNNPACK does not take a size of -1.",
    ),
    OpInfo(
        "SOFTMAX",
        ("Softmax",),
        True,
        True,
        False,
        "Along the last axis, output scale 1/256 and zero point -128, for int16 1/32768.",
    ),
    OpInfo("SPACE_TO_DEPTH", ("SpaceToDepth",), True, False, True),
    OpInfo(
        "SPLIT",
        ("Split",),
        True,
        True,
        True,
        "One scale for input and outputs. XNNPACK takes 4 outputs at most.",
    ),
    OpInfo("SPLIT_V", (), True, True, False, "One scale for input and outputs."),
    OpInfo(
        "SQRT",
        ("Sqrt", "Pow"),
        True,
        True,
        False,
        "Cut off, not rounded: half a step low on average. Fails on codes below the input's zero point.",
    ),
    OpInfo("SQUARED_DIFFERENCE", (), True, False, False),
    OpInfo(
        "STRIDED_SLICE",
        ("Slice",),
        True,
        True,
        False,
        "One scale for input and output. With strides of 1 XNNPACK takes it.",
    ),
    OpInfo("SUB", ("Sub",), True, True, True),
    OpInfo("SUM", ("ReduceSum",), True, True, True),
    OpInfo(
        "TANH",
        ("Tanh",),
        True,
        True,
        True,
        "int16 output scale 1/32768. int16 with an input scale of 1/4096 or 1/2048: optimized kernels are"
        " up to 12 steps off.",
    ),
    OpInfo("TILE", ("Tile",), True, True, False),
    OpInfo("TRANSPOSE", ("Transpose",), True, True, True),
    OpInfo("TRANSPOSE_CONV", ("ConvTranspose",), True, True, True),
    OpInfo("UNPACK", (), True, True, False),
)

#: All operators, by name.
OPS: Mapping[str, OpInfo] = MappingProxyType({info.op: info for info in _ROWS})

_HEAD = """# Operators of LiteRT, Arm Ethos-U and TFLite Micro targets

Made by `python .ci/tflite_ops_table.py` from `edgekit/tflite/ops.py`. The integer reference has a kernel for
each of them that gives the codes of LiteRT's reference kernels, bit for bit; LiteRT's optimized kernels and
XNNPACK may be one step off, or as far as the last column says. "XNNPACK" tells whether it takes the int8
form; where it does not, LiteRT's own kernel runs in its place. POW and SQUARE have no integer kernel.

Found with ai-edge-litert 2.3.0, by handing it a model of each operator: it runs it or refuses its type, and
the interpreter lists XNNPACK's delegate among its nodes or does not. `tests/tflite/test_ops.py` repeats this.

| operator | from ONNX | int8 | int16 | XNNPACK | remarks |
| --- | --- | --- | --- | --- | --- |
"""


def ops_page() -> str:
    """The page ``docs/tflite-ops.md``."""
    words = {True: "yes", False: "no"}
    lines = []
    for info in OPS.values():
        flags = " | ".join(words[flag] for flag in (info.int8, info.int16, info.xnnpack))
        lines.append(f"| {info.op} | {', '.join(info.onnx) or '–'} | {flags} | {info.note} |")
    return _HEAD + "\n".join(lines) + "\n"
