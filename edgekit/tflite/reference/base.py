"""How integer kernels are written and found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import ModelError
from edgekit.tflite.model import Array, Operator, Tensor


@dataclass(frozen=True)
class Call:
    """One operator with all that it computes from.

    Attributes:
        operator: The operator.
        inputs: Tensors it reads; None for an optional input that is left out.
        outputs: Tensors it writes.
        values: Arrays of the inputs, in their order.
    """

    operator: Operator
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor]
    values: Sequence[Array | None]

    def value(self, index: int) -> Array:
        """The array of an input that must be there."""
        found = self.values[index]
        if found is None:
            raise ValueError(f"{self.operator.op} has no input {index}")
        return found

    def input(self, index: int) -> Tensor:
        """The tensor of an input that must be there."""
        found = self.inputs[index]
        if found is None:
            raise ValueError(f"{self.operator.op} has no input {index}")
        return found

    def option(self, name: str, default: Any) -> Any:
        return self.operator.options.get(name, default)


#: Computes the arrays of all outputs.
Kernel = Callable[[Call], Sequence[Array]]

_KERNELS: dict[str, Kernel] = {}


def kernel(*ops: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of operators."""

    def register(function: Kernel) -> Kernel:
        for op in ops:
            _KERNELS[op] = function
        return function

    return register


def kernel_for(op: str) -> Kernel:
    """The kernel of an operator.

    Raises:
        ModelError: There is none.
    """
    if op not in _KERNELS:
        raise ModelError(f"the integer reference has no kernel for {op}", valid=sorted(_KERNELS))
    return _KERNELS[op]


def supported_ops() -> tuple[str, ...]:
    """All operators that have a kernel, sorted."""
    return tuple(sorted(_KERNELS))
