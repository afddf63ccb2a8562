"""Props that machines drive: LCD and LED displays, mechanical counters, dials."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .glyphs import FONTS, Mask, SegmentStyle, Split, outline, printed, segments_of, seven_segment, text_mask
from .props import (
    WORDS,
    Colour,
    Ink,
    Prop,
    chance,
    choose,
    glow,
    gradient,
    hsv,
    placed,
    plate,
    reflection,
    screw,
    shaded,
    stamp,
)  # fmt: skip

_LCD_FACES: tuple[tuple[Colour, Colour], ...] = (  # backing, segments
    ((172, 186, 152), (28, 36, 30)),
    ((188, 192, 186), (34, 36, 40)),
    ((206, 214, 204), (20, 24, 28)),
    ((60, 108, 190), (232, 240, 250)),
    ((218, 158, 62), (40, 26, 14)),
    ((150, 196, 92), (24, 40, 20)),
)
_LED_COLOURS: tuple[Colour, ...] = (
    (255, 52, 40), (255, 60, 46), (84, 255, 110), (255, 176, 40), (70, 160, 255), (236, 244, 255),
    (70, 240, 230),
)  # fmt: skip


def _bezel(rng: np.random.Generator, size: tuple[int, int], border: int) -> Image.Image:
    """A moulded frame with its lip; the window inside is left for the caller to fill."""
    value = float(rng.uniform(0.08, 0.75))
    base = hsv(rng.random(), rng.uniform(0.0, 0.25), value)
    patch = plate(size, max(2, border), shaded(base, 1.2), shaded(base, 0.8))
    draw = ImageDraw.Draw(patch)
    inset = max(1, border // 3)
    box = (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset)
    draw.rounded_rectangle(box, max(1, border - inset), outline=(*shaded(base, 1.35), 255), width=1)
    if border > 14 and chance(rng, 0.5):
        for x in (border // 2, size[0] - 1 - border // 2):
            for y in (border // 2, size[1] - 1 - border // 2):
                screw(patch, (x, y), max(3, border // 4), rng.uniform(0, np.pi))
    return patch


def _segment_row(
    rng: np.random.Generator, digits: tuple[int, ...], height: int
) -> tuple[SegmentStyle, list[int], int, int]:
    """Style, left edges of the cells, width of the row, and after which digit a point comes (-1: none)."""
    style = SegmentStyle(
        height,
        aspect=round(float(rng.uniform(0.48, 0.6)), 2),
        thickness=round(float(rng.uniform(0.13, 0.19)), 2),
        slant=round(float(rng.choice([0.0, 0.06, 0.1, 0.14])), 2),
        gap=round(float(rng.uniform(0.08, 0.3)), 2),
    )
    space = round(height * rng.uniform(0.14, 0.28))
    lefts = [i * (style.advance + space) for i in range(len(digits))]
    point = int(rng.integers(len(digits))) if len(digits) > 1 and chance(rng, 0.5) else -1
    return style, lefts, lefts[-1] + style.advance, point


def _point(patch: Image.Image, style: SegmentStyle, right: int, base: int, colour: Colour) -> None:
    side = max(2, round(style.thickness * style.height * 0.85))
    x = right + max(1, side // 4)
    ImageDraw.Draw(patch).ellipse((x, base - side, x + side, base), fill=(*colour, 255))


def lcd(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A liquid-crystal display: dark segments over their own faint shadow, unlit ones just visible."""
    style, lefts, width, point = _segment_row(rng, digits, height)
    border, pad = round(height * rng.uniform(0.12, 0.4)), round(height * rng.uniform(0.2, 0.4))
    note = choose(rng, WORDS) if chance(rng, 0.45) else ""
    note_mask = text_mask(note, FONTS[2], max(10, round(height * 0.24))) if note else None
    top = pad + (note_mask.shape[0] + pad // 2 if note_mask is not None else 0)
    window = (width + 2 * pad, height + top + pad)
    patch = _bezel(rng, (window[0] + 2 * border, window[1] + 2 * border), border)
    backing, ink = choose(rng, _LCD_FACES)
    backing = shaded(backing, rng.uniform(0.8, 1.1))
    patch.paste(
        gradient(window, shaded(backing, rng.uniform(0.8, 1.0)), shaded(backing, 1.08)), (border, border)
    )
    lip = (border, border, border + window[0] - 1, border + window[1] - 1)
    ImageDraw.Draw(patch).rectangle(lip, outline=(24, 24, 26, 255), width=max(1, border // 5))
    x0, y0 = border + pad, border + top
    ghost, inks = rng.uniform(0.0, 0.09), []
    contrast = rng.uniform(0.78, 1.0)
    for digit, left in zip(digits, lefts, strict=True):
        at = (x0 + left, y0)
        mask = seven_segment(segments_of(digit), style)
        stamp(patch, seven_segment("abcdefg", style), at, ink, ghost)
        stamp(patch, mask, (at[0] + 2, at[1] + 3), ink, 0.16)
        stamp(patch, mask, at, ink, contrast)
        inks.append(placed(digit, mask, at))
    if point >= 0:
        _point(
            patch, style, x0 + lefts[point] + style.advance - round(style.slant * height), y0 + height, ink
        )
    if note_mask is not None:
        stamp(patch, note_mask, (x0, border + pad // 2), ink, 0.85)
    if chance(rng, 0.3):
        reflection(rng, patch, lip)
    return Prop(patch, tuple(inks))


def led(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A light-emitting display: bright segments with a halo behind dark glass."""
    style, lefts, width, point = _segment_row(rng, digits, height)
    border, pad = round(height * rng.uniform(0.08, 0.35)), round(height * rng.uniform(0.22, 0.42))
    window = (width + 2 * pad, height + 2 * pad)
    patch = _bezel(rng, (window[0] + 2 * border, window[1] + 2 * border), border)
    colour = choose(rng, _LED_COLOURS)
    glass = shaded(colour, rng.uniform(0.03, 0.12))
    patch.paste(gradient(window, shaded(glass, 1.4), glass), (border, border))
    x0, y0 = border + pad, border + pad
    inks, halo = [], rng.uniform(0.25, 0.6)
    core = tuple(round(v + (255 - v) * rng.uniform(0.1, 0.45)) for v in colour)
    unlit = rng.uniform(0.02, 0.12)
    for digit, left in zip(digits, lefts, strict=True):
        mask = seven_segment(segments_of(digit), style)
        glow(patch, mask, (x0 + left, y0), colour, height * 0.08, halo)
        stamp(patch, seven_segment("abcdefg", style), (x0 + left, y0), colour, unlit)
        stamp(patch, mask, (x0 + left, y0), (core[0], core[1], core[2]))
        inks.append(placed(digit, mask, (x0 + left, y0)))
    if point >= 0:
        _point(
            patch, style, x0 + lefts[point] + style.advance - round(style.slant * height), y0 + height, colour
        )
    if chance(rng, 0.3):
        reflection(rng, patch, (border, border, border + window[0], border + window[1]))
    return Prop(patch, tuple(inks))


def _wheel(size: tuple[int, int], colour: Colour) -> Image.Image:
    """A number wheel seen from the front: a cylinder, brightest a little above its middle."""
    width, height = size
    angle = np.linspace(-1.25, 1.25, height, dtype=np.float32)
    light = np.clip(0.3 + 0.8 * np.cos(angle + 0.25), 0.0, 1.15)
    rows = np.clip(light[:, None, None] * np.asarray(colour, np.float32), 0, 255)
    rows = np.broadcast_to(rows, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(rows).convert("RGBA")


def _rolled(
    digit: int, name: str, height: int, size: tuple[int, int], shift: int
) -> tuple[Mask, Mask, int, int]:
    """Masks of one wheel window: all ink, and the digit alone, with its left and top edge in the window."""
    width, window = size
    sheet = Image.new("L", size)
    pitch = round(height * 1.45)
    glyph = printed(digit, name, height)
    left, top = (width - glyph.shape[1]) // 2, (window - glyph.shape[0]) // 2 + shift
    for step in (-1, 1):
        other = printed((digit + step) % 10, name, height)
        x, y = (width - other.shape[1]) // 2, (window - other.shape[0]) // 2 + shift + step * pitch
        sheet.paste(255, (x, y), Image.fromarray(other))
    sheet.paste(255, (left, top), Image.fromarray(glyph))
    return np.asarray(sheet), glyph, left, top


def counter(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A mechanical counter: number wheels in a frame, a little out of step, the last ones often red.

    Neighbouring digits of a wheel may peep in at the edge; only the one read counts as a digit.
    """
    name = FONTS[int(rng.choice([1, 2, 2, 3, 6]))]
    cell, window = round(height * rng.uniform(0.8, 1.0)), round(height * rng.uniform(1.3, 1.5))
    gap, border = max(2, round(height * 0.09)), round(height * rng.uniform(0.25, 0.5))
    size = (len(digits) * (cell + gap) + gap + 2 * border, window + 2 * gap + 2 * border)
    patch = _bezel(rng, size, border)
    ImageDraw.Draw(patch).rectangle(
        (border, border, size[0] - border - 1, size[1] - border - 1), fill=(12, 12, 13, 255)
    )
    dark = chance(rng, 0.7)
    red_from = len(digits) - int(rng.integers(0, 3)) if len(digits) > 2 else len(digits)
    inks = []
    for i, digit in enumerate(digits):
        face: Colour = (30, 30, 32) if dark else (236, 232, 220)
        paint: Colour = (240, 238, 230) if dark else (22, 22, 24)
        if i >= red_from:
            face, paint = (178, 30, 28), (245, 238, 230)
        wheel = _wheel((cell, window), face)
        shift = round(height * float(rng.choice([0.0, 0.0, 1.0])) * rng.uniform(-0.14, 0.14))
        sheet, glyph, left, top = _rolled(digit, name, height, (cell, window), shift)
        stamp(wheel, sheet, (0, 0), paint, 0.95)
        at = (border + gap + i * (cell + gap), border + gap)
        patch.paste(wheel, at)
        points = outline(glyph) + np.asarray((left, top), np.float32)
        # What the window's edge hides is no part of the digit.
        points = np.clip(points, 0, np.asarray((cell, window), np.float32)) + np.asarray(at, np.float32)
        inks.append(Ink(digit, points.astype(np.float32)))
    return Prop(patch, tuple(inks))


def dial(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A round gauge with a scale, a needle and numerals along the scale (in order, as on a real dial)."""
    radius = round(height * rng.uniform(2.6, 3.4))
    side = 2 * radius + 1
    rim = max(3, round(radius * rng.uniform(0.08, 0.16)))
    light = chance(rng, 0.7)
    face: Colour = (236, 234, 226) if light else (28, 29, 33)
    ink: Colour = (26, 26, 28) if light else (236, 236, 232)
    patch = Image.new("RGBA", (side, side), (*face, 0))
    draw = ImageDraw.Draw(patch)
    shell = hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.15, 0.7))
    draw.ellipse((0, 0, side - 1, side - 1), fill=(*shell, 255))
    draw.ellipse(
        (rim // 2, rim // 2, side - 1 - rim // 2, side - 1 - rim // 2), fill=(*shaded(shell, 1.4), 255)
    )
    draw.ellipse((rim, rim, side - 1 - rim, side - 1 - rim), fill=(*face, 255))
    start, sweep = rng.uniform(2.2, 2.7), rng.uniform(4.2, 4.9)
    count = len(digits)
    reach = radius - rim - 2
    for tick in range(4 * (count - 1) + 1):
        angle = start + sweep * tick / (4 * (count - 1))
        inner = reach * (0.86 if tick % 4 == 0 else 0.92)
        cos, sin = np.cos(angle), np.sin(angle)
        line = (radius + inner * cos, radius + inner * sin, radius + reach * cos, radius + reach * sin)
        draw.line(line, fill=(*ink, 255), width=max(2, height // 12) if tick % 4 == 0 else 1)
    angle = start + sweep * rng.random()
    tip = (radius + 0.52 * reach * np.cos(angle), radius + 0.52 * reach * np.sin(angle))
    draw.line((radius, radius, *tip), fill=(190, 30, 24, 255), width=max(3, height // 7))
    hub = max(4, radius // 10)
    draw.ellipse((radius - hub, radius - hub, radius + hub, radius + hub), fill=(*shaded(shell, 0.7), 255))
    name, inks = FONTS[int(rng.choice([0, 1, 2, 6]))], []
    for i, digit in enumerate(sorted(digits)):
        mask = printed(digit, name, height)
        angle = start + sweep * i / (count - 1)
        distance = reach * 0.84 - height * 0.62
        x = round(radius + distance * np.cos(angle) - mask.shape[1] / 2)
        y = round(radius + distance * np.sin(angle) - mask.shape[0] / 2)
        stamp(patch, mask, (x, y), ink)
        inks.append(placed(digit, mask, (x, y)))
    return Prop(patch, tuple(inks))
