"""Attention (opset 23 and later), and rotary embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  # the name that torch's own documentation uses
from torch import Tensor

from edgekit.train.ops.base import Call, op
from edgekit.train.ops.elementwise import tensor_at
from edgekit.train.ops.logic import torch_type


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * size) to (batch, heads, length, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _allowed(
    call: Call, queries: int, keys: int, offset: int | Tensor, device: torch.device
) -> Tensor | None:
    """Which keys a query may attend by position, (queries, keys) or (batch, 1, queries, keys); None if all.

    Args:
        offset: Number of keys before the first query; a tensor has one for each sample.
    """
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    causal = bool(call.get("is_causal", 0))
    if not causal and left < 0 and right < 0:
        return None
    start = offset.reshape(-1, 1, 1, 1) if isinstance(offset, Tensor) else offset
    position = torch.arange(queries, device=device).unsqueeze(-1) + start
    key = torch.arange(keys, device=device)
    allowed = torch.ones((queries, keys), dtype=torch.bool, device=device)
    if causal:
        allowed = allowed & (key <= position)
    if left >= 0:
        allowed = allowed & (key >= position - left)
    if right >= 0:
        allowed = allowed & (key <= position + right)
    return allowed


def _bias(
    call: Call, q: Tensor, keys: int, mask: Tensor | None, past: int, valid: Tensor | None
) -> Tensor | None:
    """What is added to the scores: the float mask, and minus infinity where a key may not be attended."""
    queries = q.shape[2]
    offset = valid.long() - queries if valid is not None and not past else past
    bias = None
    if mask is not None:
        short = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        else:
            bias = mask
        bias = F.pad(bias, (0, short), value=-torch.inf) if short > 0 else bias
    limits = [_allowed(call, queries, keys, offset, q.device)]
    if valid is not None:
        limits.append(torch.arange(keys, device=q.device) < valid.reshape(-1, 1, 1, 1))
    for allowed in limits:
        if allowed is not None:
            base = q.new_zeros(()) if bias is None else bias
            bias = torch.where(allowed, base, -torch.inf)
    return bias


def _is_stepwise(x: Tensor) -> bool:
    """Half precision on the CPU serves to check a device: rounded after each step of the specification."""
    return x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)


def _softmax(scores: Tensor) -> Tensor:
    if not _is_stepwise(scores):
        return scores.softmax(-1)
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def _attend(call: Call, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Result, and the inner product that ``qk_matmul_output_mode`` chooses.

    A query without any key gives zeros.
    """
    # Both factors get the root of the scale, in the inputs' type: in half precision it matters.
    root = torch.tensor(math.sqrt(call.get("scale") or 1 / math.sqrt(q.shape[-1])), dtype=q.dtype).item()
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.matmul(q * root, k.transpose(-1, -2) * root)
    if softcap := call.get("softcap", 0.0):
        scores = torch.tanh(scores / softcap) * softcap
    mode = call.get("qk_matmul_output_mode", 0)
    shown = scores + bias if mode == 2 and bias is not None else scores
    dead = None
    if bias is not None:
        dead = bias.amax(-1, keepdim=True).isneginf()
        # A row of minus infinities has no softmax, and no gradient: leave it bare, and blank it afterwards.
        scores = scores + bias.masked_fill(dead, 0)
    if precision := call.get("softmax_precision"):
        scores = scores.to(torch_type(precision))
    weights = _softmax(scores).to(q.dtype)
    if dead is not None:
        weights = weights.masked_fill(dead, 0)
    return torch.matmul(weights, v), weights if mode == 3 else shown


def _is_plain(call: Call, q: Tensor, bias_free: bool) -> bool:
    """Whether torch's fused attention says the same: no mask but the causal one, nothing else asked for."""
    if _is_stepwise(q):
        return False
    windows = call.get("left_window_size", -1) >= 0 or call.get("right_window_size", -1) >= 0
    precision = call.get("softmax_precision")
    precise = precision is None or torch_type(precision) == q.dtype
    return bias_free and precise and not windows and not call.get("softcap", 0.0) and call.outputs < 4


@op("Attention")
def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Inputs (batch, heads, length, size); (batch, length, heads * size) with the heads as attributes.

    Further outputs: keys and values after the past ones, and the inner product of queries and keys.
    """
    mask, valid = tensor_at(call, 3, mask, q.device), tensor_at(call, 6, valid, q.device)
    packed = q.ndim == 3
    if packed:
        q, k, v = (
            _split_heads(x, call.get(heads))
            for x, heads in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
        )
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    product = None
    if _is_plain(call, q, mask is None and valid is None and past_key is None):
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=bool(call.get("is_causal", 0)),
            scale=call.get("scale"),
            enable_gqa=q.shape[1] != k.shape[1],
        )
    else:
        y, product = _attend(call, q, k, v, _bias(call, q, k.shape[2], mask, past, valid))
    if packed:
        y = y.transpose(1, 2).flatten(2)
    outputs = (y, k, v) if product is None else (y, k, v, product)
    return y if call.outputs <= 1 else outputs[: call.outputs]


def _cache(cache: Tensor, ids: Tensor | None) -> Tensor:
    """Cosines or sines as (batch, length, 1, half the size)."""
    return (cache if ids is None else cache[ids.long()]).unsqueeze(2)


@op("RotaryEmbedding")
def rotary_embedding(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Input (batch, heads, length, size), or (batch, length, heads * size) with ``num_heads``."""
    ids = tensor_at(call, 3, position_ids, x.device)
    heads = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], call.get("num_heads"), -1)
    size = call.get("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, kept = heads[..., :size], heads[..., size:]
    cos, sin = _cache(cos, ids), _cache(sin, ids)
    if call.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([turned, kept], -1) if kept.shape[-1] else turned
    return y.transpose(1, 2) if x.ndim == 4 else y.flatten(2)
