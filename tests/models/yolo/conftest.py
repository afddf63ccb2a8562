"""A small pool of scenes and a tiny network, shared by the training tests."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.models.yolo.architecture import Architecture
from edgekit.models.yolo.augment import Pool
from edgekit.models.yolo.glyphs import Split
from edgekit.models.yolo.scenes import MOST, SIZE, scenes


@pytest.fixture(scope="session")
def pool() -> Pool:
    """Four training scenes."""
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    boxes = np.zeros((4, MOST, 4), np.float32)
    labels = np.full((4, MOST), -1, np.int64)
    for i, scene in enumerate(scenes(Split.TRAIN, 4, 11)):
        images[i] = scene.image
        boxes[i, : len(scene.boxes)] = scene.boxes
        labels[i, : len(scene.labels)] = scene.labels
    return Pool(images, boxes, labels)


@pytest.fixture
def tiny() -> Architecture:
    """A network that trains in milliseconds."""
    return Architecture(channels=(8, 16, 16, 16, 16), depths=(1, 1, 1, 1), box_width=16, class_width=16)
