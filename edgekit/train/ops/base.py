"""What a kernel is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Call:
    """One node, as its kernel sees it.

    Attributes:
        name: The node's name, for messages.
        op: Operator type.
        attributes: Python values: int, float, str, lists of them, NumPy arrays for tensors.
        opset: Version of the node's domain.
        constants: By input position, the inputs that are known before any sample is: shapes, axes, pads.
        outputs: Number of outputs asked for; a trailing optional one that nobody reads is not counted.
        input_shapes: Shapes that the graph states for the inputs, with the batch that it was captured with.
        output_shapes: Shapes that the graph states for the outputs, with the batch that it was captured with.
        input_types: Element types of the inputs as ``onnx.TensorProto`` numbers them, where the graph has
            them; integers narrower than a byte arrive in bytes, and only this tells what they are.
        output_types: The same for the outputs.
        training: Whether the executor is in training mode.
        batch: How many times larger the batch is than the one that the graph was captured with.
    """

    name: str
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    constants: Mapping[int, Array] = field(default_factory=dict)
    outputs: int = 1
    input_shapes: tuple[tuple[int, ...] | None, ...] = ()
    output_shapes: tuple[tuple[int, ...] | None, ...] = ()
    input_types: tuple[int | None, ...] = ()
    output_types: tuple[int | None, ...] = ()
    training: bool = False
    batch: int = 1

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or what the specification says when it is left out."""
        return self.attributes.get(attribute, default)

    def values(self, position: int, value: Tensor | None) -> list[Any] | None:
        """Content of a shape-like input as a list, without a trip to the device where it is constant."""
        if position in self.constants:
            return list(self.constants[position].reshape(-1).tolist())
        return None if value is None else list(value.detach().reshape(-1).tolist())


Kernel = Callable[..., Tensor | tuple[Tensor, ...]]

_KERNELS: dict[tuple[str, str], Kernel] = {}


def op(*names: str, domain: str = "") -> Callable[[Kernel], Kernel]:
    """Register a kernel ``(call, *inputs) -> output or outputs`` for the operators named.

    An optional input that is left out arrives as None, also at the end.
    """

    def register(kernel: Kernel) -> Kernel:
        for name in names:
            if (domain, name) in _KERNELS:
                raise ValueError(f"two kernels for {name}")
            _KERNELS[domain, name] = kernel
        return kernel

    return register


def kernel_for(op_type: str, domain: str = "") -> Kernel | None:
    """The kernel, or None for an operator that the executor does not run."""
    return _KERNELS.get((domain, op_type))


def supported_ops() -> dict[tuple[str, str], Kernel]:
    """Every kernel by domain and operator type."""
    return dict(sorted(_KERNELS.items()))
