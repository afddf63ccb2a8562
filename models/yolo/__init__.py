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
    from safetensors.torch import load_file

    from .architecture import Detector

    model = Detector()
    state = load_file(weights if weights is not None else Path(__file__).with_name("weights.safetensors"))
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"the weights do not fit the architecture: {', '.join(sorted(wrong))}")
    return model.eval()
