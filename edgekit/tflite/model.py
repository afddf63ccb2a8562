"""A TFLite model in memory: what the lowering makes, the writer stores and the integer reference runs.

Names of operators and options are those of the TFLite schema (``schema.fbs``): ``CONV_2D`` with ``strideW``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DType(StrEnum):
    """Element type of a tensor, by its NumPy name."""

    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.value)


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (code - zero_point)``.

    Attributes:
        scale: float32 [1], or one for each index of ``axis``.
        zero_point: int64, as many.
        axis: Axis of the stored shape that several scales belong to.
    """

    scale: Array
    zero_point: Array
    axis: int = 0

    @classmethod
    def single(cls, scale: float, zero_point: int) -> Quantization:
        """One scale for the whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))

    def same_as(self, other: Quantization | None) -> bool:
        """Whether codes mean the same in both."""
        return (
            other is not None
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (len(self.scale) == 1 or self.axis == other.axis)
        )


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in memory.

    Attributes:
        name: Unique in the model; that of the ONNX tensor where there is one.
        shape: As stored, so NHWC for images.
        dtype: Element type.
        quantization: None for tensors that are no codes.
        data: The values of a constant, of ``shape`` and ``dtype``.
        axes: Axis i of ``shape`` is axis ``axes[i]`` of the ONNX tensor; None for tensors it does not have.
        source: Name of the ONNX tensor; empty where there is none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    quantization: Quantization | None = None
    data: Array | None = None
    axes: tuple[int, ...] | None = None
    source: str = ""

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.numpy.itemsize


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        op: Built-in operator, as ``BuiltinOperator`` of the schema names it: ``CONV_2D``.
        inputs: Tensor names; None for an optional input that is left out.
        outputs: Tensor names.
        options: Fields of its options table, by their names in the schema; enumerations by name
            (``padding="VALID"``, ``fusedActivationFunction="RELU6"``). Fields left out have the schema's
            defaults.
        source: Name of the ONNX node it comes from.
    """

    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class TfliteModel:
    """A model with one subgraph; operators stand in execution order.

    Attributes:
        tensors: By name.
        operators: In execution order.
        inputs: Tensor names by the names callers use, in order.
        outputs: Tensor names by the names callers use, in order.
        metadata: Entries of the file's metadata, by name.
        description: One line for people.
    """

    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    def counts(self) -> dict[str, int]:
        """How often each operator occurs, most frequent first."""
        found: dict[str, int] = {}
        for operator in self.operators:
            found[operator.op] = found.get(operator.op, 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
