"""Drawing detections on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.files import write_whole
from edgekit.measure.decode import Detections

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Smaller images are enlarged so that labels stay readable; larger ones are shrunk to keep a report light.
_SHORTEST, _LONGEST = 480, 640
_JPEG_QUALITY = 85


def draw_detections(
    image: np.ndarray[Any, Any],
    detections: Detections,
    names: Sequence[str] = (),
    *,
    score: float = 0.25,
    limit: int = 60,
) -> Image.Image:
    """Draw boxes with class and score.

    Args:
        image: Pixels, uint8 [H, W, 3], RGB.
        detections: Boxes in pixels of ``image``.
        names: Class names; numbers where there are none.
        score: Detections below this score are left out.
        limit: At most so many boxes, the best.

    Returns:
        An RGB picture whose longer side has 480 to 640 pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    longer = max(picture.size)
    scale = _SHORTEST / longer if longer < _SHORTEST else min(1.0, _LONGEST / longer)
    if scale != 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    line = max(2, round(max(picture.size) / 320))
    font = ImageFont.load_default(max(12.0, max(picture.size) / 50))
    shown = detections.above(score)
    best = np.argsort(-shown.scores, kind="stable")[:limit]
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    # The best come last and so on top; labels come over all boxes, the best placed first.
    for i in best[::-1]:
        _draw_box(pen, shown.boxes[i] * scale, class_color(int(shown.classes[i])), line)
    taken: list[Rectangle] = []
    for i in best:
        kind = int(shown.classes[i])
        text = f"{names[kind] if kind < len(names) else kind} {shown.scores[i]:.2f}"
        taken.append(
            _draw_label(pen, shown.boxes[i] * scale, text, class_color(kind), font, picture.size, taken)
        )
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def save_jpeg(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    write_whole(path, stream.getvalue())


def class_color(kind: int) -> Color:
    """A strong colour for a class; steps of the golden angle keep the first classes far apart."""
    hue = (0.58 + kind * 0.61803398875) % 1.0
    # Yellow and green look brighter than blue at the same value.
    value = 0.98 if hue < 0.08 or hue > 0.5 else 0.86
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if kind % 2 == 0 else 0.65, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_box(pen: ImageDraw.ImageDraw, box: np.ndarray[Any, Any], color: Color, line: int) -> None:
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    # A dark edge keeps the line visible on a ground of its own colour.
    pen.rounded_rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), line + 1, outline=(0, 0, 0, 110), width=line + 2)
    pen.rounded_rectangle((x1, y1, x2, y2), line + 1, outline=(*color, 255), width=line)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    box: np.ndarray[Any, Any],
    text: str,
    color: Color,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(3, round((bottom - top) * 0.25))
    spot = _label_spot(box, (round(right - left) + 2 * pad, round(bottom - top) + 2 * pad), size, taken)
    pen.rounded_rectangle(spot, pad, fill=(*color, 235))
    pen.text((spot[0] + pad - left, spot[1] + pad - top), text, fill=_readable_on(color), font=font)
    return spot


def _label_spot(
    box: np.ndarray[Any, Any], label: tuple[int, int], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Above the box if that is free; else inside it, to its right or below it; else above it over another."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    width, height = label
    spots = []
    for x, y in ((x1, y1 - height), (x1, y1), (x2 - width, y1 - height), (x1, y2), (x1, y2 - height)):
        inside_x = min(max(0, x), max(0, size[0] - width))
        inside_y = min(max(0, y), max(0, size[1] - height))
        spots.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return next((spot for spot in spots if not any(_overlap(spot, other) for other in taken)), spots[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out more (relative luminance, WCAG 2)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
