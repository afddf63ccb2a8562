"""Write Einsum with transposes, sums and one product.

The letters of ``a, b -> y`` fall into four groups: *batch* in both and in the result, *rows* in a and the
result, *columns* in b and the result, *inner* in both alone. A letter of one operand alone is summed first.

    1.  with an inner letter   y = MatMul(a as [batch, rows, inner], b as [batch, inner, columns])
    2.  without one            y = Mul(a, b), each with ones where the other has its letters
    3.  one operand            y = a, summed and transposed

A stored operand is put in order once and for all, and comes second, so that it can be a layer's weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import is_constant, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder


def decompose_einsum(graph: Graph) -> Graph:
    """Replace every Einsum of one or two operands without an ellipsis or a diagonal."""
    words = "wrote {} Einsums as transposes and products"
    return rewrite_nodes(graph, "decompose_einsum", words, ("Einsum",), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    terms, result = _parse(node)
    if len(terms) > 2:
        return "it has more than two operands"
    if any("." in t for t in (*terms, result)) or any(len(set(t)) < len(t) for t in (*terms, result)):
        return "it has an ellipsis, or a letter twice in one operand"
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        shape = static_shape(value)
        if shape is None or len(shape) != len(term) or not is_float(value):
            return "its operands are not float32 of known shapes"
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return f"'{letter}' broadcasts"
    return ""


def _parse(node: ir.Node) -> tuple[list[str], str]:
    """The operands' letters and the result's; where that is left out, those that occur once, in order."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, right = equation.partition("->")
    once = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return left.split(","), right if arrow else once


class _Operand:
    """A tensor with a letter for each axis; a stored one stays an array until it is needed."""

    def __init__(self, build: Builder, value: ir.Value, letters: str) -> None:
        self._build, self._value, self.letters = build, value, letters
        self.held = array(value) if is_constant(value) else None

    @property
    def sizes(self) -> dict[str, int]:
        shape = static_shape(self._value) or () if self.held is None else self.held.shape
        return dict(zip(self.letters, shape, strict=True))

    def keep(self, letters: str) -> None:
        """Sum over all other letters."""
        gone = [i for i, c in enumerate(self.letters) if c not in letters]
        if not gone:
            return
        if self.held is not None:
            self.held = np.asarray(self.held.sum(axis=tuple(gone)))
        else:
            axes = self._build.constant("summed_axes", gone, np.int64)
            self._value = self._build.node("ReduceSum", "summed", self._value, axes, keepdims=0)
        self.letters = "".join(c for c in self.letters if c in letters)

    def order(self, letters: str) -> None:
        if letters == self.letters:
            return
        perm = [self.letters.index(c) for c in letters]
        if self.held is not None:
            self.held = np.ascontiguousarray(self.held.transpose(perm))
        else:
            self._value = self._build.node("Transpose", "ordered", self._value, perm=perm)
        self.letters = letters

    def shaped(self, shape: Sequence[int]) -> ir.Value:
        """The tensor, in this shape."""
        if self.held is not None:
            return self._build.constant("stored", self.held.reshape(tuple(shape)))
        return _reshape(self._build, self._value, shape)

    @property
    def value(self) -> ir.Value:
        return self.shaped(list(self.sizes.values()))


def _rewrite(build: Builder, node: ir.Node) -> None:
    terms, result = _parse(node)
    operands = [_Operand(build, given(node, i), term) for i, term in enumerate(terms)]
    for index, operand in enumerate(operands):
        operand.keep(result + "".join(t for i, t in enumerate(terms) if i != index))
    if len(operands) == 1:
        final = operands[0]
    else:
        first, second = operands
        if first.held is not None and second.held is None:
            first, second = second, first
        final = _product(build, first, second, result)
    final.order(result)
    value = final.value
    if value in node.inputs or is_constant(value):  # nothing is left to do
        value = build.node("Identity", "same", value)
    build.take(node.outputs[0], value)


def _product(build: Builder, first: _Operand, second: _Operand, result: str) -> _Operand:
    sizes = first.sizes | second.sizes
    both = [c for c in first.letters if c in second.letters]
    batch = "".join(c for c in result if c in both)
    inner = "".join(c for c in both if c not in result)
    if not inner:
        ordered = []
        for operand in (first, second):
            operand.order("".join(c for c in result if c in operand.letters))
            shape = [sizes[c] if c in operand.letters else 1 for c in result]
            ordered.append(operand.shaped(shape))
        return _Operand(build, build.node("Mul", "product", *ordered), result)
    rows = "".join(c for c in result if c in first.letters and c not in both)
    columns = "".join(c for c in result if c in second.letters and c not in both)
    first.order(batch + rows + inner)
    second.order(batch + inner + columns)

    def count(letters: str) -> int:
        return math.prod(sizes[c] for c in letters)

    # Two axes of batch, as attention has them, stay; more are one.
    lead = [sizes[c] for c in batch] if len(batch) <= 2 else [count(batch)]
    # A matrix of all columns takes any number of axes before it.
    before = [*lead, count(rows)] if batch else [sizes[c] for c in rows] or [1]
    left = first.shaped([*before, count(inner)])
    right = second.shaped([*lead, count(inner), count(columns)])
    product = build.node("MatMul", "product", left, right)
    letters = batch + rows + columns
    return _Operand(build, _reshape(build, product, [sizes[c] for c in letters]), letters)


def _reshape(build: Builder, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    if static_shape(value) == tuple(shape):
        return value
    return build.node("Reshape", "shaped", value, build.constant("shape", shape, np.int64))
