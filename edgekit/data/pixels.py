"""Decoding image files to RGB pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data.preprocess import Array
from edgekit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def load_image(path: Path) -> Array:
    """Decode an image file: uint8 [H, W, 3], RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: The file is missing or is not an image that can be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            return to_rgb(picture)
    except DataError:
        raise
    # Pillow's decoders let through whatever a broken file makes them do: OSError, SyntaxError, struct.error …
    except Exception as error:
        text = str(error).replace(f"'{path}'", "the file").strip() or type(error).__name__
        raise DataError(f"cannot be decoded: {text}", where=str(path)) from error


def to_rgb(picture: Image.Image) -> Array:
    """Pixels of a Pillow image as uint8 [H, W, 3], RGB. Alpha is dropped; 16 bits become 8.

    Raises:
        DataError: The pixels are floating-point numbers, whose range is unknown.
    """
    if picture.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion cuts everything above 255 off.
        values = np.asarray(picture).astype(np.int64)
        grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode == "F":
        raise DataError("has floating-point pixels", hint="Give such images as arrays")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))
