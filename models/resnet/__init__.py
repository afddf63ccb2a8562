"""ResNet for CIFAR-10: a small image classifier; see README.md beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .architecture import ResNet

#: Of the training images' channels, after division by 255.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DEPTH = 56


def build(weights: Path | None = None, depth: int = DEPTH) -> ResNet:
    """The classifier with its committed weights (or those of another file), float32, in evaluation mode."""
    # Here and not above: the package is imported wherever recipes are listed, and torch takes seconds.
    from edgekit.train.weights import load_weights

    from .architecture import ResNet

    return load_weights(ResNet(depth), weights or Path(__file__).with_name("weights.safetensors"))
