"""Single digits as masks: printed (fonts), written by hand (scikit-learn's scans) and seven-segment.

A mask is a uint8 array [height, width] of ink coverage, 0..255, cropped to the ink. Handwritten digits keep
train and validation apart: the last fifth of the scans is never drawn for anything but validation.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Mask = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float32]


class Split(StrEnum):
    """Which glyph scans and photo regions may be used."""

    TRAIN = "train"
    VALIDATION = "validation"


# Fonts whose digits differ in kind: neo-grotesque light to black, transitional serif, rounded. All come as
# packages.
FONTS = (
    "font_roboto/files/Roboto-Regular.ttf",
    "font_roboto/files/Roboto-Medium.ttf",
    "font_roboto/files/Roboto-Bold.ttf",
    "font_roboto/files/Roboto-Black.ttf",
    "font_roboto/files/Roboto-Italic.ttf",
    "font_source_serif_pro/files/SourceSerifPro-Regular.ttf",
    "font_source_serif_pro/files/SourceSerifPro-Semibold.ttf",
    "font_source_serif_pro/files/SourceSerifPro-Bold.ttf",
    "font_source_serif_pro/files/SourceSerifPro-It.ttf",
    "font_fredoka_one/files/FredokaOne-Regular.ttf",
)
_NEEDED = "the YOLO model draws its own data; install 'edgekit[yolo]', or what is missing:"
HELD_OUT = 0.2  # the share of handwritten scans, taken from the end, kept for validation


@cache
def _font_file(name: str) -> str:
    package, _, inner = name.partition("/")
    # Only located, not imported: these packages import the retired pkg_resources.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{_NEEDED} {package.replace('_', '-')}")
    return str(Path(next(iter(spec.submodule_search_locations))) / inner)


@lru_cache(maxsize=1024)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at ``size`` pixels per em."""
    return ImageFont.truetype(_font_file(name), size)


@lru_cache(maxsize=256)
def _ems_per_digit(name: str) -> float:
    _, top, _, bottom = font(name, 200).getbbox("8")
    return 200.0 / (bottom - top)


def printed(digit: int, name: str, height: int) -> Mask:
    """The digit in a font, about ``height`` pixels high."""
    return text_mask(str(digit), name, round(height * _ems_per_digit(name)))


def text_mask(text: str, name: str, size: int) -> Mask:
    """A text in a font at about ``size`` pixels per em, cropped to its ink."""
    # Sizes in steps of about 6 %: opening a font is slow, and so the same ones come again.
    step = max(2, size // 16)
    return _text_mask(text, name, max(6, size // step * step))


@lru_cache(maxsize=4096)
def _text_mask(text: str, name: str, size: int) -> Mask:
    chosen = font(name, size)
    left, top, right, bottom = (int(v) for v in chosen.getbbox(text))
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), text, font=chosen, fill=255)
    return cropped(np.asarray(image))


def cropped(mask: Mask) -> Mask:
    """The mask without its empty border."""
    rows = np.flatnonzero((mask > 96).any(axis=1))
    columns = np.flatnonzero((mask > 96).any(axis=0))
    if not rows.size:
        return mask
    return np.ascontiguousarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def datasets() -> Any:
    """scikit-learn's data sets: the scans and the photos."""
    try:
        import sklearn.datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{_NEEDED} scikit-learn") from error
    return sklearn.datasets


@lru_cache(maxsize=1)
def _scans() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    digits = datasets().load_digits()
    return digits.images.astype(np.float32) / 16.0, digits.target.astype(np.int64)


def scan_indices(split: Split) -> npt.NDArray[np.int64]:
    """Indices of the handwritten scans a split may use."""
    count = len(_scans()[1])
    border = round(count * (1 - HELD_OUT))
    return np.arange(border) if split is Split.TRAIN else np.arange(border, count)


@lru_cache(maxsize=32)
def _scans_of(digit: int, split: Split) -> npt.NDArray[np.int64]:
    indices = scan_indices(split)
    mine: npt.NDArray[np.int64] = indices[_scans()[1][indices] == digit]
    return mine


def handwritten(rng: np.random.Generator, digit: int, split: Split, height: int) -> Mask:
    """A real handwritten digit, ``height`` pixels high: an 8x8 scan upscaled until the stroke has a clean
    edge.
    """
    images, _ = _scans()
    scan = images[rng.choice(_scans_of(digit, split))]
    padded = Image.fromarray(np.pad(scan, 1))
    side = max(16, round(height * 1.45))
    smooth = padded.resize((round(side * rng.uniform(0.85, 1.05)), side), Image.Resampling.BICUBIC)
    # A steep ramp around half coverage turns the blurred stroke back into pen ink with an antialiased edge.
    level = rng.uniform(0.38, 0.5)
    steep = min(8.0, side / 10 * 1.6)
    ink = np.clip((np.asarray(smooth) - level) * steep + 0.5, 0.0, 1.0)
    mask = cropped((ink * 255).astype(np.uint8))
    scale = height / mask.shape[0]
    size = (max(4, round(mask.shape[1] * scale)), height)
    return cropped(np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)))


