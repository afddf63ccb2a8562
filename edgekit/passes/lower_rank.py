"""Write what is done to tensors of many axes with tensors of few.

    1.  Transpose: axes of size 1 go, and axes that stay next to each other become one. Where that is not
        enough, the axes are brought to their places in several steps, each of at most four axes.
    2.  Elementwise operators: axes along which every operand is whole, or has size 1, become one.
    3.  Reshape(Reshape(x)) = Reshape(x), so that no tensor of many axes is left in between.

Pixel shuffles and windows (partition an image, swap two axes, join) are written with six axes; Qualcomm's HTP
has at most five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import bypass, can_bypass, is_constant, static_shape
from edgekit.passes.rewrite import Verdict, given, rewrite_nodes
from edgekit.passes.subgraph import Builder, maker, remove_dead

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Where", "Relu", "Sigmoid", "Tanh", "Gelu", "HardSwish",
    "HardSigmoid", "Elu", "LeakyRelu", "Softplus", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Clip",
    "Erf", "Cast", "Not", "And", "Or", "Equal", "Greater", "Less", "Floor", "Ceil", "Round", "Sin", "Cos",
}  # fmt: skip


def lower_rank(graph: Graph, *, highest: int = 5) -> Graph:
    """Rewrite every Transpose and elementwise operator of more axes.

    Args:
        graph: The graph, with static shapes.
        highest: Most axes that a tensor may have.
    """

    def judge(node: ir.Node) -> Verdict:
        shapes = [static_shape(v) for v in (*node.inputs, *node.outputs) if v is not None]
        if any(s is None for s in shapes):
            return "its shapes are not known"
        if max(len(s or ()) for s in shapes) <= highest:
            return None
        if node.op_type == "Transpose":
            return ""
        merged = _merged(node)
        return "" if len(merged) <= highest else f"{len(merged)} of its axes cannot be joined"

    def rewrite(build: Builder, node: ir.Node) -> None:
        (_transpose if node.op_type == "Transpose" else _elementwise)(build, node, highest)

    words = f"wrote {{}} operators on more than {highest} axes with fewer"
    result = rewrite_nodes(graph, "lower_rank", words, ("Transpose", *_ELEMENTWISE), judge, rewrite)
    change = result.history[-1]
    if change.details["rewritten"]:
        _join_reshapes(result)
    left = _left(result, highest)
    details = {**change.details, "left": left}
    final = Change(change.pass_name, change.summary, change.refused, details)
    return Graph(result.model, (*result.history[:-1], final))


def _left(graph: Graph, highest: int) -> list[str]:
    """Tensors that still have more axes."""
    return [str(v.name) for node in graph.nodes for v in node.outputs if len(static_shape(v) or ()) > highest]


def _transpose(build: Builder, node: ir.Node, highest: int) -> None:
    x, shape = given(node, 0), static_shape(node.inputs[0]) or ()
    attribute = node.attributes.get("perm")
    perm = list(attribute.as_ints()) if attribute is not None else list(reversed(range(len(shape))))
    groups = _groups([a for a in perm if shape[a] != 1])
    ordered = sorted(groups)
    sizes = [math.prod(shape[a] for a in group) for group in ordered]
    target = [ordered.index(g) for g in groups]
    y = _reshape(build, "joined", x, sizes)
    if len(sizes) <= highest:
        if target != sorted(target):
            y = build.node("Transpose", "turned", y, perm=target)
    else:
        y = _in_steps(build, y, sizes, target)
    build.take(node.outputs[0], _reshape(build, "parted", y, static_shape(node.outputs[0]) or (), force=True))


def _groups(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Axes that follow each other before and after, by their order after; none has size 1."""
    followers = dict(zip(sorted(axes), sorted(axes)[1:], strict=False))
    found: list[tuple[int, ...]] = []
    for axis in axes:
        if found and followers.get(found[-1][-1]) == axis:
            found[-1] = (*found[-1], axis)
        else:
            found.append((axis,))
    return found


def _in_steps(build: Builder, y: ir.Value, sizes: Sequence[int], target: Sequence[int]) -> ir.Value:
    """Bring one axis after the other to its place: ``[done, before, axis, behind]``."""
    now = list(range(len(sizes)))
    for place, axis in enumerate(target):
        at = now.index(axis)
        if at == place:
            continue
        parts = [now[:place], now[place:at], [axis], now[at + 1 :]]
        shape = [math.prod(sizes[a] for a in part) for part in parts]
        y = _reshape(build, "parts", y, shape)
        y = build.node("Transpose", "moved", y, perm=[0, 2, 1, 3])
        now = [*now[:place], axis, *now[place:at], *now[at + 1 :]]
    return y


def _merged(node: ir.Node) -> list[list[int]]:
    """The axes of an elementwise operator's result in groups that can be one axis."""
    made = static_shape(node.outputs[0]) or ()
    shapes = [_padded(v, len(made)) for v in node.inputs if v is not None]
    groups: list[list[int]] = []
    kind: tuple[bool, ...] | None = None
    for axis, size in enumerate(made):
        if size == 1:
            continue
        whole = tuple(s[axis] == size for s in shapes)
        if groups and whole == kind:
            groups[-1].append(axis)
        else:
            groups.append([axis])
        kind = whole
    return groups


def _padded(value: ir.Value, rank: int) -> tuple[int, ...]:
    shape = static_shape(value) or ()
    return (*[1] * (rank - len(shape)), *shape)


def _elementwise(build: Builder, node: ir.Node, highest: int) -> None:
    groups, rank = _merged(node), len(static_shape(node.outputs[0]) or ())
    inputs = []
    for value in node.inputs:
        if value is None:
            inputs.append(build.constant("lowest", np.finfo(np.float32).min))  # only a Clip leaves one out
            continue
        shape = _padded(value, rank)
        flat = [math.prod(shape[a] for a in group) for group in groups] or [1]
        is_small = math.prod(shape) == 1 and len(static_shape(value) or ()) <= highest
        inputs.append(value if is_small else _reshape(build, "joined", value, flat))
    attributes = {name: a.value for name, a in node.attributes.items()}
    y = build.node(node.op_type, "joined", *inputs, **attributes)
    build.take(node.outputs[0], _reshape(build, "parted", y, static_shape(node.outputs[0]) or (), force=True))


def _reshape(
    build: Builder, label: str, x: ir.Value, shape: Sequence[int], *, force: bool = False
) -> ir.Value:
    if static_shape(x) == tuple(shape) and not force:
        return x
    held = array(x) if is_constant(x) else None
    if held is not None:
        return build.constant(label, held.reshape(tuple(shape)), held.dtype.type)
    return build.node("Reshape", label, x, build.constant(f"{label}_shape", shape, np.int64))


def _join_reshapes(graph: Graph) -> None:
    """Leave out every Reshape whose result is only reshaped again, and what changes nothing."""
    main = graph.model.graph
    for node in [n for n in main if n.op_type == "Reshape" and not n.domain]:
        before, shape = maker(node.inputs[0], "Reshape"), array(node.inputs[1])
        # A 0 in the shape would copy a size of another tensor.
        if before is not None and shape is not None and shape.all():
            node.replace_input_with(0, before.inputs[0])
            remove_dead(main, before)
        x, out = node.inputs[0], node.outputs[0]
        if x is not None and static_shape(x) == static_shape(out) and can_bypass(x, out):
            wanted = node.inputs[1]
            bypass(x, out)
            if wanted is not None and is_constant(wanted) and not wanted.uses():
                main.initializers.pop(str(wanted.name), None)
