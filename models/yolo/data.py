"""The model's data, as hooks a recipe names: calibration images, validation images and their annotations.

Everything is made on the fly by the scene generator; nothing is stored. Each use has a seed of its own, so no
image is ever shared between training, calibration and validation; validation also draws handwritten digits
and photo regions that training and calibration never see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .glyphs import Split
from .scenes import SIZE, scenes

TRAINING_SEED = 1
CALIBRATION_SEED = 2
VALIDATION_SEED = 3
DISTILLATION_SEED, REFINEMENT_SEED = 5, 6
MONITOR_SEED = 4  # the slice that training looks at; so the validation set is measured once, at the end

CALIBRATION_IMAGES = 64
DISTILLATION_IMAGES, REFINEMENT_IMAGES = 8000, 10000
VALIDATION_IMAGES = 200

Pixels = npt.NDArray[np.uint8]


def calibration() -> Iterator[Pixels]:
    """64 images like the training ones, uint8 [256, 256, 3], RGB, one at a time."""
    for scene in scenes(Split.TRAIN, CALIBRATION_IMAGES, CALIBRATION_SEED):
        yield scene.image


def distillation() -> Iterator[Pixels]:
    """8000 images like the training ones, uint8 [256, 256, 3], RGB, one at a time; without any labels."""
    for scene in scenes(Split.TRAIN, DISTILLATION_IMAGES, DISTILLATION_SEED):
        yield scene.image


def refinement() -> Iterator[Pixels]:
    """10,000 others of the same kind."""
    for scene in scenes(Split.TRAIN, REFINEMENT_IMAGES, REFINEMENT_SEED):
        yield scene.image


def validation() -> Iterator[Pixels]:
    """200 images, uint8 [256, 256, 3], RGB, one at a time; the i-th has the id i in the annotations."""
    for scene in scenes(Split.VALIDATION, VALIDATION_IMAGES, VALIDATION_SEED):
        yield scene.image


def scene_annotations(count: int, seed: int) -> dict[str, Any]:
    """COCO annotations of the first ``count`` validation scenes with a seed."""
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes(Split.VALIDATION, count, seed)):
        images.append({"id": index, "file_name": f"{index:06d}.png", "width": SIZE, "height": SIZE})
        for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            left, top, right, bottom = box
            width, height = right - left, bottom - top
            found.append(
                {
                    "id": len(found) + 1,  # COCO's matching takes an id of 0 for "not matched"
                    "image_id": index,
                    "category_id": label,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": digit, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
    return {"images": images, "annotations": found, "categories": categories}


def validation_annotations() -> dict[str, Any]:
    """The validation set's boxes as a COCO document: ``bbox`` is left, top, width, height in pixels."""
    return scene_annotations(VALIDATION_IMAGES, VALIDATION_SEED)
