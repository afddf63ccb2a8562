"""The state of a training run on disk, whole or not at all."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import DataError, UsageError
from edgekit.files import write_whole

FORMAT = 1


def save_checkpoint(path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, str]) -> None:
    """Write a run's state.

    Args:
        path: The file; an older one is replaced.
        state: Tensors, numbers, strings, and lists and dicts of them.
        fingerprint: What the run was made with.

    Raises:
        OutputError: It cannot be written.
    """
    stream = io.BytesIO()
    torch.save({"format": FORMAT, "fingerprint": dict(fingerprint), "state": dict(state)}, stream)
    write_whole(path, stream.getvalue())


def load_checkpoint(path: Path, fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """Read a run's state.

    Args:
        path: A file that :func:`save_checkpoint` wrote.
        fingerprint: What the run that continues is made with.

    Raises:
        DataError: The file is damaged or no checkpoint.
        UsageError: It belongs to a run with other networks or options; the message names them.
    """
    try:
        # Only tensors and plain values: a checkpoint from elsewhere cannot run code.
        content = torch.load(path, weights_only=True)
        found, state = content["fingerprint"], content["state"]
        version = content["format"]
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"is no readable checkpoint: {reason}",
            where=str(path),
            hint="Delete it to start anew",
        ) from error
    if version != FORMAT:
        raise DataError(f"has format {version}", where=str(path), valid=(FORMAT,), hint="Delete it")
    other = [key for key in sorted({*found, *fingerprint}) if found.get(key) != fingerprint.get(key)]
    if other:
        listed = "; ".join(f"{key} was {found.get(key)}, now {fingerprint.get(key)}" for key in other)
        raise UsageError(
            f"the checkpoint belongs to another run: {listed}",
            where=str(path),
            hint="Delete it to start anew",
        )
    return dict(state)
