"""The model's data, as hooks a recipe names: images of the CIFAR-10 file that EDGEKIT_CIFAR10 names.

The data set is not part of this project. The file holds ``train_x`` and ``test_x`` (uint8 [N, 32, 32, 3],
RGB), ``train_y`` and ``test_y`` (classes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import DataError

VARIABLE = "EDGEKIT_CIFAR10"
CALIBRATION_IMAGES = 200

Pixels = npt.NDArray[np.uint8]


def calibration() -> Iterator[Pixels]:
    """200 training images, uint8 [32, 32, 3], RGB, spread over the file."""
    images = _read("train_x")
    yield from images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]


def distillation() -> Iterator[Pixels]:
    """All training images."""
    yield from _read("train_x")


def distillation_labels() -> list[int]:
    """The class of each training image."""
    return [int(label) for label in _read("train_y")]


def test() -> Iterator[Pixels]:
    """All test images."""
    yield from _read("test_x")


def test_labels() -> list[int]:
    """The class of each test image."""
    return [int(label) for label in _read("test_y")]


def _read(name: str) -> npt.NDArray[np.uint8]:
    path = os.environ.get(VARIABLE, "")
    hint = f"Set {VARIABLE} to an .npz file with train_x, train_y, test_x and test_y"
    if not path or not Path(path).is_file():
        raise DataError("CIFAR-10 is not there", where=path or VARIABLE, hint=hint)
    with np.load(path) as arrays:
        if name not in arrays:
            raise DataError(f"holds no '{name}'", where=path, valid=arrays.files, hint=hint)
        found: npt.NDArray[np.uint8] = arrays[name]
    return found
