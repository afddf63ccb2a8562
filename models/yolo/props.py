"""What a prop is, and the drawing steps that props share.

A prop is a flat thing that carries digits: a display, a counter, a label. It is drawn face on at ``ZOOM``
times its size in the scene, so that the warp which places it also antialiases it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from .glyphs import Mask, Points, Split, outline, softened

ZOOM = 2
Colour = tuple[int, int, int]
T = TypeVar("T")

# Letters that cannot be taken for a digit: no O, I, l, S, B, Z, G, D, Q, b, g, q, o, i, s, z.
WORDS = (
    "kWh", "kW", "MAX", "RUN", "TARE", "NET", "kPa", "mA", "FUEL", "PUMP", "PRE", "ANTEX", "KEEP",
    "PARK", "LAKE", "TAX", "WATT", "RACK", "MEN", "PEN", "UNWRAP", "THE", "WHEAT", "HYTEX", "ALARM", "TEMP",
)  # fmt: skip


@dataclass(frozen=True)
class Ink:
    """One digit in a prop. label: 0..9. points: its outline, [n, 2] as x, y in patch pixels."""

    label: int
    points: Points


@dataclass(frozen=True)
class Prop:
    """A drawn prop. patch: RGBA, ``ZOOM`` times scene size. inks: its digits. flat: throws no shadow."""

    patch: Image.Image
    inks: tuple[Ink, ...]
    flat: bool = False


# Draws a prop with the given digits, ``height`` patch pixels high.
Maker = Callable[[np.random.Generator, tuple[int, ...], int, Split], Prop]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue, saturation and value, each 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour made darker (< 1) or lighter (> 1)."""
    red, green, blue = (min(255, max(0, round(v * factor))) for v in colour)
    return red, green, blue


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """An RGB image running from one colour to the other, downwards."""
    ramp = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), ramp)


def plate(size: tuple[int, int], radius: int, top: Colour, bottom: Colour) -> Image.Image:
    """An RGBA rounded rectangle filled with a gradient."""
    image = gradient(size, top, bottom).convert("RGBA")
    shape = Image.new("L", size)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=255)
    image.putalpha(shape)
    return image


@lru_cache(maxsize=128)
def scaling(factor: float) -> list[int]:
    """A table that multiplies 8-bit values, for ``Image.point``."""
    return [round(v * factor) for v in range(256)]


def stamp(patch: Image.Image, mask: Mask, at: tuple[int, int], colour: Colour, opacity: float = 1.0) -> None:
    """Paints ``colour`` through a mask onto the patch; leaves the patch's own alpha."""
    image = Image.fromarray(mask)
    if opacity < 1.0:
        image = image.point(scaling(round(opacity, 2)))
    # The fourth value keeps opaque pixels opaque: paste blends alpha like any other channel.
    patch.paste((*colour, 255), at, image)


def placed(label: int, mask: Mask, at: tuple[int, int]) -> Ink:
    """The ink of a mask stamped at a place."""
    return Ink(label, outline(mask) + np.asarray(at, np.float32))


def glow(
    patch: Image.Image, mask: Mask, at: tuple[int, int], colour: Colour, radius: float, opacity: float
) -> None:
    """A soft halo around a mask, as of a lit segment."""
    margin = round(radius * 2)
    wide = softened(np.pad(mask, margin), radius)
    stamp(patch, wide, (at[0] - margin, at[1] - margin), colour, opacity)


def reflection(rng: np.random.Generator, patch: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A window's slanting reflection on glass that fills ``box``."""
    width, height = box[2] - box[0], box[3] - box[1]
    mask = Image.new("L", (width, height))
    left, span, lean = (
        rng.uniform(-0.2, 0.8) * width,
        rng.uniform(0.15, 0.5) * width,
        rng.uniform(0.2, 0.8) * height,
    )
    corners = [(left + lean, 0), (left + lean + span, 0), (left + span, height), (left, height)]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    stamp(patch, np.asarray(mask), box[:2], (255, 255, 255), rng.uniform(0.04, 0.16))


def screw(patch: Image.Image, centre: tuple[int, int], radius: int, turn: float) -> None:
    """A slotted screw head."""
    draw = ImageDraw.Draw(patch)
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(60, 60, 62, 255))
    inner = max(1, radius - 1)
    draw.ellipse((x - inner, y - inner, x + inner - 1, y + inner - 1), fill=(168, 168, 165, 255))
    dx, dy = inner * np.cos(turn), inner * np.sin(turn)
    draw.line((x - dx, y - dy, x + dx, y + dy), fill=(70, 70, 72, 255), width=max(1, radius // 3))


def choose(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """One of the options, evenly."""
    return options[int(rng.integers(len(options)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)
