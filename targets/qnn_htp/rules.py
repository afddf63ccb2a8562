"""Which nodes of a float network HTP will not compute on integers, told before any work is done.

Each rule is a check, the text for the user and a row of ``docs/qnn-ops.md`` at once. It says what becomes of
the node in the form that the quantizer writes, in the toolchain of ``ops.json``: refused, computed in
float32, or compiled and computed wrongly. The tests compile a model of every operator and compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import static_shape
from edgekit.target import LeftNode
from edgekit.targets.qnn_htp import node_checks as are
from edgekit.targets.qnn_htp.node_checks import Broken

A8, A16 = "a8w8", "a16w8"
BOTH = frozenset({A8, A16})
#: Axes of a tensor that HTP can have.
MOST_AXES = 5
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_OUTSIDE = "leave it out of the network and compute it in the application"


@dataclass(frozen=True)
class Check:
    """One reason for which an operator does not run in some form.

    Attributes:
        text: What is not possible.
        remedy: What to change.
        broken: Whether a node breaks it.
        formats: The formats it holds for.
    """

    text: str
    remedy: str
    broken: Broken
    formats: frozenset[str] = BOTH


@dataclass(frozen=True)
class OpInfo:
    """What HTP does with one ONNX operator.

    Attributes:
        op: The operator.
        formats: The formats in which it runs on integers.
        checks: Forms in which it does not run there.
        note: Why it does not run in the other formats, or what to mind where it runs in all.
        remedy: What to use instead.
    """

    op: str
    formats: frozenset[str] = BOTH
    checks: tuple[Check, ...] = ()
    note: str = ""
    remedy: str = ""


def check(graph: Graph, formats: str = A8) -> tuple[LeftNode, ...]:
    """Nodes that will not run on HTP's integer kernels, in execution order, at most one finding each.

    Args:
        graph: A captured float network, in the form that the target's ``prepare`` returns, or a quantized
            one, in which each node has the format of the codes around it.
        formats: ``a8w8`` or ``a16w8``; that of nodes without codes around them.
    """
    found = []
    for node in graph.nodes:
        reason = None if node.op_type in _CONVERSIONS else why_not(node, _format_of(node) or formats)
        if reason is not None:
            label = node.name or str(node.outputs[0].name)
            found.append(LeftNode(label, node.op_type, *reason))
    return tuple(found)


def why_not(node: ir.Node, fmt: str) -> tuple[str, str] | None:
    """Why a node does not run on HTP's integer kernels, and what to do; None where it does."""
    info = OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if info is None:
        return OTHER.note, OTHER.remedy
    if fmt not in info.formats:
        return info.note, info.remedy
    for rule in (*EVERYWHERE, *info.checks):
        if fmt in rule.formats and rule.broken(node):
            return rule.text, rule.remedy
    return None


def _format_of(node: ir.Node) -> str | None:
    """The format of the activations of a node of a quantized graph; None where it reads and writes none."""
    codes = [value.producer() for value in node.inputs if value is not None]
    pairs = [n.inputs[0] for n in codes if n is not None and n.op_type == "DequantizeLinear"]
    pairs += [r.outputs[0] for v in node.outputs for r in v.consumers() if r.op_type == "QuantizeLinear"]
    kinds = {value.dtype for value in pairs if value is not None and array(value) is None}
    if ir.DataType.UINT16 in kinds:
        return A16
    return A8 if ir.DataType.UINT8 in kinds else None


def _too_many_axes(node: ir.Node) -> bool:
    values = [v for v in (*node.inputs[:1], *node.outputs) if v is not None]
    return any(len(static_shape(v) or ()) > MOST_AXES for v in values)


def _dynamic(node: ir.Node) -> bool:
    values = [
        v for v in (*node.inputs, *node.outputs) if v is not None and (v.name or v.producer() is not None)
    ]
    return any(v.shape is None or not v.shape.is_static() for v in values)


#: What holds for all operators.
EVERYWHERE = (
    Check("a tensor has no static shape", "pin the shapes with --input-shape", _dynamic),
    Check(
        f"a tensor has more than {MOST_AXES} axes",
        "merge axes that stay side by side, or split the batch",
        _too_many_axes,
    ),
)
_DILATED_POOL = Check(
    "it is dilated: HTP pools without gaps",
    "pool each of the interleaved images (SpaceToDepth), or several times with a small kernel",
    are.dilated,
)
_GROUPS = Check(
    "its groups have several output channels that share scales: HTP takes the scales of other channels",
    "use one group, one channel for each group, or a nearest Resize and a Conv",
    are.shared_groups,
)
_STORED_AXES = Check(
    "the weights are stored and the input has more than 4 axes",
    "merge the leading axes before (Reshape)",
    are.stored_weights_above_4d,
)
_BATCHES = Check(
    "both operands are computed and have more than 4 axes: in 8 bits it computes something else",
    "merge the leading axes before (Reshape)",
    are.batches_above_4d,
    frozenset({A8}),
)
_CEIL = Check(
    "ceil_mode adds windows beyond the edge, which HTP averages wrongly",
    "choose an input size or pads with which the windows end at the edge",
    are.beyond_edge,
)
_NEAREST = Check(
    "HTP picks other pixels: floor where coordinates are asymmetric, round_prefer_ceil for half_pixel and "
    "align_corners, round_prefer_floor for pytorch_half_pixel",
    "export with asymmetric coordinates and floor, which gives the same at whole factors",
    are.other_pixels,
)
_PARTS = Check(
    "the factor does not give whole pixels: HTP scales by output size / input size",
    "state the output size in place of the factor, or choose an input size that fits",
    are.part_pixels,
)
_SLOPES = Check(
    "several slopes: the compiler runs out of memory in 16 bits",
    "use LeakyRelu, or keep its tensors in 8 bits",
    are.several_slopes,
    frozenset({A16}),
)
_FLOAT = "HTP has no integer form of it in this toolchain: it would be computed in float32"
_NONE = "the QNN execution provider has no HTP kernel for it"


