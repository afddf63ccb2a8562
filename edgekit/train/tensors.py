"""NumPy arrays as ONNX has them, and the torch tensors that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

Array = np.ndarray[Any, Any]

#: Element types that NumPy knows only through ml_dtypes, and the torch type of the same bits.
_SAME_BITS: dict[str, tuple[Any, torch.dtype]] = {
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
}
#: Element types narrower than a byte, and the type that holds one element of them here.
_HELD_IN: dict[str, type] = {
    "int4": np.int8,
    "uint4": np.uint8,
    "int2": np.int8,
    "uint2": np.uint8,
}
#: Floats without a torch type; float32 holds their values.
_HELD_IN_FLOAT = frozenset({"float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu"})
#: Element types by ``onnx.TensorProto`` number; narrow ones as the type that holds them here.
TORCH_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
#: What 4-bit floats can be, without the sign.
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def round_to_float4(values: Tensor) -> Tensor:
    """The nearest 4-bit floats (2 exponent bits, 1 mantissa bit), ties to the even mantissa, in float32."""
    grid = torch.tensor(_FLOAT4, device=values.device)
    middle = (grid[1:] + grid[:-1]) / 2
    size = values.abs().float()
    low, high = torch.bucketize(size, middle), torch.bucketize(size, middle, right=True)
    # On a tie the two differ by one; the even one has a mantissa of 0.
    return grid[torch.where(low % 2 == 0, low, high)].copysign(values.float())


def from_array(array: Array) -> Tensor:
    """A tensor with a copy of the array's content.

    Integers of 2 and 4 bits are held in bytes, floats of 4 and 6 bits in float32.

    Raises:
        TypeError: Strings, and types that torch does not have.
    """
    name = array.dtype.name
    if name in _SAME_BITS:
        bits, dtype = _SAME_BITS[name]
        return torch.from_numpy(np.array(array).view(bits)).view(dtype)
    if name in _HELD_IN_FLOAT:
        return torch.from_numpy(array.astype(np.float32))
    if name in _HELD_IN:
        return torch.from_numpy(array.astype(_HELD_IN[name]))
    return torch.from_numpy(np.array(array))


def to_array(tensor: Tensor, dtype: np.dtype[Any] | None = None) -> Array:
    """The content as a NumPy array, in another element type if one is given."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16 or tensor.dtype in {d for _, d in _SAME_BITS.values()}:
        tensor = tensor.float()
    # A copy: what torch goes on training must not change an array that is in a graph.
    found = np.array(tensor.numpy())
    return found if dtype is None else found.astype(dtype)
