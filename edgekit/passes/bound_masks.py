"""Give attention masks a value that integers can hold.

    softmax(s + M)_i = softmax(s + M')_i up to n e^(D - |M'|)

for ``M = -inf``, -3.4e38 or -10000 at the masked places and ``M' = floor``, n places, and D how far the
strongest masked score exceeds the strongest one that is not. With the default of -20 a masked place keeps
e^-20 = 2e-9 of the weight of one that scores the same; an 8-bit softmax rounds all below 2e-3 to 0. But the
sum ``s + M`` has to be stored: at -10000 one step of 8 bits is 39, and all scores that matter share one code.

1. A scalar of at most -1000 in ``Where(c, 0, M)``, ``Where(c, M, m)`` or ``(1 - mask) M``, and such elements
   of a constant mask, become ``floor``, if nothing but softmaxes can see it.
2. ``Where(IsNaN(softmax(x)), 0, softmax(x))``, which torch writes for rows that -inf masks from end to end,
   becomes ``softmax(x)`` once no -inf is left. Such a row, of padding, then attends by its scores alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import bypass, can_bypass, is_constant
from edgekit.passes.subgraph import Rewriter, maker, remove_dead, scalar

#: Below this a number in a mask means "never".
_NEVER = -1000.0

_MAX_DEPTH = 16

#: Operators that hand a mask on, with the positions at which they take it.
_PASSES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Identity"), (0,)),
    "Add": (0, 1),
    "Where": (1, 2),
    "Gather": (0,),
}


def bound_masks(graph: Graph, *, floor: float = -20.0) -> Graph:
    """Replace what stands for minus infinity in front of a softmax.

    Args:
        graph: The graph.
        floor: The value to mask with, below 0. Take it lower where masked scores exceed the others by far;
            the range of the masked scores, and with it their step, grows by as much.

    Raises:
        UsageError: ``floor`` is not between -1000 and 0.
    """
    if not _NEVER < floor < 0:
        raise UsageError(f"a mask of {floor:g} is no bound", valid=["a number between -1000 and 0"])
    result = graph.copy()
    main = result.model.graph
    rewriter = Rewriter(result.model)
    bounded: list[str] = []
    refused: list[Refusal] = []
    for node in [n for n in main if not n.domain and n.op_type in ("Where", "Mul", "Add")]:
        for index in _positions(node):
            reason = _obstacle(node, index)
            if reason:
                refused.append(Refusal(str(node.name), reason))
                continue
            _bound(rewriter, node, index, floor)
            bounded.append(str(node.outputs[0].name))
    guards = _remove_guards(main, refused)
    summary = f"bounded {len(bounded)} masks at {floor:g}, removed {guards} guards against NaN"
    details = {"bounded": bounded, "floor": floor, "guards": guards}
    return result.with_change(Change("bound_masks", summary, tuple(refused), details))


def _positions(node: ir.Node) -> list[int]:
    """The inputs of a node that are constants with a minus infinity, of one kind or another."""
    found = []
    for index, value in enumerate(node.inputs):
        held = array(value) if is_constant(value) and (node.op_type != "Where" or index) else None
        if held is not None and held.dtype == np.float32 and held.size and held.min() <= _NEVER:
            found.append(index)
    return found


def _obstacle(node: ir.Node, index: int) -> str:
    """Why this is no mask that may change; empty if it is one."""
    reason = _seen_by_others(node.outputs[0])
    if reason:
        return reason
    if node.op_type == "Mul" and not _is_indicator(node.inputs[1 - index]):
        return "what it multiplies is not known to be 0 or 1"
    return ""


def _seen_by_others(value: ir.Value, depth: int = 0) -> str:
    """What can see a tensor that is no softmax; empty when there is none."""
    if value.is_graph_output():
        return f"'{value.name}' is an output of the graph"
    for use in value.uses():
        node = use.node
        if node.op_type == "Softmax" and not node.domain:
            continue
        if node.domain or use.idx not in _PASSES.get(node.op_type, ()) or depth > _MAX_DEPTH:
            return f"{node.op_type} '{node.name}' reads it, which is no softmax"
        reason = _seen_by_others(node.outputs[0], depth + 1)
        if reason:
            return reason
    return ""


def _is_indicator(value: ir.Value | None) -> bool:
    """True for ``Cast(m)`` of integers or booleans and for ``1 - m``."""
    minus = maker(value, "Sub")
    if minus is not None and scalar(minus.inputs[0]) == 1.0:
        return True
    cast = maker(value, "Cast")
    source = cast.inputs[0] if cast is not None else None
    return source is not None and source.dtype is not None and not source.dtype.is_floating_point()


def _bound(rewriter: Rewriter, node: ir.Node, index: int, floor: float) -> None:
    old = node.inputs[index]
    held = np.asarray(array(old))
    build = rewriter.before(node, str(node.outputs[0].name))
    node.replace_input_with(index, build.constant("mask", np.where(held <= _NEVER, floor, held)))
    if old is not None and not old.uses() and not old.is_graph_output():
        rewriter.graph.initializers.pop(str(old.name), None)


def _remove_guards(main: ir.Graph, refused: list[Refusal]) -> int:
    removed = 0
    for node in [n for n in main if n.op_type == "Where" and not n.domain]:
        test = maker(node.inputs[0], "IsNaN")
        softmax = maker(test.inputs[0], "Softmax") if test is not None else None
        if test is None or softmax is None or node.inputs[2] is not test.inputs[0]:
            continue
        if scalar(node.inputs[1]) != 0.0:
            continue
        source, zero = softmax.outputs[0], node.inputs[1]
        if _holds_infinity(softmax.inputs[0]) or not can_bypass(source, node.outputs[0]):
            refused.append(Refusal(str(node.name), "its softmax may see nothing but minus infinity"))
            continue
        bypass(source, node.outputs[0])
        remove_dead(main, test)
        if zero is not None and not zero.uses():
            main.initializers.pop(str(zero.name), None)
        removed += 1
    return removed


def _holds_infinity(value: ir.Value | None, depth: int = 0) -> bool:
    """Whether a mask with an infinity, or one that is not known, is added to a tensor."""
    if value is None or depth > _MAX_DEPTH:
        return True
    if is_constant(value):
        held = array(value)
        return held is None or not np.isfinite(held).all()
    node = value.producer()
    if node is None:
        return True  # an input of the graph may hold anything
    if node.domain or node.op_type not in (*_PASSES, "Mul"):
        return False
    where = _PASSES.get(node.op_type, (0, 1))
    return any(_holds_infinity(node.inputs[i], depth + 1) for i in where)
