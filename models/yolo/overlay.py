"""Draws what the detector sees: python -m edgekit.models.yolo.overlay, the pictures in docs/.

Scenes come from the validation set; a box says the digit and, by its brightness, the score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from . import build
from .data import VALIDATION_SEED
from .evaluate import Decoding, Detections, detections
from .glyphs import FONTS, Split, font
from .props import Colour
from .scenes import SIZE, make_scene

_COLOURS: tuple[Colour, ...] = (
    (255, 82, 82), (255, 152, 0), (255, 214, 64), (156, 224, 74), (64, 210, 120),
    (38, 198, 218), (66, 165, 245), (126, 120, 250), (208, 96, 240), (250, 100, 170),
)  # fmt: skip
_SHOWN = [13, 16, 35, 27, 28, 31]  # validation scenes that show each kind of digit
_SCALE = 1.5  # pictures are shown larger than the network sees them, so that names fit beside small digits


def _disjoint(found: Detections) -> Detections:
    """The best box per place: a picture has no use for two readings of one digit."""
    keep: list[int] = []
    for i, box in enumerate(found.boxes):
        centre = (box[:2] + box[2:]) / 2
        hidden = any(
            bool((found.boxes[k, :2] < centre).all() and (centre < found.boxes[k, 2:]).all()) for k in keep
        )
        if not hidden:
            keep.append(i)
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])


def draw(image: npt.NDArray[np.uint8], found: Detections) -> Image.Image:
    """The image [SIZE, SIZE, 3], enlarged, with a named box around each detection."""
    side = round(SIZE * _SCALE)
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    pen, letters = ImageDraw.Draw(picture), font(FONTS[2], 13)
    for box, score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        left, top, right, bottom = (v * _SCALE for v in box)
        red, green, blue = (round(v * (0.5 + 0.5 * score)) for v in _COLOURS[label])
        colour = (red, green, blue)
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=colour, width=2)
        above = top - 15 if top > 16 else bottom + 2
        pen.rectangle((left - 1, above, left + 9, above + 13), fill=colour)
        pen.text((left + 1, above - 1), str(label), font=letters, fill=(16, 16, 18))
    return picture


def sheet(indices: list[int], columns: int, score: float = 0.35) -> Image.Image:
    """Validation scenes with detections above a score, side by side."""
    model, side = build(), round(SIZE * _SCALE)
    rows = -(-len(indices) // columns)
    picture = Image.new("RGB", (columns * (side + 4) - 4, rows * (side + 4) - 4), (255, 255, 255))
    for place, index in enumerate(indices):
        image = make_scene(Split.VALIDATION, index, VALIDATION_SEED).image
        inputs = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        with torch.inference_mode():
            found = _disjoint(detections(model(inputs)[0], Decoding(score=score, overlap=0.5)))
        at = (place % columns * (side + 4), place // columns * (side + 4))
        picture.paste(draw(image, found), at)
    return picture


def main(words: list[str] | None = None) -> None:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        prog="python -m edgekit.models.yolo.overlay", description="Draws samples."
    )
    parser.add_argument("--scenes", type=int, nargs="+", default=_SHOWN, help="validation scenes")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=here / "docs" / "detections.jpg")
    chosen = parser.parse_args(words)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(chosen.scenes, chosen.columns).save(chosen.out, quality=75, optimize=True)


if __name__ == "__main__":
    main()