def _runs(ops: str, *checks: Check) -> Iterable[OpInfo]:
    return (OpInfo(op, checks=checks) for op in ops.split())


def _never(ops: str, note: str, remedy: str) -> Iterable[OpInfo]:
    return (OpInfo(op, frozenset(), (), note, remedy) for op in ops.split())


def _all() -> Iterable[OpInfo]:
    yield from _runs("Conv")
    dilated = Check("it is dilated", "use a nearest Resize and a dilated Conv", are.dilated)
    yield from _runs("ConvTranspose", dilated, _GROUPS)
    yield from _products()
    yield from _pools()
    yield from _runs(
        "Relu Clip LeakyRelu Elu Gelu HardSwish HardSigmoid Sigmoid Tanh Exp Sqrt Abs Neg Sign Floor Ceil "
        "Round Sin Cos Asin Atan Identity Dropout Softmax"
    )
    deep = Check("the input has more than 4 axes", "merge axes before (Reshape)", are.above_4d)
    yield from _runs("Softplus LogSoftmax", deep)
    yield from _runs("PRelu", _SLOPES)
    yield OpInfo(
        "Log",
        frozenset({A8}),
        note="in 16 bits it compiles and computes something else",
        remedy="keep its input and output in 8 bits, or leave it out of the network",
    )
    yield OpInfo(
        "Reciprocal",
        frozenset({A16}),
        note="in 8 bits it is off by up to 30 steps where the input has a wide range",
        remedy="write it as Div with 1 as the first operand, which is exact",
    )
    yield from _norms()
    yield from _reductions()
    yield from _arithmetic()
    yield from _movers()
    yield from _left_out()


def _products() -> Iterable[OpInfo]:
    yield from _runs(
        "Gemm",
        Check("alpha or beta is not 1", "multiply the weights and the bias by them", are.scaled),
        Check(
            "the weights are computed, which HTP takes in 8 bits only",
            "write it as MatMul",
            are.computed_weights,
            frozenset({A16}),
        ),
        Check("the bias is computed", "add it behind with Add", are.computed_bias),
    )
    first = Check(
        "the stored weights are the first factor, which the quantizer leaves in float",
        "exchange the factors, with a Transpose before and behind",
        are.stored_first,
    )
    yield from _runs("MatMul", first, _STORED_AXES, _BATCHES)
    form = Check("it is no product of two batches of matrices", "write it as MatMul", are.uncommon_einsum)
    yield OpInfo(
        "Einsum",
        frozenset({A8}),
        (form,),
        "the compiler refuses it in 16 bits",
        "write it as MatMul with Transpose and Reshape",
    )


def _pools() -> Iterable[OpInfo]:
    deep = Check(
        "it is 3-dimensional", "pool rows and columns, then the depth, with two 2-D pools", are.three_d
    )
    indices = Check("its indices are used", "keep the values only", are.two_outputs)
    yield from _runs("MaxPool", _DILATED_POOL, deep, indices)
    yield from _runs("AveragePool", _DILATED_POOL, _CEIL)
    yield from _runs("GlobalAveragePool")
    yield from _runs("GlobalMaxPool", deep)


def _norms() -> Iterable[OpInfo]:
    last = Check(
        "it normalizes more than the last axis", "merge the axes before (Reshape)", are.not_last_axis
    )
    deep = Check("the input has more than 4 axes", "merge axes before (Reshape)", are.above_4d)
    yield from _runs("LayerNormalization", last, deep)
    yield from _runs("InstanceNormalization")
    norm = Check("p is not 2", "write it as Abs, ReduceSum and Div", are.not_p2)
    yield from _runs("LpNormalization", norm)
    yield OpInfo("LRN", frozenset({A8}), (), "the session fails in 16 bits", "train without it")


def _reductions() -> Iterable[OpInfo]:
    yield from _runs("ReduceMean ReduceSum ReduceMax ReduceMin")
    last = Check("it selects the last of equal values", "select the first", are.selects_last)
    yield from _runs("ArgMax ArgMin", last)
    form = Check(
        "it is exclusive or reversed", "Slice what is not wanted, or reverse by Slice", are.uncommon_sum
    )
    yield OpInfo(
        "CumSum",
        frozenset({A16}),
        (form,),
        "in 8 bits it compiles and computes something else",
        "use a16w8, or multiply by a triangular matrix of ones (MatMul)",
    )