#      a
#    f   b     segment names around a seven-segment digit
#      g
#    e   c
#      d
_SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


@dataclass(frozen=True)
class SegmentStyle:
    """How a seven-segment digit looks.

    height: of the digit, pixels.
    aspect: its width over its height, before slanting.
    thickness: of a segment, over the height.
    slant: horizontal shift of the top over the height.
    gap: between segments, over the thickness.
    """

    height: int
    aspect: float = 0.52
    thickness: float = 0.15
    slant: float = 0.08
    gap: float = 0.2

    @property
    def advance(self) -> int:
        """Width of a digit's cell, slant included."""
        return round(self.height * (self.aspect + abs(self.slant)))


def _segment_polygons(style: SegmentStyle) -> dict[str, list[tuple[float, float]]]:
    high, wide = float(style.height), style.height * style.aspect
    thick = style.thickness * high
    half, gap = thick / 2, style.gap * thick / 2
    left, right, top, middle, bottom = half, wide - half, half, high / 2, high - half

    def across(y: float) -> list[tuple[float, float]]:
        a, b = left + gap, right - gap
        return [
            (a, y),
            (a + half, y - half),
            (b - half, y - half),
            (b, y),
            (b - half, y + half),
            (a + half, y + half),
        ]

    def along(x: float, start: float, end: float) -> list[tuple[float, float]]:
        a, b = start + gap, end - gap
        return [
            (x, a),
            (x + half, a + half),
            (x + half, b - half),
            (x, b),
            (x - half, b - half),
            (x - half, a + half),
        ]

    shapes = {
        "a": across(top), "g": across(middle), "d": across(bottom),
        "f": along(left, top, middle), "b": along(right, top, middle),
        "e": along(left, middle, bottom), "c": along(right, middle, bottom),
    }  # fmt: skip
    shift = style.slant * high
    return {
        name: [(x + shift * (1 - y / high) - min(shift, 0.0), y) for x, y in points]
        for name, points in shapes.items()
    }


@lru_cache(maxsize=2048)
def seven_segment(segments: str, style: SegmentStyle) -> Mask:
    """A digit's cell with the given segments lit, [height, advance]; not cropped, so that cells line up."""
    zoom = 2
    big = SegmentStyle(style.height * zoom, style.aspect, style.thickness, style.slant, style.gap)
    image = Image.new("L", (style.advance * zoom, style.height * zoom))
    draw = ImageDraw.Draw(image)
    polygons = _segment_polygons(big)
    for name in segments:
        draw.polygon(polygons[name], fill=255)
    return np.asarray(image.reduce(zoom))


def segments_of(digit: int) -> str:
    """The lit segments of a digit."""
    return _SEGMENTS[digit]


def outline(mask: Mask, threshold: int = 110) -> Points:
    """The ink's outer points, [n, 2] as x, y: both ends of every row. Their extremes under any projective map
    are the extremes of the ink, so a box around them stays tight however the glyph is turned.
    """
    ink = mask > threshold
    rows = np.flatnonzero(ink.any(axis=1))
    if not rows.size:
        raise ValueError("a mask without ink has no outline")
    first = ink[rows].argmax(axis=1)
    last = mask.shape[1] - ink[rows, ::-1].argmax(axis=1)
    top, bottom = rows.astype(np.float32), rows.astype(np.float32) + 1
    corners = [(first, top), (first, bottom), (last, top), (last, bottom)]
    return np.concatenate([np.stack([x.astype(np.float32), y], axis=1) for x, y in corners])


def softened(mask: Mask, radius: float) -> Mask:
    """The mask blurred, same size."""
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius)))
