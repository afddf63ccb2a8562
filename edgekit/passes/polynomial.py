"""Reading arithmetic nodes as a polynomial, so that every way of writing a formula is one and the same.

``0.5 * x * (1 + t)``, ``x * (0.5 + 0.5 t)`` and ``(x / 2) * t + x / 2`` are all ``{x: 0.5, x t: 0.5}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.passes.subgraph import scalar

#: Coefficient by the exponents of the symbols.
Terms = dict[tuple[int, ...], float]

_MAX_DEGREE = 4
_MAX_DEPTH = 12

#: Relative difference of coefficients that counts as rounding: float16 constants are off by 5e-4.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Polynomial:
    """A tensor as a polynomial of others.

    Attributes:
        terms: Coefficient by exponents; no zeros.
        nodes: The nodes that compute it from the symbols.
    """

    terms: Terms
    nodes: frozenset[ir.Node] = frozenset()

    def equals(self, terms: Terms) -> bool:
        """Whether the coefficients are those of ``terms`` up to the rounding of stored constants."""
        return self.terms.keys() == terms.keys() and all(
            abs(self.terms[key] - wanted) <= _TOLERANCE * abs(wanted) for key, wanted in terms.items()
        )


def polynomial(value: ir.Value | None, symbols: Sequence[ir.Value], depth: int = 0) -> Polynomial | None:
    """``value`` as a polynomial of ``symbols`` with constant coefficients; None if it is none."""
    if value is None or depth > _MAX_DEPTH:
        return None
    for index, symbol in enumerate(symbols):
        if value is symbol:
            return Polynomial({tuple(int(i == index) for i in range(len(symbols))): 1.0})
    zero = (0,) * len(symbols)
    number = scalar(value)
    if number is not None:
        return Polynomial({zero: number} if number else {})
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow", "Neg"):
        return None
    parts = [polynomial(v, symbols, depth + 1) for v in node.inputs]
    first, second = parts[0], parts[1] if len(parts) > 1 else Polynomial({zero: -1.0})
    if first is None or second is None:
        return None
    terms = _combine(node.op_type, first.terms, second.terms, zero)
    if terms is None or any(sum(key) > _MAX_DEGREE for key in terms):
        return None
    return Polynomial(terms, first.nodes | second.nodes | {node})


def _combine(op: str, a: Terms, b: Terms, zero: tuple[int, ...]) -> Terms | None:
    if op in ("Add", "Sub"):
        return _add(a, b, -1.0 if op == "Sub" else 1.0)
    if op in ("Mul", "Neg"):
        return _multiply(a, b)
    # Division and powers only by a number.
    if set(b) != {zero}:
        return None
    number = b[zero]
    if op == "Div":
        return _multiply(a, {zero: 1 / number})
    if number not in range(1, _MAX_DEGREE + 1):
        return None
    result = a
    for _ in range(int(number) - 1):
        result = _multiply(result, a)
    return result


def _add(a: Terms, b: Terms, sign: float) -> Terms:
    result = dict(a)
    for key, coefficient in b.items():
        result[key] = result.get(key, 0.0) + sign * coefficient
    return {key: c for key, c in result.items() if c}


def _multiply(a: Terms, b: Terms) -> Terms:
    result: Terms = {}
    for first, p in a.items():
        for second, q in b.items():
            key = tuple(i + j for i, j in zip(first, second, strict=True))
            result[key] = result.get(key, 0.0) + p * q
    return {key: c for key, c in result.items() if c}
