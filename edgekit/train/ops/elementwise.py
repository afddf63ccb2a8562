"""Arithmetic that works on each element alone, with ONNX's (NumPy's) broadcasting."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from edgekit.train.ops.base import Call, Kernel, op
from edgekit.train.tensors import from_array

_STORAGE_ONLY = frozenset({torch.uint16, torch.uint32, torch.uint64})


def tensor_at(call: Call, position: int, value: Tensor | None, device: torch.device) -> Tensor | None:
    """An input as a tensor, also where the caller has it as a constant only; None where it is left out."""
    if value is not None or position not in call.constants:
        return value
    return from_array(call.constants[position]).to(device)


def through_int64(kernel: Kernel) -> Kernel:
    """Run a kernel on int64 where an input is uint16, uint32 or uint64, with which torch computes little.

    What wraps round in the narrow type wraps round on the way back. Values above 2^63 compare as negative.
    """

    @functools.wraps(kernel)
    def run(call: Call, *inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        narrow = None if inputs[0] is None else inputs[0].dtype  # the others have the same type
        if narrow not in _STORAGE_ONLY:
            return kernel(call, *inputs)
        wide = (x.long() if x is not None and x.dtype in _STORAGE_ONLY else x for x in inputs)
        result = kernel(call, *wide)
        if isinstance(result, tuple):
            return result
        return result.to(narrow) if result.dtype == torch.int64 else result

    return run


@op("Add")
@through_int64
def add(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a + b


@op("Sub")
@through_int64
def sub(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a - b


@op("Mul")
@through_int64
def mul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a * b


@op("Div")
@through_int64
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided as in C: the quotient is cut towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@op("Mod")
@through_int64
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """With ``fmod`` the sign is the dividend's, as in C; without it the divisor's, as in Python."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@op("Pow")
def power(call: Call, a: Tensor, b: Tensor | None) -> Tensor:
    """The result has the base's type, whatever the exponent's is."""
    dtype = a.dtype
    constant = call.constants.get(1)
    if constant is not None and constant.size == 1 and constant.ndim <= a.ndim and a.is_floating_point():
        # A number lets torch square or take a root where it can, and keeps logarithms out of the gradient.
        return a.pow(float(constant.reshape(()).item()))
    b = tensor_at(call, 1, b, a.device)
    if b is None:
        raise ValueError(f"{call.name}: Pow has no exponent")
    if b.dtype in _STORAGE_ONLY:
        b = b.long()
    if not a.is_floating_point():
        a = a.double() if b.is_floating_point() else a.long()
    return torch.pow(a, b).to(dtype)


@op("Neg")
def neg(call: Call, x: Tensor) -> Tensor:
    return -x


@op("Abs")
@through_int64
def absolute(call: Call, x: Tensor) -> Tensor:
    return x.abs()


@op("Sign")
@through_int64
def sign(call: Call, x: Tensor) -> Tensor:
    return x.sign()


@op("Sqrt")
def sqrt(call: Call, x: Tensor) -> Tensor:
    return x.sqrt()


@op("Exp")
def exp(call: Call, x: Tensor) -> Tensor:
    return x.exp()


@op("Log")
def log(call: Call, x: Tensor) -> Tensor:
    return x.log()


@op("Reciprocal")
def reciprocal(call: Call, x: Tensor) -> Tensor:
    return x.reciprocal()


@op("Erf")
def erf(call: Call, x: Tensor) -> Tensor:
    return x.erf() if x.is_floating_point() else x.double().erf().to(x.dtype)


@op("Floor")
def floor(call: Call, x: Tensor) -> Tensor:
    return x.floor()


@op("Ceil")
def ceil(call: Call, x: Tensor) -> Tensor:
    return x.ceil()


@op("Round")
def rounded(call: Call, x: Tensor) -> Tensor:
    """Halves go to the even neighbour."""
    return x.round()


@op("Sin")
def sin(call: Call, x: Tensor) -> Tensor:
    return x.sin()


@op("Cos")
def cos(call: Call, x: Tensor) -> Tensor:
    return x.cos()


@op("Tan")
def tan(call: Call, x: Tensor) -> Tensor:
    return x.tan()


@op("Asin")
def asin(call: Call, x: Tensor) -> Tensor:
    return x.asin()


@op("Acos")
def acos(call: Call, x: Tensor) -> Tensor:
    return x.acos()


@op("Atan")
def atan(call: Call, x: Tensor) -> Tensor:
    return x.atan()


@op("Sinh")
def sinh(call: Call, x: Tensor) -> Tensor:
    return x.sinh()


@op("Cosh")
def cosh(call: Call, x: Tensor) -> Tensor:
    return x.cosh()


@op("Asinh")
def asinh(call: Call, x: Tensor) -> Tensor:
    return x.asinh()


@op("Acosh")
def acosh(call: Call, x: Tensor) -> Tensor:
    return x.acosh()


@op("Atanh")
def atanh(call: Call, x: Tensor) -> Tensor:
    return x.atanh()


@op("Min")
@through_int64
def minimum(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


@op("Max")
@through_int64
def maximum(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, inputs)


@op("Sum")
def total(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)


@op("Mean")
def mean(call: Call, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def _bound(call: Call, position: int, value: Tensor | None, attribute: str) -> float | Tensor | None:
    """A limit of Clip as a number where it is known beforehand; before opset 11 limits are attributes."""
    constant = call.constants.get(position)
    if constant is not None:
        number: float = constant.reshape(()).item()
        return number
    return call.get(attribute) if value is None else value


@op("Clip")
@through_int64
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Where the limits cross, the upper one wins."""
    lower, upper = _bound(call, 1, low, "min"), _bound(call, 2, high, "max")
    if lower is None and upper is None:
        return x
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        lower, upper = (_like(limit, x) for limit in (lower, upper))
    return torch.clamp(x, lower, upper)  # type: ignore[arg-type]  # both numbers or both tensors by now


def _like(limit: float | Tensor | None, x: Tensor) -> Tensor | None:
    return None if limit is None else torch.as_tensor(limit, dtype=x.dtype, device=x.device)