def _arithmetic() -> Iterable[OpInfo]:
    yield from _runs("Add Sub Mul Div Greater GreaterOrEqual Less LessOrEqual Equal Where And Not")
    many = Check(
        "it has more than two operands, for which HTP computes in float32", "chain it in pairs", are.many
    )
    yield from _runs("Min Max", many)
    whole = Check("the exponent is an integer tensor", "store it as float32", are.integer_exponent)
    yield from _runs("Pow", whole)
    cast = Check("it makes integers of codes", "compute on integers in the application", are.casts_codes)
    yield from _runs("Cast", cast)


def _movers() -> Iterable[OpInfo]:
    yield from _runs("Concat Split Slice Gather GatherElements DepthToSpace SpaceToDepth Tile Expand Reshape")
    yield from _runs("Transpose Flatten Squeeze Unsqueeze")
    reduced = Check(
        "it keeps the largest or smallest value",
        "use Max or Min before, or keep its tensors in 8 bits",
        are.scatters_largest,
        frozenset({A16}),
    )
    yield from _runs("ScatterElements", reduced)
    wrap = Check("mode wrap", "concatenate Slices", are.wraps)
    yield from _runs("Pad", wrap)
    channels = Check("it resizes batch or channels", "use Tile or Expand", are.resizes_channels)
    smooth = Check("it is antialiased", "average with AveragePool before", are.antialiased)
    yield from _runs("Resize", channels, smooth, _NEAREST, _PARTS)
    cubic = Check("mode cubic", "use mode linear", are.cubic)
    yield OpInfo(
        "GridSample",
        checks=(cubic,),
        note="a grid of 8 bits has 256 positions along an axis, fewer than a large image has pixels",
        remedy="raise the grid to uint16",
    )


def _left_out() -> Iterable[OpInfo]:
    yield from _never("Selu", _FLOAT, "write it as Mul of an Elu")
    yield from _never("ThresholdedRelu", _FLOAT, "write it as Where of a Greater")
    yield from _never("Sum Mean", _FLOAT, "write it as Add (and Mul)")
    yield from _never("Tan", _FLOAT, "write it as Sin divided by Cos")
    yield from _never(
        "BatchNormalization", _FLOAT, "fold it into the layer before, or write it as Mul and Add"
    )
    yield from _never("ReduceL2", _FLOAT, "write it as Mul, ReduceSum and Sqrt, or use LpNormalization")
    yield from _never("LpPool", _FLOAT, "write it as Mul, AveragePool and Sqrt")
    yield from _never("GatherND ScatterND", _FLOAT, "use Gather or Slice with fixed positions, and Concat")
    yield from _never("TopK RoiAlign LSTM GRU IsNaN", _FLOAT, _OUTSIDE)
    yield from _never("Erf", _NONE, "use Gelu where it is part of one, else Tanh")
    yield from _never("Mish", _NONE, "write it as x * Tanh(Softplus(x))")
    yield from _never("Celu", _NONE, "use Elu, which is the same with alpha 1")
    yield from _never("Softsign", _NONE, "write it as x / (1 + Abs(x))")
    yield from _never("Shrink", _NONE, "write it with Where and Greater")
    yield from _never(
        "GroupNormalization", _NONE, "write it as Reshape, InstanceNormalization, Reshape, Mul and Add"
    )
    yield from _never("MeanVarianceNormalization", _NONE, "use InstanceNormalization or LayerNormalization")
    yield from _never("ReduceL1", _NONE, "write it as Abs and ReduceSum")
    yield from _never("ReduceSumSquare", _NONE, "write it as Mul and ReduceSum")
    yield from _never("ReduceProd", _NONE, "write it as a chain of Mul")
    yield from _never(
        "ReduceLogSum ReduceLogSumExp",
        _NONE,
        "in 8 bits write it with Log, ReduceSum and Exp; 16 bits have no right Log",
    )
    yield from _never("Mod", "HTP divides whole numbers only", "write it as x - y * Floor(x / y)")
    yield from _never("Hardmax", _NONE, "use ArgMax")
    yield from _never("Trilu", _NONE, "multiply by a stored mask")
    yield from _never("ReverseSequence", _NONE, "use Slice with step -1")
    yield from _never("RNN", _NONE, "unroll it into MatMul and Tanh")
    yield from _never("DeformConv", _NONE, "use a Conv, or a GridSample with stored positions")
    yield from _never("NonMaxSuppression", "its number of outputs is not known before", _OUTSIDE)
    yield from _never("Acos Sinh Cosh Asinh Acosh Atanh", _NONE, "write it with Exp, Log and Sqrt")


OPS: Mapping[str, OpInfo] = {info.op: info for info in _all()}

#: What is said of operators that are not listed.
OTHER = OpInfo("all others", frozenset(), (), _NONE, _OUTSIDE)
