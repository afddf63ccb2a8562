"""Which nodes of a float network will leave the NPU, told before any work is done.

Each rule is a check, the text for the user and a row of the documentation at once. It says what becomes of
the node in the whole line, lowering and Vela 5.2 together; the tests try both sides of every limit. Vela's
own list of constraints is looser in places and stricter in others. Images are taken to be stored with
channels last, and a TRANSPOSE that the lowering has to insert is not foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.hardware import load_hardware
from edgekit.quantize.plan import tail_nodes
from edgekit.targets.ethos_u import shapes
from edgekit.targets.ethos_u.profiles import Family, NpuProfile

ALL = (Family.U55, Family.U65, Family.U85)
SMALL = (Family.U55, Family.U65)
LARGE = (Family.U85,)
_AXIS = 65536
_HARDWARE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True)
class Rule:
    """One reason for which a node runs on the CPU.

    Attributes:
        name: Short name.
        ops: ONNX operators it is about.
        families: NPUs it holds for.
        text: What is not possible.
        remedy: What to change.
        broken: Whether a node breaks it.
    """

    name: str
    ops: tuple[str, ...]
    families: tuple[Family, ...]
    text: str
    remedy: str
    broken: Callable[[ir.Node], bool]


@dataclass(frozen=True)
class Finding:
    """A node that will leave the NPU.

    Attributes:
        node: Its name.
        op: Its ONNX operator.
        rule: Text of the rule that it breaks.
        remedy: What to change.
    """

    node: str
    op: str
    rule: str
    remedy: str


def check(graph: Graph, profile: NpuProfile) -> tuple[Finding, ...]:
    """Nodes that Vela will leave to the CPU, in execution order, at most one finding each.

    Args:
        graph: A captured float network. What lies between its last layer with weights and its outputs is
            left out: that is computed in float outside the model.
        profile: The NPU.
    """
    rules = [rule for rule in RULES if profile.family in rule.families]
    known = _integer_ops()
    tail = tail_nodes(list(graph.nodes))
    found = []
    for node in graph.nodes:
        if node.name in tail:
            continue
        broken = next((rule for rule in rules if node.op_type in rule.ops and rule.broken(node)), None)
        if _is_root(node):
            continue
        if broken is None and (node.op_type not in known or node.domain not in ("", "ai.onnx")):
            broken = OTHER
        if broken is not None:
            name = node.name or str(node.outputs[0].name)
            found.append(Finding(name, node.op_type, broken.text, broken.remedy))
    return tuple(found)


def table() -> str:
    """The rules as a Markdown table, for the documentation."""
    lines = ["| Operators | NPU | Runs on the CPU when | Instead |", "|---|---|---|---|"]
    for rule in (*RULES, OTHER):
        families = (
            "all" if rule.families == ALL else ", ".join(family.value.upper() for family in rule.families)
        )
        lines.append(f"| {', '.join(rule.ops)} | {families} | {rule.text} | {rule.remedy} |")
    return "\n".join(lines) + "\n"


def _integer_ops() -> frozenset[str]:
    """Operators that are computed in integers, and those that do nothing."""
    scheme = load_hardware(_HARDWARE).scheme
    return frozenset({*(scheme.ops if scheme else ()), "Div", "Pow", "Identity", "Dropout", "Constant"})


def _is_root(node: ir.Node) -> bool:
    """Whether a Reciprocal becomes one RSQRT together with the Sqrt before it."""
    maker = node.inputs[0].producer() if node.op_type == "Reciprocal" and node.inputs[0] is not None else None
    return maker is not None and maker.op_type == "Sqrt" and len(maker.outputs[0].uses()) == 1


def _always(node: ir.Node) -> bool:
    return True


def _computed_divisor(node: ir.Node) -> bool:
    return not shapes.is_stored(node, 1)


def _not_square(node: ir.Node) -> bool:
    exponent = array(node.inputs[1])
    return exponent is None or exponent.size != 1 or float(exponent.reshape(-1)[0]) != 2.0


def _conv_stride(node: ir.Node) -> bool:
    """A stride above 3 is taken apart only where nothing is padded and nothing is dilated."""
    if max(shapes.pair(node, "strides")) <= 3:
        return False
    return shapes.is_depthwise(node) or shapes.reaches_out(node) or max(shapes.pair(node, "dilations")) > 1


def _transposed_stride(node: ir.Node) -> bool:
    high, wide = shapes.pair(node, "strides")
    size, kernel = shapes.spatial(node.inputs[0]), shapes.spatial(node.inputs[1])
    if (high, wide) in ((1, 1), (2, 2)):
        return False
    if (high, wide) == (1, 2):
        return not (size[0] == kernel[0] == 1)
    return not ((high, wide) == (2, 1) and size[1] == kernel[1] == 1)


def _pool_stride(node: ir.Node) -> bool:
    return max(shapes.pair(node, "strides")) > 3 and shapes.reaches_out(node)


def _pool_kernel(node: ir.Node) -> bool:
    kernel = shapes.pair(node, "kernel_shape")
    return kernel[0] > 256 or math.prod(kernel) > _AXIS


def _padded_average(node: ir.Node) -> bool:
    return max(shapes.pair(node, "kernel_shape")) > 8 and shapes.reaches_out(node)


def _resize_factor(node: ir.Node) -> bool:
    """U55 and U65 double, up to three times; half-pixel interpolation once."""
    before, after = shapes.spatial(node.inputs[0]), shapes.spatial(node.outputs[0])
    linear = shapes.text(node, "mode", "nearest") == "linear"
    half = linear and "half_pixel" in shapes.text(node, "coordinate_transformation_mode", "half_pixel")
    if before == (1, 1) or (before == after and not half):
        return False
    high, wide = shapes.factors(node)
    if high != wide:
        flat = (after[0] == 1 and high == 1) or (after[1] == 1 and wide == 1)
        return not (flat and max(high, wide) in ((2,) if half else (2, 4, 8)))
    return high not in ((2,) if half else (2, 4, 8))


def _linear_factor(node: ir.Node) -> bool:
    """U85: each axis by a power of two."""
    if shapes.text(node, "mode", "nearest") != "linear":
        return False
    return shapes.spatial(node.inputs[0]) != (1, 1) and any(
        f < 1 or f > 1024 or math.log2(f) % 1 for f in shapes.factors(node)
    )


def _mean_depth(node: ir.Node) -> bool:
    shape, axes = shapes.stored(node.inputs[0]), shapes.stored_axes(node)
    return len(shape) >= 4 and len(shape) - 1 in axes and 1 not in shape[-3:]


def _mean_axis(node: ir.Node) -> bool:
    shape = shapes.stored(node.inputs[0])
    return any(shape[axis] > 4096 for axis in shapes.stored_axes(node))


def _softmax_size(node: ir.Node) -> bool:
    shape = list(shapes.shape(node.inputs[0]))
    if shape:
        shape.pop(shapes.integer(node, "axis", -1) % len(shape))
    return math.prod(shape[-2:]) > _AXIS


def _dense_size(node: ir.Node) -> bool:
    return shapes.is_stored(node, 1) and shapes.shape(node.inputs[0])[-1] > _AXIS


def _matmul_size(node: ir.Node) -> bool:
    if shapes.is_stored(node, 0) or shapes.is_stored(node, 1):
        return False
    return max(shapes.shape(node.inputs[0])[-1:] + shapes.shape(node.outputs[0])[-1:], default=0) > _AXIS


def _slice_step(node: ir.Node) -> bool:
    steps = shapes.slice_steps(node)
    shape = shapes.shape(node.inputs[0])
    channel = 1 if len(shape) == 4 else len(shape) - 1
    return any(step < 0 or (step > 1 and (axis == channel or len(shape) > 4)) for axis, step in steps.items())


def _scattered(node: ir.Node) -> bool:
    """Neighbours become a SLICE."""
    index = array(node.inputs[1])
    if index is None:
        return True
    first, *rest = (int(i) for i in index.reshape(-1))
    return rest != list(range(first + 1, first + 1 + len(rest)))


def _gather_axis(node: ir.Node) -> bool:
    return _scattered(node) and shapes.integer(node, "axis", 0) != 0


RULES: tuple[Rule, ...] = (
    Rule("pow", ("Pow",), ALL, "the exponent is not 2", "write it as multiplications", _not_square),
    Rule(
        "div",
        ("Div",),
        SMALL,
        "the divisor is computed",
        "multiply by a constant, or by a reciprocal that a lookup table gives",
        _computed_divisor,
    ),
    Rule(
        "gather",
        ("Gather",),
        SMALL,
        "it takes anything but one range of neighbours",
        "use Slice or Split with fixed positions",
        _scattered,
    ),
    Rule(
        "gather-axis",
        ("Gather",),
        LARGE,
        "it takes anything but one range of neighbours, along another axis than the first",
        "use Slice or Split with fixed positions",
        _gather_axis,
    ),
    Rule(
        "conv-stride",
        ("Conv",),
        SMALL,
        "the stride is above 3, and the convolution is depthwise, dilated or padded",
        "use a stride of at most 3, or a dense convolution without padding and dilation",
        _conv_stride,
    ),
    Rule(
        "transposed-stride",
        ("ConvTranspose",),
        SMALL,
        "the stride is neither 1 nor 2 (or 1 and 2, on an axis of size 1 with a kernel of size 1)",
        "use stride 2, several times if need be, or a nearest Resize and a Conv",
        _transposed_stride,
    ),
    Rule(
        "pool-stride",
        ("MaxPool", "AveragePool"),
        SMALL,
        "the stride is above 3 with padding",
        "use a stride of at most 3, or no padding",
        _pool_stride,
    ),
    Rule(
        "pool-kernel",
        ("MaxPool", "AveragePool"),
        ALL,
        "the kernel is higher than 256",
        "pool twice with smaller kernels, or use GlobalAveragePool",
        _pool_kernel,
    ),
    Rule(
        "padded-average",
        ("AveragePool",),
        ALL,
        "the kernel is larger than 8 with padding",
        "use a kernel of at most 8 x 8, or no padding",
        _padded_average,
    ),
    Rule(
        "resize-factor",
        ("Resize",),
        SMALL,
        "the factor is not 2, 4 or 8, the same for height and width; linear with half-pixel centres: not 2",
        "resize by 2, several times if need be, to a size that this reaches",
        _resize_factor,
    ),
    Rule(
        "linear-factor",
        ("Resize",),
        LARGE,
        "linear, and a factor is not a power of two from 1 to 1024",
        "resize by powers of two, or with mode nearest",
        _linear_factor,
    ),
    Rule(
        "mean-depth",
        ("ReduceMean",),
        ALL,
        "it is over the channels of an image whose height, width and channels are all above 1",
        "normalize a sequence [N, positions, channels] instead of an image, or use batch normalization",
        _mean_depth,
    ),
    Rule(
        "mean-axis",
        ("ReduceMean", "GlobalAveragePool"),
        ALL,
        "a reduced axis is longer than 4096",
        "average in two steps, over a reshaped axis",
        _mean_axis,
    ),
    Rule(
        "softmax-size",
        ("Softmax",),
        ALL,
        "it is taken at more than 65536 positions",
        "use a smaller input, or fewer tokens",
        _softmax_size,
    ),
    Rule(
        "dense-size",
        ("Gemm", "MatMul"),
        ALL,
        "the weights have more than 65536 inputs: Vela gives up",
        "pool or reduce channels before",
        _dense_size,
    ),
    Rule(
        "matmul-size",
        ("MatMul",),
        SMALL,
        "both operands are computed, and the inner or the last axis is longer than 65536",
        "use a smaller input, or fewer tokens",
        _matmul_size,
    ),
    Rule(
        "slice-step",
        ("Slice",),
        ALL,
        "a step is negative, or above 1 over channels or in more than four axes",
        "take whole ranges of channels: order them in the layer before",
        _slice_step,
    ),
)

#: What is said of operators that the scheme does not have.
OTHER = Rule(
    "other",
    ("all others",),
    ALL,
    "always: there is no int8 operator for it",
    "leave it out of the exported network and compute it in the application",
    _always,
)
