"""Comparisons, logic and bits, and conversions between types."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.elementwise import tensor_at, through_int64
from edgekit.train.tensors import TORCH_TYPES, round_to_float4

_ROUNDING = "the three ways of rounding to float8 E8M0 are not implemented"
_NO_TYPE_BY_EXAMPLE = "types below 8 bits are held in wider ones, so a tensor does not tell that it is one"
UNSUPPORTED_CASES: dict[str, str] = {
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": _ROUNDING,
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": _ROUNDING,
    **{
        f"test_castlike_{wide}_to_{narrow}": _NO_TYPE_BY_EXAMPLE
        for wide in ("FLOAT", "FLOAT16")
        for narrow in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
    },
}


@op("Equal")
@through_int64
def equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a == b


@op("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@op("Greater")
@through_int64
def greater(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a > b


@op("GreaterOrEqual")
@through_int64
def greater_or_equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a >= b


@op("Less")
@through_int64
def less(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a < b


@op("LessOrEqual")
@through_int64
def less_or_equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a <= b


@op("Not", "BitwiseNot")
@through_int64
def invert(call: Call, x: Tensor) -> Tensor:
    return ~x


@op("And", "BitwiseAnd")
@through_int64
def conjunction(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a & b


@op("Or", "BitwiseOr")
@through_int64
def disjunction(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a | b


@op("Xor", "BitwiseXor")
@through_int64
def exclusive_or(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a ^ b


@op("BitShift")
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Amounts below 0 or beyond the width leave 0, or -1 where a negative number is shifted to the right."""
    width = 8 * a.element_size()
    value, amount = a.long(), b.long()
    fits = (amount >= 0) & (amount < width)
    amount = torch.where(fits, amount, 0)
    if call.get("direction") == "LEFT":
        return torch.where(fits, value << amount, 0).to(a.dtype)
    if a.dtype == torch.uint64:
        # int64 would draw copies of its sign in from the left: the first step clears it.
        shifted = torch.where(
            amount > 0, ((value >> 1) & torch.iinfo(torch.int64).max) >> (amount - 1).clamp(0), value
        )
        return torch.where(fits, shifted, 0).to(a.dtype)
    return torch.where(fits, value >> amount, torch.where(value < 0, -1, 0)).to(a.dtype)


@op("IsNaN")
def is_nan(call: Call, x: Tensor) -> Tensor:
    return x.isnan()


@op("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    infinite = torch.zeros_like(x, dtype=torch.bool)
    if call.get("detect_positive", 1):
        infinite = infinite | x.isposinf()
    return infinite | x.isneginf() if call.get("detect_negative", 1) else infinite


# Bits of the integers that torch holds in bytes.
_NARROW = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.UINT2: 2, TensorProto.INT2: 2}


def torch_type(number: int) -> torch.dtype:
    """The torch type by the number that ONNX gives it; types of 4 and 2 bits are held in bytes.

    Raises:
        ValueError: for a type that torch does not have, such as strings.
    """
    if number not in TORCH_TYPES:
        raise ValueError(f"torch has no type for ONNX's data type {number}")
    return TORCH_TYPES[number]


def _convert(call: Call, x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point and dtype.itemsize == 1:
        if call.get("saturate", 1):
            x = x.float().clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        elif dtype == torch.float8_e4m3fn:
            # torch saturates this one type; 464 is the last that rounds to its largest, 448.
            x = torch.where(x.abs() > 464, torch.nan, x)
    return x.to(dtype)


@op("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Between floating-point types the gradient passes; float8 saturates unless the node says not to."""
    return _cast(call, x, call.get("to"))


def _cast(call: Call, x: Tensor, number: Any) -> Tensor:
    if number == TensorProto.FLOAT4E2M1:
        # The type has no NaN; ONNX's tests make it a negative zero.
        return round_to_float4(torch.where(x.isnan(), -0.0, x))
    if number not in _NARROW:
        return _convert(call, x, torch_type(number))
    dtype, bits = torch_type(number), _NARROW[number]
    offset = 0 if dtype == torch.uint8 else 1 << (bits - 1)
    return (((x.long() + offset) & ((1 << bits) - 1)) - offset).to(dtype)


@op("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor | None) -> Tensor:
    stated = call.input_types[1] if len(call.input_types) > 1 else None
    if stated is not None:
        return _cast(call, x, stated)
    target = tensor_at(call, 1, like, x.device)
    if target is None:
        raise ValueError(f"{call.name}: CastLike has no input 1")
    return _convert(call, x, target.dtype)


@op("BitCast")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    return x.view(torch_type(call.get("to")))
