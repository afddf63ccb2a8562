"""The scene generator: digits on displays, counters, labels and walls, as a camera would see them.

Every scene follows from ``(seed, split, index)`` alone; nothing else is random, so a scene can be made
anywhere, in any order, and be the same. Boxes come from the warped outlines of the glyphs and are tight to
about a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from . import displays, labels
from .camera import shoot
from .glyphs import Points, Split
from .props import ZOOM, Ink, Maker, Prop, chance, scaling
from .surroundings import clutter, specks, wall

SIZE = 256
FEWEST, MOST = 3, 14  # digits in a scene
SMALLEST = (4.5, 10.0)  # width and height below which a digit is not worth asking for, pixels
LARGEST = 90.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """An image and its digits.

    image: uint8 [SIZE, SIZE, 3], RGB. boxes: float32 [n, 4], left, top, right, bottom in pixels. labels:
    int64 [n].
    """

    image: Pixels
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """How a kind of prop is used. digits: fewest and most. heights: of its digits, pixels. turn: spread,
    degrees.
    """

    make: Maker
    weight: float
    digits: tuple[int, int]
    heights: tuple[float, float]
    turn: float = 7.0


KINDS = (
    Kind(displays.lcd, 1.3, (1, 6), (20, 72)),
    Kind(displays.led, 1.2, (1, 6), (20, 72)),
    Kind(displays.counter, 1.4, (3, 7), (15, 40)),
    Kind(displays.dial, 0.5, (3, 6), (12, 17)),
    Kind(labels.label, 1.3, (1, 6), (15, 60), 9.0),
    Kind(labels.number_plate, 0.9, (2, 5), (16, 50)),
    Kind(labels.sticker, 0.9, (1, 2), (16, 60), 11.0),
    Kind(labels.note, 1.5, (1, 5), (22, 62), 9.0),
    Kind(labels.painted, 1.3, (1, 4), (20, 82), 10.0),
)
_WEIGHTS = np.array([kind.weight for kind in KINDS]) / sum(kind.weight for kind in KINDS)


def _homography(source: Points, target: Points) -> npt.NDArray[np.float64]:
    """The projective map [3, 3] that takes four source points to four target points (direct linear
    transform).
    """
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def _mapped(points: Points, matrix: npt.NDArray[np.float64]) -> Points:
    raised = np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1) @ matrix.T
    return (raised[:, :2] / raised[:, 2:]).astype(np.float32)


def _corners(rng: np.random.Generator, size: tuple[int, int], turn: float) -> Points:
    """Where the prop's corners go, relative to its centre: turned, and seen a little from the side."""
    half = np.array(size, np.float64) / (2 * ZOOM)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    tilt = rng.uniform(-0.09, 0.09, (4, 2)) * half.min() * 2 if chance(rng, 0.7) else np.zeros((4, 2))
    angle = np.deg2rad(np.clip(rng.normal(0, turn), -28, 28))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: Points = ((square + tilt) @ rotation).astype(np.float32)
    return turned


