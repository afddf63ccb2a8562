"""BERT (Devlin et al., arXiv:1810.04805) with a classifier over the mean of its tokens.

The encoder is that of the paper: learned positions, post-layer normalization, GELU by the error function.
Dropout is left out: networks of this size are fine-tuned for one or two epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Added to the scores of padding in front of a softmax, as the paper's own code does.
MASKED = -10000.0


@dataclass(frozen=True)
class Size:
    """Sizes of the network; the defaults are MiniLM-L6-H384's (Wang et al., arXiv:2002.10957).

    Attributes:
        layers: Encoder layers.
        width: Values per token between layers.
        heads: Attention heads, which share the width.
        inner: Values per token inside of a feed-forward part.
        vocabulary: Tokens known.
        positions: Tokens in the longest sentence.
        classes: Logits.
    """

    layers: int = 6
    width: int = 384
    heads: int = 12
    inner: int = 1536
    vocabulary: int = 30522
    positions: int = 512
    classes: int = 2


class Layer(nn.Module):
    """Self-attention and a feed-forward part, each added to its input and normalized; [N, T, width] to the
    same."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.mix_norm = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, size.inner), nn.Linear(size.inner, width)
        self.down_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``bias`` [N, 1, 1, T] is added to the scores of every head."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]))
        read = torch.softmax(scores + bias, dim=-1) @ value
        x = self.mix_norm(x + self.mix(read.transpose(1, 2).flatten(2)))
        y: Tensor = self.down_norm(x + self.down(nn.functional.gelu(self.up(x))))
        return y

    def _split(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        return x.view(count, tokens, self.heads, width // self.heads).transpose(1, 2)


class Bert(nn.Module):
    """Tokens and mask, int32 [N, T], to logits [N, classes]; the mask is 1 for a token and 0 for padding."""

    def __init__(self, size: Size | None = None) -> None:
        super().__init__()
        self.size = size = size or Size()
        if size.width % size.heads:
            raise ValueError(f"a width of {size.width} is no multiple of {size.heads} heads")
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.positions, size.width)
        # Which of two sentences a token belongs to: always the first, so that a vector is left of the table.
        self.kind = nn.Parameter(torch.zeros(size.width))
        self.norm = nn.LayerNorm(size.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.classify = nn.Linear(size.width, size.classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The mean of the encoded tokens, [N, width]: a sentence embedding, not normalized."""
        kept = mask.to(torch.float32)
        bias = ((1.0 - kept) * MASKED)[:, None, None, :]
        places = self.positions.weight[: tokens.shape[1]] + self.kind
        x = self.norm(self.words(tokens) + places)
        for layer in self.layers:
            x = layer(x, bias)
        share = kept / kept.sum(dim=1, keepdim=True)
        mean: Tensor = (share[:, None, :] @ x).flatten(1)
        return mean

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.encode(tokens, mask))
        return logits


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the published checkpoints (``encoder.layer.0.attention.self.query.weight``) to
    this module's; the classifier is not among them, the pooler is left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "embeddings.token_type_embeddings.weight":
            found["kind"] = value[0]
        for theirs, ours in _NAMES:
            if name.startswith("encoder.layer."):
                number, rest = name.removeprefix("encoder.layer.").split(".", 1)
                if rest.startswith(f"{theirs}."):
                    found[f"layers.{number}.{ours}{rest.removeprefix(theirs)}"] = value
            elif name.startswith(f"embeddings.{theirs}."):
                found[ours + name.removeprefix(f"embeddings.{theirs}")] = value
    return found


_NAMES = (
    ("word_embeddings", "words"),
    ("position_embeddings", "positions"),
    ("LayerNorm", "norm"),
    ("attention.self.query", "query"),
    ("attention.self.key", "key"),
    ("attention.self.value", "value"),
    ("attention.output.dense", "mix"),
    ("attention.output.LayerNorm", "mix_norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "down_norm"),
)
