"""YOLO: a small detector that reads meter and display digits in cluttered scenes; see README.md beside this
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .architecture import Detector


def build(weights: Path | None = None) -> Detector:
    """The detector with its committed weights (or those of another file), float32, ready to run or export."""
    # Here and not above: the package is imported wherever recipes are listed, and torch takes seconds to
    # load.
    from edgekit.train.weights import load_weights

    from .architecture import Detector

    return load_weights(Detector(), weights or Path(__file__).with_name("weights.safetensors"))