def _boxes(inks: tuple[Ink, ...], matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    found = []
    for ink in inks:
        points = _mapped(ink.points, matrix)
        found.append(np.concatenate([points.min(axis=0), points.max(axis=0)]))
    return np.stack(found)


def _fits(boxes: npt.NDArray[np.float32]) -> bool:
    """Whether all boxes lie in the image and are neither too small nor too large to ask for."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    inside = boxes.min() >= 1 and boxes.max() <= SIZE - 1
    return bool(inside and (sizes >= SMALLEST).all() and sizes.max() <= LARGEST)


def _find_place(
    rng: np.random.Generator, corners: Points, taken: list[npt.NDArray[np.float32]]
) -> Points | None:
    """Corners moved to where they meet no earlier prop, or None after some tries. They may leave the frame a
    bit.
    """
    low, high = corners.min(axis=0), corners.max(axis=0)
    slack = 0.06 * (high - low)
    room = SIZE - (high - low) + 2 * slack
    if (room <= 0).any():
        return None
    for _ in range(12):
        shift = -low - slack + rng.random(2) * room
        box = np.concatenate([low + shift, high + shift])
        if all(
            box[2] < other[0] or box[0] > other[2] or box[3] < other[1] or box[1] > other[3]
            for other in taken
        ):
            moved: Points = (corners + shift).astype(np.float32)
            return moved
    return None


def _paste(rng: np.random.Generator, scene: Image.Image, prop: Prop, corners: Points) -> None:
    """Warps the prop onto the scene, with its shadow."""
    margin = 10
    low = np.floor(corners.min(axis=0)).astype(int) - margin
    high = np.ceil(corners.max(axis=0)).astype(int) + margin
    width, height = (int(v) for v in high - low)
    patch = prop.patch
    source = np.array([[0, 0], [patch.width, 0], [patch.width, patch.height], [0, patch.height]], np.float32)
    back = _homography(corners - low.astype(np.float32), source)
    warped = patch.transform(
        (width, height), Image.Transform.PERSPECTIVE, tuple(back.ravel()[:8]), Image.Resampling.BILINEAR
    )
    at = (int(low[0]), int(low[1]))
    if not prop.flat and chance(rng, 0.8):
        depth = round(float(rng.uniform(0.25, 0.7)), 2)
        shade = warped.getchannel("A").point(scaling(depth))
        shade = shade.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 4.0)))
        dx, dy = (int(v) for v in rng.integers(-4, 5, 2))
        scene.paste((8, 8, 10), (at[0] + dx, at[1] + dy), shade)
    scene.paste(warped, at, warped)


def _height(rng: np.random.Generator, kind: Kind, count: int) -> int:
    """A digit height for a row of ``count``, patch pixels: small more often; the row must fit."""
    low, high = kind.heights
    high = max(low + 1, min(high, 215 / (0.78 * count + 1)))
    return round(ZOOM * float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def compose(
    rng: np.random.Generator, split: Split
) -> tuple[Image.Image, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A scene before the camera, its boxes [n, 4] and labels [n]."""
    scene = wall(rng, split, SIZE)
    clutter(rng, scene)
    wanted = int(rng.integers(FEWEST, MOST + 1))
    taken: list[npt.NDArray[np.float32]] = []
    boxes: list[npt.NDArray[np.float32]] = []
    found: list[int] = []
    tries = 0
    # More tries while there are too few; an empty wall always takes a small prop in the end.
    while len(found) < wanted and (tries < 14 or len(found) < FEWEST):
        tries += 1
        kind = KINDS[int(rng.choice(len(KINDS), p=_WEIGHTS))]
        fewest, most = kind.digits[0], min(kind.digits[1], MOST - len(found))
        if most < fewest:
            continue
        digits = tuple(int(d) for d in rng.integers(0, 10, int(rng.integers(fewest, most + 1))))
        prop = kind.make(rng, digits, _height(rng, kind, len(digits)), split)
        corners = _find_place(rng, _corners(rng, prop.patch.size, kind.turn), taken)
        if corners is None:
            continue
        size = prop.patch.size
        source = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], np.float32)
        placed = _boxes(prop.inks, _homography(source, corners))
        if not _fits(placed):
            continue
        _paste(rng, scene, prop, corners)
        taken.append(np.concatenate([corners.min(axis=0), corners.max(axis=0)]))
        boxes.append(placed)
        found += [ink.label for ink in prop.inks]
    specks(rng, scene)
    return scene, np.concatenate(boxes), np.array(found, np.int64)


def make_scene(split: Split, index: int, seed: int) -> Scene:
    """The scene with this number: the same for the same arguments, whatever was made before."""
    rng = np.random.default_rng([seed, list(Split).index(split), index])
    image, boxes, found = compose(rng, split)
    return Scene(shoot(rng, image), np.clip(boxes, 0, SIZE).astype(np.float32), found)


def scenes(split: Split, count: int, seed: int) -> Iterator[Scene]:
    """Scenes 0 to ``count`` - 1, one at a time."""
    for index in range(count):
        yield make_scene(split, index, seed)
