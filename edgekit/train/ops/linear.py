"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name that torch's own documentation uses
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.elementwise import tensor_at


@op("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if call.get("transA", 0):
        a = a.t()
    if not call.get("transB", 0):
        b = b.t()
    columns = b.shape[0]
    if alpha == 1 and (c is None or (beta == 1 and c.numel() == columns == c.shape[-1:].numel())):
        return F.linear(a, b, None if c is None else c.reshape(-1))
    product = F.linear(a, b)
    if alpha != 1:
        product = product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


@op("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.get("equation"), *inputs)


@op("MatMulInteger")
def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """8-bit matrices to int32; worked out in float64, which holds the sums exactly and runs on every device.

    A vector of zero points of ``a`` goes by row, one of ``b`` by column.
    """
    left, right = a.double(), b.double()
    if (zero := tensor_at(call, 2, a_zero, a.device)) is not None:
        left = left - (zero.double().unsqueeze(-1) if zero.ndim else zero.double())
    if (zero := tensor_at(call, 3, b_zero, a.device)) is not None:
        right = right - (zero.double().unsqueeze(-2) if zero.ndim > 1 else zero.double())
    return torch.matmul(left, right).int()
