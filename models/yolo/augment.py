"""Training batches from a pool of scenes: mosaics, shifts, scale and colour. No flips: a mirrored digit is
none.

A pool is made once per generator version and kept as a memory-mapped array, so that an epoch costs reading,
not drawing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .assign import Truth
from .glyphs import Split
from .scenes import MOST, SIZE, make_scene, scenes

_GREY = 0.45  # what shows where a shifted image ends


@dataclass(frozen=True)
class Pool:
    """Ready scenes. images: uint8 [n, SIZE, SIZE, 3]. boxes: float32 [n, MOST, 4]. labels: int64 [n, MOST],
    -1: none.
    """

    images: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Strength:
    """How much a batch is changed.

    mosaic: share of images patched together from four. scale: largest enlargement factor, and its inverse.
    shift: of the image, over its size. light: spread of brightness and contrast.
    """

    mosaic: float = 0.3
    scale: float = 1.3
    shift: float = 0.1
    light: float = 0.15


# What to draw: the images' file, the seed and a range of scenes. What comes back: the range's start, and the
# boxes
# and labels of each scene.
Task = tuple[str, int, int, int]
Drawn = tuple[int, list[npt.NDArray[np.float32]], list[npt.NDArray[np.int64]]]


def _draw(task: Task) -> Drawn:
    """Draws a range of scenes into the images' file."""
    path, seed, start, stop = task
    images = np.load(path, mmap_mode="r+")
    boxes, labels = [], []
    for index in range(start, stop):
        scene = make_scene(Split.TRAIN, index, seed)
        images[index] = scene.image
        boxes.append(scene.boxes)
        labels.append(scene.labels)
    images.flush()
    return start, boxes, labels


@lru_cache(maxsize=1)
def generator_hash() -> str:
    """A hash of what the generator draws (its first scenes): a pool of another version is never used."""
    digest = hashlib.sha256()
    for scene in scenes(Split.TRAIN, 48, 0):
        digest.update(scene.image.tobytes() + scene.boxes.tobytes() + scene.labels.tobytes())
    return digest.hexdigest()[:12]


def _drawn(tasks: list[Task], workers: int) -> Iterator[Drawn]:
    """The tasks' results as they come, from other processes where there is more than one worker."""
    if workers == 1:
        yield from map(_draw, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_draw, tasks)


def open_pool(folder: Path, count: int, seed: int, workers: int = 1) -> Pool:
    """The pool of ``count`` training scenes, drawn now unless the folder has it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"scenes-{seed}-{count}-{generator_hash()}"
    images_file, truth_file = stem.with_suffix(".npy"), stem.with_suffix(".npz")
    if not truth_file.exists():
        np.lib.format.open_memmap(images_file, "w+", np.uint8, (count, SIZE, SIZE, 3)).flush()
        boxes = np.zeros((count, MOST, 4), np.float32)
        labels = np.full((count, MOST), -1, np.int64)
        tasks = [(str(images_file), seed, at, min(at + 100, count)) for at in range(0, count, 100)]
        for start, found, named in _drawn(tasks, workers):
            for offset, (box, label) in enumerate(zip(found, named, strict=True)):
                boxes[start + offset, : len(box)] = box
                labels[start + offset, : len(label)] = label
        # Written last and whole: its presence says that the pool is complete.
        partial = truth_file.with_suffix(".part.npz")
        np.savez(partial, boxes=boxes, labels=labels)
        partial.replace(truth_file)
    truth = np.load(truth_file)
    return Pool(np.load(images_file, mmap_mode="r"), truth["boxes"], truth["labels"])


def _kept(
    boxes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Boxes [n, 4] cut to a window (corners low, high), and their labels; mostly hidden or tiny ones become
    -1.
    """
    cut = np.concatenate([np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)], axis=1)
    before = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    sides = cut[:, 2:] - cut[:, :2]
    good = (sides.prod(axis=1) >= 0.6 * before) & (sides >= (3.0, 7.0)).all(axis=1)
    return cut.astype(np.float32), np.where(good, labels, -1)


