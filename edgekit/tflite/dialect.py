"""What a runtime of ``.tflite`` files takes beside the operators that all of them know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How networks are written for a runtime.

    Attributes:
        mixed: Whether nodes between integer ones may compute in float.
        lookups: Whether rows of stored tables are looked up in the ``.tflite``; else before it.
        avoid: Operators that it runs badly; see :func:`edgekit.tflite.lower.lower.lower`.
    """

    mixed: bool = False
    lookups: bool = True
    avoid: frozenset[str] = frozenset()


#: Integers alone, all operators.
PLAIN = Dialect()
