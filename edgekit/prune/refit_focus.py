"""Which positions of a layer's output the network's outputs depend on.

A detector's feature maps are mostly background that no detection hangs on. The squared gradient of random
projections of the outputs, ``sum_c (d v.F / d y[c, p])^2``, estimates by how much the outputs (``F``, in the
metric of :class:`edgekit.train.match.Match`) change with the values at position ``p``. Rows drawn in that
proportion make a regression whose error is the outputs' to first order, but for what channels do together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph
from edgekit.prune.refit_layers import Layer

if TYPE_CHECKING:
    from edgekit.train.match import Match

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Focus:
    """Where rows are drawn.

    Attributes:
        share: Share of the rows drawn by ``chances``; the others are drawn evenly.
        chances: By layer one array ``[positions]`` for each sample, of sum 1.
    """

    share: float
    chances: Mapping[str, Sequence[Array]]

    def draw(self, layer: str, sample: int, count: int, random: np.random.Generator) -> Array:
        """``count`` flat positions, ascending; important ones several times."""
        chances = self.chances[layer][sample].astype(np.float64)
        total = np.cumsum((1 - self.share) / chances.size + self.share * chances)
        drawn = np.searchsorted(total, random.random(count) * total[-1], side="right")
        return np.sort(np.minimum(drawn, chances.size - 1))


def find_focus(
    teacher: Graph,
    layers: Sequence[Layer],
    feeds: Sequence[Mapping[str, Array]],
    *,
    share: float,
    match: Match | None,
    seed: int,
    projections: int = 2,
) -> Focus:
    """Find out by gradients.

    Args:
        teacher: The network.
        layers: Whose targets are looked at.
        feeds: The samples.
        share: Share of the rows that will be drawn by it.
        match: What the outputs are; by default guessed.
        seed: Of the projections.
        projections: Random projections of the outputs for each sample.

    Raises:
        ModelError: The teacher has operators that cannot be differentiated.
    """
    import torch

    from edgekit.train.executor import Executor
    from edgekit.train.match import Match

    match = match or Match(teacher)
    executor = Executor(teacher).eval()
    targets = list(dict.fromkeys(layer.target for layer in layers))
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Array]] = {layer.name: [] for layer in layers}
    for feed in feeds:
        outputs = executor({name: torch.from_numpy(np.array(v)) for name, v in feed.items()}, targets)
        features = match.features(
            outputs, {name: value.detach() for name, value in outputs.items()}
        ).flatten()
        inner = [outputs[name] for name in targets]
        total = [torch.zeros_like(value) for value in inner]
        for count in range(projections):
            v = torch.randn(features.shape, generator=generator)
            keep = count + 1 < projections
            gradients = torch.autograd.grad((features * v).sum(), inner, retain_graph=keep, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient**2
        squares = dict(zip(targets, total, strict=True))
        for layer in layers:
            found[layer.name].append(_by_position(squares[layer.target].numpy(), layer))
    return Focus(share, found)


def _by_position(squares: Array, layer: Layer) -> Array:
    channels = squares.take(layer.keep, axis=layer.channel_axis)
    summed = channels.sum(layer.channel_axis, dtype=np.float64).reshape(-1)
    whole = float(summed.sum())
    even = np.full(summed.size, 1.0 / summed.size, np.float32)
    return (summed / whole).astype(np.float32) if whole > 0 and np.isfinite(whole) else even