def _mosaic(
    rng: np.random.Generator, pool: Pool, four: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """One image of four windows that meet in a random point, with up to 4 * MOST boxes."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    cx, cy = (int(v) for v in rng.integers(round(0.3 * SIZE), round(0.7 * SIZE), 2))
    boxes, labels = [], []
    quarters = ((0, 0, cx, cy), (cx, 0, SIZE, cy), (0, cy, cx, SIZE), (cx, cy, SIZE, SIZE))
    for index, (left, top, right, bottom) in zip(four, quarters, strict=True):
        x = int(rng.integers(0, SIZE - (right - left) + 1))
        y = int(rng.integers(0, SIZE - (bottom - top) + 1))
        image[top:bottom, left:right] = pool.images[index, y : y + bottom - top, x : x + right - left]
        moved = pool.boxes[index] + np.array([left - x, top - y] * 2, np.float32)
        low, high = np.array([left, top], np.float32), np.array([right, bottom], np.float32)
        cut, named = _kept(moved, pool.labels[index], low, high)
        boxes.append(cut)
        labels.append(named)
    return image, np.concatenate(boxes), np.concatenate(labels)


def _gather(
    rng: np.random.Generator, pool: Pool, indices: npt.NDArray[np.int64], mosaic: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images [B, SIZE, SIZE, 3], boxes [B, 4 * MOST, 4] and labels [B, 4 * MOST]."""
    count = len(indices)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    boxes = np.zeros((count, 4 * MOST, 4), np.float32)
    labels = np.full((count, 4 * MOST), -1, np.int64)
    for i, index in enumerate(indices):
        if rng.random() < mosaic:
            four = np.append(rng.integers(0, len(pool), 3), index)
            images[i], boxes[i], labels[i] = _mosaic(rng, pool, rng.permutation(four))
        else:
            images[i] = pool.images[index]
            boxes[i, :MOST], labels[i, :MOST] = pool.boxes[index], pool.labels[index]
    return images, boxes, labels


def _packed(boxes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Truth:
    """Truth with the valid boxes first and no wider than the fullest image needs."""
    valid = labels >= 0
    order = np.argsort(~valid, axis=1, kind="stable")
    most = max(1, int(valid.sum(axis=1).max()))
    order = order[:, :most]
    packed = np.take_along_axis(labels, order, axis=1)
    sorted_boxes = np.take_along_axis(boxes, order[..., None], axis=1)
    return Truth(
        torch.from_numpy(sorted_boxes), torch.from_numpy(packed).clamp(min=0), torch.from_numpy(packed >= 0)
    )


def batch(
    rng: np.random.Generator, pool: Pool, indices: npt.NDArray[np.int64], strength: Strength
) -> tuple[Tensor, Truth]:
    """Augmented images [B, 3, SIZE, SIZE] in 0..1, channels last, and their digits."""
    raw, boxes, labels = _gather(rng, pool, indices, strength.mosaic)
    count = len(indices)
    images = torch.from_numpy(raw).permute(0, 3, 1, 2).to(torch.float32) / 255 - _GREY
    zoom = np.exp(rng.uniform(-1, 1, (count, 1)) * np.log(strength.scale)).astype(np.float32)
    move = rng.uniform(-strength.shift, strength.shift, (count, 2)).astype(np.float32)
    # Scene point p (in -1..1) lands at zoom * p + 2 * move; grid_sample asks for the way back.
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom[:, 0]
    theta[:, :, 2] = -2 * move / zoom
    grid = functional.affine_grid(torch.from_numpy(theta), [count, 3, SIZE, SIZE], align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)
    contrast = np.exp(rng.normal(0, strength.light, (count, 1, 1, 1)))
    light = rng.normal(0, 0.6 * strength.light, (count, 1, 1, 1)) + rng.normal(
        0, 0.2 * strength.light, (count, 3, 1, 1)
    )
    images = images * torch.from_numpy(contrast.astype(np.float32)) + torch.from_numpy(
        light.astype(np.float32)
    )
    images = (images + _GREY).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
    middle = SIZE / 2
    shift = np.tile(move * SIZE + middle - middle * zoom, (1, 2))
    moved = boxes * zoom[:, :, None] + shift[:, None]
    low, high = np.zeros(2, np.float32), np.full(2, SIZE, np.float32)
    cut, named = _kept(moved.reshape(-1, 4), labels.reshape(-1), low, high)
    return images, _packed(cut.reshape(boxes.shape), named.reshape(labels.shape))
