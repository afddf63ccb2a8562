"""What rules ask of a node: shapes, attributes, and how the lowering pads and stores it."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import int_attribute, is_constant, static_shape


def shape(value: ir.Value | None) -> tuple[int, ...]:
    return static_shape(value) or ()


def spatial(value: ir.Value | None) -> tuple[int, int]:
    """Height and width; a sequence has height 1."""
    size = shape(value)[2:]
    return (1, 1) if not size else (1, size[0]) if len(size) == 1 else (size[0], size[1])


def stored(value: ir.Value | None) -> tuple[int, ...]:
    """The shape with channels last."""
    size = shape(value)
    return (size[0], *size[2:], size[1]) if len(size) == 4 else size


def stored_axes(node: ir.Node) -> tuple[int, ...]:
    """Axes that a reduction is over, in the stored order."""
    rank = len(shape(node.inputs[0]))
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, rank))
    else:
        second = node.inputs[1] if len(node.inputs) > 1 else None
        given = array(second)
        axes = list(range(rank)) if given is None else [int(a) % rank for a in given.reshape(-1)]
    order = [0, *range(2, rank), 1] if rank == 4 else list(range(rank))
    return tuple(order.index(axis) for axis in axes)


def pair(node: ir.Node, name: str) -> tuple[int, int]:
    """A pair of ints for height and width; 1 where it is not given."""
    values = integers(node, name) or [1, 1]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def integers(node: ir.Node, name: str) -> list[int]:
    attribute = node.attributes.get(name)
    return [] if attribute is None else [int(v) for v in attribute.as_ints()]


def integer(node: ir.Node, name: str, default: int) -> int:
    return int_attribute(node, name, default)


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def is_stored(node: ir.Node, index: int) -> bool:
    """Whether an input is a constant."""
    return len(node.inputs) > index and is_constant(node.inputs[index])


def is_depthwise(node: ir.Node) -> bool:
    weights = shape(node.inputs[1])
    return int_attribute(node, "group", 1) > 1 and len(weights) > 1 and weights[1] == 1


def reaches_out(node: ir.Node) -> bool:
    """Whether windows reach beyond the image, so that something has to be padded."""
    sizes, outs = spatial(node.inputs[0]), spatial(node.outputs[0])
    kernel = pair(node, "kernel_shape") if node.op_type.endswith("Pool") else spatial(node.inputs[1])
    strides, dilations = pair(node, "strides"), pair(node, "dilations")
    needed = (
        (o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(outs, strides, kernel, dilations, strict=True)
    )
    given = integers(node, "pads")
    return any(given[: len(given) // 2]) or any(n > s for n, s in zip(needed, sizes, strict=True))


def factors(node: ir.Node) -> tuple[float, float]:
    """How much larger a Resize makes height and width, as TFLite's kernels count."""
    before, after = spatial(node.inputs[0]), spatial(node.outputs[0])
    aligned = text(node, "coordinate_transformation_mode", "half_pixel") == "align_corners"
    high, wide = (
        (a - 1) / (b - 1) if aligned and b > 1 else a / b for b, a in zip(before, after, strict=True)
    )
    return high, wide


def slice_steps(node: ir.Node) -> dict[int, int]:
    """Step by axis, where it is not 1."""
    rank = len(shape(node.inputs[0]))
    steps = array(node.inputs[4]) if len(node.inputs) > 4 else None
    axes = array(node.inputs[3]) if len(node.inputs) > 3 else None
    if steps is None:
        return {}
    named = range(len(steps)) if axes is None else [int(a) % max(1, rank) for a in axes]
    return {axis: int(step) for axis, step in zip(named, steps, strict=True) if step != 1}
