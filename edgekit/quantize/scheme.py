"""The number formats of a target, as its ``hardware.toml`` states them in ``[scheme]``."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit.errors import UsageError


class Format(StrEnum):
    """Element type of a quantized tensor; ``float32`` is no quantization."""

    UINT8 = "uint8"
    INT8 = "int8"
    UINT16 = "uint16"
    INT16 = "int16"
    FLOAT32 = "float32"

    @property
    def bits(self) -> int:
        return {"uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "float32": 32}[self.value]

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if self is Format.FLOAT32:
            raise ValueError("float32 has no codes")
        if self.value.startswith("u"):
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


class OpRule(BaseModel):
    """How one op type is quantized.

    Attributes:
        weight_axis: Axis of the second input along which weights have scales of their own; None for an op
            without weights or with one scale for all.
        moves: True when the op only moves values, so that inputs and output share scale and zero point.
        fuses: Activations that the op absorbs when they follow it directly; the tensor between has no format.
        float_output: True when the kernel can return float at no cost, so that a result which only float
            nodes read is not quantized.
        range: Range of the output that the op's definition fixes, such as ``[0, 1]`` for Sigmoid.
        keeps_range: True when the kernels write ``range`` (or ``wide_range``) whatever scale the output has:
            a Concat then takes it with a scale of its own.
        only: Values that attributes must have where a node sets them, such as ``mode = "nearest"``.
        wide: Whether the op also runs in the scheme's ``raised`` format, where that is an integer one.
        wide_range: What ``range`` is in that format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_axis: int | None = None
    moves: bool = False
    fuses: tuple[str, ...] = ()
    float_output: bool = False
    range: tuple[float, float] | None = None
    keeps_range: bool = False
    only: dict[str, str] = Field(default_factory=dict)
    wide: bool = True
    wide_range: tuple[float, float] | None = None


class Scheme(BaseModel):
    """What a target computes in.

    Attributes:
        activation: Format of activations, asymmetric, one scale per tensor.
        weight: Format of weights, symmetric, zero point 0.
        bias_bits: Bits of biases, whose scale is input scale x weight scale.
        raised: What a tensor becomes when 8 bits are too few. Where that is an integer format, the nodes that
            compute and read the tensor run in it; else they run in float.
        max_raised: How many tensors may be raised before the result says that the budget cannot be held.
        tail: What the arithmetic between the last convolution and the outputs computes in. ``float``, or
            ``integer`` on hardware that has no float: then it runs in the ``raised`` format where that is an
            integer one, and no node is left in float to save conversions.
        integer_inputs: Whether the network takes codes: nodes that only move values of an input then run on
            integers too.
        clips_at_zero: Whether kernels absorb a Clip only where its lower bound is 0.
        opset: Lowest ONNX opset whose QuantizeLinear has what is needed.
        ops: Rule of every op type that the target computes in integers. All others stay in float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: Format = Format.UINT8
    weight: Format = Format.INT8
    bias_bits: int = 32
    raised: Format = Format.FLOAT32
    max_raised: int = Field(default=8, ge=0)
    tail: Literal["float", "integer"] = "float"
    integer_inputs: bool = False
    clips_at_zero: bool = False
    opset: int = 21
    ops: dict[str, OpRule]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weight not in (Format.INT8, Format.INT16):
            raise ValueError("weights are symmetric: weight must be int8 or int16")
        if self.activation is Format.FLOAT32:
            raise ValueError("activation must be an integer format")
        return self

    @property
    def wide(self) -> Format | None:
        """The integer format of raised tensors; None where they are float."""
        return None if self.raised is Format.FLOAT32 else self.raised

    @classmethod
    def load(cls, table: dict[str, Any], *, where: str) -> Scheme:
        """Read the ``[scheme]`` table of a ``hardware.toml``.

        Raises:
            UsageError: A key is unknown or a value is out of range.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "scheme"
            raise UsageError(f"[scheme] {key}: {first['msg']}", where=where) from error
