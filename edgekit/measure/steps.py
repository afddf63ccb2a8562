"""How many steps the codes of two runtimes are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.target import CodeDifference

Array = np.ndarray[Any, Any]


@dataclass
class _Sum:
    """Differences of one tensor over all samples."""

    op: str
    count: int = 0
    unit: int = 1
    different: int = 0
    squares: float = 0.0
    largest: int = 0

    def add(self, a: Array, b: Array) -> None:
        # A step of 8 bits before a tensor of 16 is 256 of its own.
        self.unit = 256 if a.dtype.itemsize == 2 else 1
        steps = np.abs(a.astype(np.int64).ravel() - b.astype(np.int64).ravel())
        self.count += steps.size
        self.different += int(np.count_nonzero(steps))
        self.squares += float(np.square(steps, dtype=np.float64).sum())
        self.largest = max(self.largest, int(steps.max(initial=0)))

    def row(self, tensor: str) -> CodeDifference:
        count = max(self.count, 1)
        rms = math.sqrt(self.squares / count) / self.unit
        return CodeDifference(tensor, self.op, self.different / count, rms, -(-self.largest // self.unit))


@dataclass
class StepTable:
    """Differences of one runtime's codes from the reference's, by tensor, over all samples."""

    sums: dict[str, _Sum] = field(default_factory=dict)

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], ops: Mapping[str, str]) -> None:
        """One sample; ``ops`` says what computes each tensor."""
        for name, codes in expected.items():
            if name in found:
                self.sums.setdefault(name, _Sum(ops.get(name, ""))).add(codes, found[name])

    def rows(self) -> tuple[CodeDifference, ...]:
        """One entry for each tensor that both have."""
        return tuple(total.row(name) for name, total in self.sums.items())
