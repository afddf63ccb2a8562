"""Finding ``k x (1 + t)`` or ``k x t`` where ``t = f(polynomial of x)``: GELU, HardSwish and their like."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgekit.passes.edit import is_constant, static_shape
from edgekit.passes.polynomial import Terms, polynomial
from edgekit.passes.subgraph import read_outside

_MAX_STEPS = 8


@dataclass(frozen=True)
class Gate:
    """A found activation.

    Attributes:
        source: What the activation is applied to.
        result: What it returns.
        outside: A tensor in between that something else reads; empty when there is none.
    """

    source: ir.Value
    result: ir.Value
    outside: str


def find_gate(inner: ir.Node, argument: Terms, product: Terms) -> Gate | None:
    """The activation around ``inner``, a node ``t = f(a)``.

    Args:
        inner: The node with the only function that is no arithmetic: Erf, Tanh, Clip.
        argument: What ``a`` has to be as a polynomial of ``x``.
        product: What the result has to be as a polynomial of ``x`` and ``t``.
    """
    gate = inner.outputs[0]
    for source in _candidates(inner.inputs[0]):
        inside = polynomial(inner.inputs[0], [source])
        if inside is None or not inside.equals(argument):
            continue
        reader = _only_reader(gate)
        for _ in range(_MAX_STEPS):
            if reader is None:
                break
            result = reader.outputs[0]
            found = polynomial(result, [source, gate])
            if found is None:
                break
            # Constants of a higher rank could have made the result larger than the source.
            if found.equals(product) and static_shape(result) == static_shape(source):
                nodes = inside.nodes | found.nodes | {inner}
                return Gate(source, result, read_outside(nodes, result))
            reader = _only_reader(result)
    return None


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 else None


def _candidates(value: ir.Value | None) -> list[ir.Value]:
    """``value`` and what it is computed from by arithmetic, nearest first."""
    found: list[ir.Value] = [] if value is None else [value]
    for current in found:
        node = current.producer()
        if node is None or len(found) > 4 * _MAX_STEPS:
            continue
        if node.op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Neg") and not node.domain:
            found += [v for v in node.inputs if v is not None and not is_constant(v) and v not in found]
    return found
