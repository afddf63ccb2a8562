"""The committed weights of a reference model: half-precision safetensors by parameter name."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the weights as half-precision safetensors; counters of batch norm are left out."""
    from safetensors.torch import save_file

    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    partial = path.with_suffix(".part")
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    partial.replace(path)


def load_weights(model: _Module, path: Path) -> _Module:
    """Puts weights from :func:`save_weights` into a model, float32, and sets it to evaluation mode.

    Raises:
        ValueError: A weight is missing or not known to the model.
        RuntimeError: A weight has another shape.
    """
    from safetensors.torch import load_file

    state = load_file(path)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"the weights do not fit the architecture: {', '.join(sorted(wrong))}")
    return model.eval()
