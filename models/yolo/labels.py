"""Props that people make: printed labels, number plates, stickers, paint and handwriting."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .glyphs import FONTS, Mask, Split, handwritten, printed, text_mask
from .props import WORDS, Colour, Prop, chance, choose, hsv, placed, plate, screw, shaded, stamp

_PENS: tuple[Colour, ...] = ((24, 26, 34), (22, 42, 120), (30, 60, 150), (170, 28, 34), (20, 84, 52))


def _row(masks: list[Mask], space: int) -> tuple[list[int], int, int]:
    """Left edges of masks set side by side, and the row's width and height."""
    lefts, x = [], 0
    for mask in masks:
        lefts.append(x)
        x += mask.shape[1] + space
    return lefts, x - space, max(mask.shape[0] for mask in masks)


def _barcode(rng: np.random.Generator, patch: Image.Image, box: tuple[int, int, int, int]) -> None:
    draw, x = ImageDraw.Draw(patch), box[0]
    while x < box[2] - 4:
        bar = int(rng.integers(1, 4))
        draw.rectangle((x, box[1], x + bar - 1, box[3]), fill=(20, 20, 20, 255))
        x += bar + int(rng.integers(1, 4))


def label(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A printed label or price tag: paper, a border, digits, perhaps a word and a barcode."""
    name = choose(rng, FONTS)
    masks = [printed(digit, name, height) for digit in digits]
    lefts, width, tall = _row(masks, round(height * rng.uniform(0.1, 0.24)))
    pad = round(height * rng.uniform(0.25, 0.5))
    word = text_mask(choose(rng, WORDS), choose(rng, FONTS), max(10, round(height * rng.uniform(0.3, 0.55))))
    layout = choose(rng, ("bare", "word over", "word right", "barcode"))
    top = pad + (word.shape[0] + pad // 2 if layout == "word over" else 0)
    right = pad + (word.shape[1] + pad // 2 if layout == "word right" else 0)
    bottom = pad + (round(height * 0.55) if layout == "barcode" else 0)
    wide = max(width + pad + right, word.shape[1] + 2 * pad if layout == "word over" else 0)
    size = (wide, top + tall + bottom)
    if chance(rng, 0.65):
        paper, ink = (
            hsv(rng.random(), rng.uniform(0.0, 0.45), rng.uniform(0.82, 1.0)),
            hsv(rng.random(), 0.6, 0.16),
        )
    else:
        paper, ink = hsv(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.2, 0.5)), (246, 246, 240)
    patch = plate(size, choose(rng, (1, 4, 10)), paper, shaded(paper, rng.uniform(0.86, 1.0)))
    if chance(rng, 0.4):
        draw, inset = ImageDraw.Draw(patch), max(2, pad // 4)
        box = (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset)
        draw.rounded_rectangle(box, max(1, pad // 3), outline=(*ink, 255), width=max(1, height // 24))
    if layout == "word over":
        stamp(patch, word, (pad, pad), ink, 0.9)
    elif layout == "word right":
        stamp(patch, word, (pad + width + pad // 2, top + tall - word.shape[0]), ink, 0.9)
    elif layout == "barcode":
        _barcode(rng, patch, (pad, top + tall + pad // 3, size[0] - pad, size[1] - pad // 2))
    inks = []
    for digit, mask, left in zip(digits, masks, lefts, strict=True):
        at = (pad + left, top + (tall - mask.shape[0]))
        stamp(patch, mask, at, ink)
        inks.append(placed(digit, mask, at))
    return Prop(patch, tuple(inks))


def number_plate(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A vehicle or house plate: bold digits after a pair of letters, bolted on, with a raised rim."""
    name = FONTS[int(rng.choice([1, 2, 3, 9]))]
    letters = "".join(rng.choice(list("AEFHKMNPRTWXY"), 2)) if chance(rng, 0.6) else ""
    masks = [printed(digit, name, height) for digit in digits]
    lefts, width, tall = _row(masks, round(height * rng.uniform(0.1, 0.2)))
    lead = text_mask(letters, name, round(height * 1.38)) if letters else None
    shift = lead.shape[1] + round(height * 0.35) if lead is not None else 0
    pad = round(height * rng.uniform(0.3, 0.45))
    size = (shift + width + 2 * pad + round(height * 0.3), tall + 2 * pad)
    paper = choose(
        rng, ((240, 240, 236), (244, 200, 48), (232, 232, 226), (28, 62, 138), (24, 96, 60), (34, 34, 36))
    )
    ink: Colour = (22, 22, 26) if sum(paper) > 400 else (244, 244, 240)
    patch = plate(size, max(3, height // 6), shaded(paper, 1.05), shaded(paper, 0.9))
    draw = ImageDraw.Draw(patch)
    rim = (2, 2, size[0] - 3, size[1] - 3)
    draw.rounded_rectangle(rim, max(3, height // 6), outline=(*ink, 255), width=max(2, height // 16))
    side = round(height * 0.15) + pad // 2
    for x in (side, size[0] - side):
        screw(
            patch,
            (x, size[1] // 2 if chance(rng, 0.5) else pad // 2 + 2),
            max(3, height // 12),
            rng.uniform(0, 3),
        )
    x0, y0 = pad + round(height * 0.15), pad
    if lead is not None:
        stamp(patch, lead, (x0, y0 + (tall - lead.shape[0]) // 2), ink)
    inks = []
    for digit, mask, left in zip(digits, masks, lefts, strict=True):
        at = (x0 + shift + left, y0 + (tall - mask.shape[0]) // 2)
        stamp(patch, shifted_light(mask), (at[0] + 1, at[1] + 2), shaded(paper, 0.6), 0.7)
        stamp(patch, mask, at, ink)
        inks.append(placed(digit, mask, at))
    return Prop(patch, tuple(inks))


def shifted_light(mask: Mask) -> Mask:
    """A mask at half strength: the soft edge of embossed metal."""
    return (mask // 2).astype(np.uint8)


def sticker(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """A round sticker or badge with one or two digits."""
    name = choose(rng, FONTS)
    masks = [printed(digit, name, height) for digit in digits]
    lefts, width, tall = _row(masks, round(height * 0.08))
    radius = round(np.hypot(width, tall) / 2 * rng.uniform(1.15, 1.5))
    side = 2 * radius + 1
    bright = chance(rng, 0.5)
    paper = hsv(
        rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.85, 1.0) if bright else rng.uniform(0.3, 0.7)
    )
    luma = 0.3 * paper[0] + 0.59 * paper[1] + 0.11 * paper[2]
    ink: Colour = (24, 24, 28) if luma > 130 else (250, 250, 246)
    patch = Image.new("RGBA", (side, side), (*paper, 0))
    draw = ImageDraw.Draw(patch)
    draw.ellipse((0, 0, side - 1, side - 1), fill=(*(ink if chance(rng, 0.4) else shaded(paper, 0.8)), 255))
    ring = max(2, round(radius * rng.uniform(0.04, 0.12)))
    draw.ellipse((ring, ring, side - 1 - ring, side - 1 - ring), fill=(*paper, 255))
    inks = []
    for digit, mask, left in zip(digits, masks, lefts, strict=True):
        at = (radius - width // 2 + left, radius - mask.shape[0] // 2)
        stamp(patch, mask, at, ink)
        inks.append(placed(digit, mask, at))
    return Prop(patch, tuple(inks))


def note(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """Handwriting on a sticky note, a strip of masking tape or squared paper."""
    masks = [handwritten(rng, digit, split, round(height * rng.uniform(0.88, 1.1))) for digit in digits]
    lefts, width, tall = _row(masks, round(height * rng.uniform(0.12, 0.3)))
    pad = round(height * rng.uniform(0.3, 0.6))
    size = (width + 2 * pad, tall + 2 * pad)
    kind = choose(rng, ("sticky", "tape", "squared", "plain"))
    papers: dict[str, Colour] = {
        "sticky": hsv(rng.choice([0.15, 0.16, 0.93, 0.35, 0.55]), 0.45, 0.98),
        "tape": (222, 208, 170),
        "squared": (244, 244, 240),
        "plain": hsv(rng.random(), rng.uniform(0.0, 0.1), rng.uniform(0.86, 1.0)),
    }
    paper = papers[kind]
    patch = plate(size, 1, paper, shaded(paper, rng.uniform(0.88, 1.0)))
    if kind == "squared":
        draw, step = ImageDraw.Draw(patch), max(10, height // 3)
        for x in range(step // 2, size[0], step):
            draw.line((x, 0, x, size[1]), fill=(180, 200, 226, 255))
        for y in range(step // 2, size[1], step):
            draw.line((0, y, size[0], y), fill=(180, 200, 226, 255))
    pen, inks = choose(rng, _PENS), []
    for digit, mask, left in zip(digits, masks, lefts, strict=True):
        wander = round(height * rng.uniform(-0.06, 0.06))
        at = (pad + left, pad + (tall - mask.shape[0]) // 2 + wander)
        stamp(patch, mask, at, pen, 0.92)
        inks.append(placed(digit, mask, at))
    return Prop(patch, tuple(inks))


def painted(rng: np.random.Generator, digits: tuple[int, ...], height: int, split: Split) -> Prop:
    """Digits stencilled or written straight onto whatever is behind them, with a thin contrasting edge."""
    by_hand = chance(rng, 0.35)
    name = FONTS[int(rng.choice([1, 2, 3, 7, 9]))]
    masks = [handwritten(rng, d, split, height) if by_hand else printed(d, name, height) for d in digits]
    lefts, width, tall = _row(masks, round(height * rng.uniform(0.12, 0.25)))
    pad = max(4, height // 8)
    light = chance(rng, 0.6)
    colour = (
        hsv(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.92, 1.0))
        if light
        else hsv(rng.random(), 0.7, 0.13)
    )
    edge: Colour = (18, 18, 20) if light else (240, 240, 236)
    size = (width + 2 * pad, tall + 2 * pad)
    ink, inks = Image.new("L", size), []
    for digit, mask, left in zip(digits, masks, lefts, strict=True):
        at = (pad + left, pad + tall - mask.shape[0])
        ink.paste(255, at, Image.fromarray(mask))
        inks.append(placed(digit, mask, at))
    rim = np.asarray(ink, np.uint16)
    grown = rim.copy()
    # Two pixels of rim on each side are one in the scene: enough to tell the digit from any background.
    for dx, dy in ((2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, -2)):
        grown = np.maximum(grown, np.roll(rim, (dy, dx), (0, 1)))
    opacity = rng.uniform(0.85, 1.0)
    patch = Image.new("RGBA", size, (*edge, 0))
    patch.paste((*colour, 255), (0, 0), ink)
    fade = np.maximum(rim * opacity, grown * rng.uniform(0.3, 0.75)).astype(np.uint8)
    patch.putalpha(Image.fromarray(fade))
    return Prop(patch, tuple(inks), flat=True)
