"""What is behind and between the props: walls from photographs or made up, and things without digits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from .glyphs import FONTS, Split, datasets, text_mask
from .props import WORDS, Colour, chance, choose, hsv, screw, shaded

# Photos are cut at three quarters of their width: training sees the left part, validation the right one.
PHOTO_BORDER = 0.75


@lru_cache(maxsize=1)
def _photos() -> tuple[Image.Image, ...]:
    load = datasets().load_sample_image
    return tuple(Image.fromarray(load(name)) for name in ("china.jpg", "flower.jpg"))


def photo_region(split: Split, photo: int) -> tuple[int, int, int, int]:
    """The part of a photo a split may use: left, top, right, bottom in its pixels."""
    width, height = _photos()[photo].size
    border = round(width * PHOTO_BORDER)
    return (0, 0, border, height) if split is Split.TRAIN else (border, 0, width, height)


def _photo_wall(rng: np.random.Generator, split: Split, size: int) -> Image.Image:
    photo = int(rng.integers(len(_photos())))
    left, top, right, bottom = photo_region(split, photo)
    side = int(rng.integers(70, min(right - left, bottom - top, 300) + 1))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(top, bottom - side + 1))
    image = _photos()[photo].resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    if chance(rng, 0.5):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if chance(rng, 0.5):
        image = image.transpose(choose(rng, (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180)))
    if chance(rng, 0.4):  # other colours: the channels change places
        order = rng.permutation(3)
        bands = image.split()
        image = Image.merge("RGB", tuple(bands[i] for i in order))
    return ImageEnhance.Color(image).enhance(rng.uniform(0.1, 1.2))


def _noise(rng: np.random.Generator, shape: tuple[int, int], size: int) -> npt.NDArray[np.float32]:
    """Smooth noise [size, size], about -1..1, from a coarse random grid."""
    grid = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _plain_wall(rng: np.random.Generator, size: int) -> Image.Image:
    """Painted wall, brushed metal, wood or concrete, from noise of different grain."""
    kind = choose(rng, ("paint", "metal", "wood", "concrete"))
    base = {
        "paint": hsv(rng.random(), rng.uniform(0.05, 0.6), rng.uniform(0.25, 0.95)),
        "metal": hsv(0.6, rng.uniform(0.0, 0.1), rng.uniform(0.35, 0.75)),
        "wood": hsv(rng.uniform(0.05, 0.11), rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.75)),
        "concrete": hsv(0.1, rng.uniform(0.0, 0.12), rng.uniform(0.4, 0.8)),
    }[kind]
    grain = _noise(rng, (5, 5), size) * rng.uniform(2, 14)
    if kind == "metal":
        grain = grain + _noise(rng, (size, 3), size) * rng.uniform(3, 9)
    elif kind == "wood":
        bend = _noise(rng, (4, 4), size) * 6
        rows = np.arange(size, dtype=np.float32)[:, None] * rng.uniform(0.15, 0.4) + bend
        grain = grain + np.sin(rows) * rng.uniform(4, 14) + _noise(rng, (size // 2, 8), size) * 5
    elif kind == "concrete":
        grain = grain + _noise(rng, (40, 40), size) * 6 + _noise(rng, (128, 128), size) * 7
    wall = np.clip(np.asarray(base, np.float32) + grain[..., None], 0, 255).astype(np.uint8)
    image = Image.fromarray(wall)
    if kind in ("metal", "wood") and chance(rng, 0.5):
        image = image.transpose(Image.Transpose.ROTATE_90)
    return image


def _seams(rng: np.random.Generator, wall: Image.Image) -> None:
    """A panel edge or two with screws: what meters are mounted on."""
    draw, size = ImageDraw.Draw(wall), wall.size[0]
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(10, size - 10))
        for offset, colour in ((0, (28, 28, 30)), (2, (200, 200, 196))):
            line = (
                (at + offset, 0, at + offset, size)
                if chance(rng, 0.5)
                else (0, at + offset, size, at + offset)
            )
            draw.line(line, fill=colour, width=1)
    for _ in range(int(rng.integers(0, 5))):
        x, y = (int(v) for v in rng.integers(8, size - 8, 2))
        screw_wall(wall, (x, y), int(rng.integers(3, 8)), rng.uniform(0, 3))


def screw_wall(wall: Image.Image, centre: tuple[int, int], radius: int, turn: float) -> None:
    """A screw with antialiased edges, drawn large and shrunk."""
    big = Image.new("RGBA", (radius * 8, radius * 8))
    screw(big, (radius * 4, radius * 4), radius * 4 - 4, turn)
    small = big.resize((radius * 2, radius * 2), Image.Resampling.BOX)
    wall.paste(small, (centre[0] - radius, centre[1] - radius), small)


def wall(rng: np.random.Generator, split: Split, size: int) -> Image.Image:
    """A background, RGB [size, size]."""
    image = _photo_wall(rng, split, size) if chance(rng, 0.62) else _plain_wall(rng, size)
    if chance(rng, 0.3):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    if chance(rng, 0.3):
        _seams(rng, image)
    return image


def _cable(rng: np.random.Generator, scene: Image.Image) -> None:
    """A cable hanging across the scene, with a lit upper side."""
    size = scene.size[0]
    t = np.linspace(0, 1, 24)
    y0, y1, sag = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(-90, 90)
    points = [(size * 2 * a, 2 * (y0 + (y1 - y0) * a + sag * a * (1 - a))) for a in t]
    if chance(rng, 0.5):
        points = [(y, x) for x, y in points]
    thick = int(rng.integers(4, 14))
    colour = hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 0.8))
    layer = Image.new("RGBA", (size * 2, size * 2))
    draw = ImageDraw.Draw(layer)
    draw.line(points, fill=(*shaded(colour, 0.6), 255), width=thick, joint="curve")
    above = [(x, y - thick / 6) for x, y in points]
    draw.line(above, fill=(*shaded(colour, 1.2), 255), width=max(1, thick // 2), joint="curve")
    small = layer.reduce(2)
    scene.paste(small, (0, 0), small)


def _lettering(rng: np.random.Generator, scene: Image.Image) -> None:
    """A word without letters that look like digits, somewhere."""
    word = text_mask(choose(rng, WORDS), choose(rng, FONTS), int(rng.integers(12, 34)))
    light = chance(rng, 0.5)
    ink: Colour = (240, 240, 236) if light else (26, 26, 30)
    layer = Image.new("RGBA", (word.shape[1], word.shape[0]), (*ink, 0))
    layer.putalpha(Image.fromarray(word))
    layer = layer.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    at = tuple(int(rng.integers(-8, max(1, scene.size[0] - side + 8))) for side in layer.size)
    scene.paste(layer, (at[0], at[1]), layer)


def _ring(rng: np.random.Generator, scene: Image.Image) -> None:
    """A knob, lamp or bare dial: circles, ticks, a pointer."""
    radius = int(rng.integers(8, 34))
    side = 4 * radius
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    colour = hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.15, 0.95))
    draw.ellipse((0, 0, side - 1, side - 1), fill=(*shaded(colour, 0.5), 255))
    inset = side // 12
    draw.ellipse((inset, inset, side - 1 - inset, side - 1 - inset), fill=(*colour, 255))
    middle = side / 2
    if radius > 14 and chance(rng, 0.6):
        for angle in np.linspace(0.7 * np.pi, 2.3 * np.pi, 11):
            cos, sin = np.cos(angle), np.sin(angle)
            start, end = 0.7 * middle, 0.82 * middle
            line = (middle + start * cos, middle + start * sin, middle + end * cos, middle + end * sin)
            draw.line(line, fill=(*shaded(colour, 0.3), 255), width=2)
    turn = rng.uniform(0, 2 * np.pi)
    tip = (middle + 0.66 * middle * np.cos(turn), middle + 0.66 * middle * np.sin(turn))
    draw.line((middle, middle, *tip), fill=(*shaded(colour, 0.25), 255), width=max(3, radius // 5))
    small = layer.reduce(2)
    at = rng.integers(-radius, scene.size[0] - radius, 2)
    scene.paste(small, (int(at[0]), int(at[1])), small)


def _panel(rng: np.random.Generator, scene: Image.Image) -> None:
    """A blank plate, perhaps with slots: a vent, a cover, an empty label."""
    width, height = (int(v) for v in rng.integers(24, 110, 2))
    colour = hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 0.95))
    layer = Image.new("RGBA", (width * 2, height * 2))
    draw = ImageDraw.Draw(layer)
    draw.rounded_rectangle(
        (0, 0, 2 * width - 1, 2 * height - 1), 8, fill=(*colour, 255), outline=(*shaded(colour, 0.6), 255)
    )
    if chance(rng, 0.6):
        for y in range(14, 2 * height - 14, int(rng.integers(10, 20))):
            draw.rounded_rectangle((14, y, 2 * width - 15, y + 4), 2, fill=(*shaded(colour, 0.4), 255))
    layer = layer.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True).reduce(2)
    at = rng.integers(-20, scene.size[0] - 20, 2)
    scene.paste(layer, (int(at[0]), int(at[1])), layer)


_CLUTTER = (_cable, _lettering, _ring, _panel)


def clutter(rng: np.random.Generator, scene: Image.Image) -> None:
    """Puts things that are not digits into the scene, in place."""
    for _ in range(int(rng.integers(0, 6))):
        choose(rng, _CLUTTER)(rng, scene)


def specks(rng: np.random.Generator, scene: Image.Image) -> None:
    """Dust and hairline scratches over everything, in place."""
    draw, size = ImageDraw.Draw(scene), scene.size[0]
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0, np.pi), rng.uniform(3, 40)
        value = int(rng.integers(40, 220))
        end = (x + length * np.cos(angle), y + length * np.sin(angle))
        draw.line((x, y, *end), fill=(value, value, value), width=1)
