"""From a decoded image to the array a network takes, and back from network pixels to image pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgekit.errors import DataError, UsageError

Array = np.ndarray[Any, Any]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Where an image lies inside the network's input.

    A point (x, y) of the image is at (x · scale_x + pad_left, y · scale_y + pad_top) of the input.
    Coordinates are in pixels and measure edges: the first pixel spans 0 to 1.

    Attributes:
        scale_x: Input pixels per image pixel, across.
        scale_y: Input pixels per image pixel, down.
        pad_left: Columns of padding left of the image.
        pad_top: Rows of padding above the image.
        width: Width of the image in its own pixels.
        height: Height of the image in its own pixels.
    """

    scale_x: float
    scale_y: float
    pad_left: int
    pad_top: int
    width: int
    height: int

    def to_image(self, boxes: Array) -> Array:
        """Boxes [K, 4] (x1, y1, x2, y2) from input pixels to image pixels, clipped to the image."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        pad = np.array([self.pad_left, self.pad_top] * 2)
        limit = np.array([self.width, self.height] * 2)
        return np.asarray(np.clip((boxes - pad) / scale, 0, limit))


@dataclass(frozen=True)
class ImageShape:
    """A network input read as one image.

    Attributes:
        height: Rows.
        width: Columns.
        channels: 1 (grey) or 3.
        channels_first: True for [1, C, H, W], False for [1, H, W, C].
    """

    height: int
    width: int
    channels: int
    channels_first: bool


def image_shape(shape: tuple[int, ...], layout: str = "auto") -> ImageShape | None:
    """Read an input shape as one image, [1, C, H, W] or [1, H, W, C] with C = 1 or 3; None if it is none."""
    if len(shape) != 4 or shape[0] != 1:
        return None
    if layout in ("auto", "nchw") and shape[1] in (1, 3):
        return ImageShape(shape[2], shape[3], shape[1], channels_first=True)
    if layout in ("auto", "nhwc") and shape[3] in (1, 3):
        return ImageShape(shape[1], shape[2], shape[3], channels_first=False)
    return None


class Preprocess(BaseModel):
    """How images become inputs: resize, order the channels, then ``(pixel / divide - mean) / std``.

    Resizing is bilinear between the four nearest pixels, as in OpenCV and on most devices: no averaging when
    the image shrinks.

    Attributes:
        resize: ``letterbox`` keeps the aspect ratio and pads, ``stretch`` does not keep it, ``none`` takes
            images that have the network's size already.
        anchor: Where a letterboxed image lies: ``center`` or ``top-left``.
        pad: Grey level of the padding, 0 to 255, before ``divide``.
        color: Channel order the network takes. An input of one channel gets the luminance.
        divide: Divisor that pixels of 0 to 255 go through first.
        mean: Subtracted after the division, in the network's channel order.
        std: Divides what remains, in the network's channel order.
        layout: ``nchw``, ``nhwc``, or ``auto`` to tell from the input's shape.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Literal["letterbox", "stretch", "none"] = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad: int = Field(default=114, ge=0, le=255)
    color: Literal["rgb", "bgr"] = "rgb"
    divide: float = Field(default=255.0, gt=0, allow_inf_nan=False)
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    layout: Literal["auto", "nchw", "nhwc"] = "auto"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _widen(cls, value: Any) -> Any:
        """One number stands for all three channels."""
        if isinstance(value, (int, float)):
            return (value,) * 3
        return tuple(value) * 3 if isinstance(value, (list, tuple)) and len(value) == 1 else value

    @field_validator("mean", "std")
    @classmethod
    def _finite(cls, value: Triple) -> Triple:
        if not all(math.isfinite(v) for v in value):
            raise ValueError("must be finite")
        return value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: Triple) -> Triple:
        if min(value) <= 0:
            raise ValueError("must be above 0")
        return value

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``key=value`` pairs set apart by commas; three numbers are set apart by ``/`` or ``:``.

        Example: ``resize=letterbox,anchor=top-left,color=bgr,divide=1,mean=0.485/0.456/0.406``.

        Raises:
            UsageError: An unknown key, or a value that the key does not take.
        """
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in cls.model_fields:
                raise UsageError(f"unknown key '{key}'", where="preprocess", valid=cls.model_fields)
            if not equals or not value:
                raise UsageError(f"'{key}' has no value", where="preprocess", hint=f"Write {key}=…")
            if key in values:
                raise UsageError(f"'{key}' is given twice", where="preprocess")
            values[key] = value.replace(":", "/").split("/") if key in ("mean", "std") else value
        return cls.read(values)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Check a table of keys and values, as a recipe holds it.

        Raises:
            UsageError: An unknown key, or a value that the key does not take.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            if key not in cls.model_fields:
                raise UsageError(
                    f"unknown key '{key}'", where="preprocess", valid=cls.model_fields
                ) from error
            raise UsageError(
                f"'{key}' cannot be {_shown(values[key])}", where="preprocess", valid=_valid_values(key)
            ) from error

    def describe(self) -> str:
        """One line for the screen, such as ``RGB / 255, letterboxed (centred, padded with 114)``."""
        parts = [
            f"{self.color.upper()} / {self.divide:g}" if self.divide != 1 else f"{self.color.upper()} 0–255"
        ]
        if self.mean != (0, 0, 0):
            parts.append("minus " + "/".join(f"{v:g}" for v in self.mean))
        if self.std != (1, 1, 1):
            parts.append("over " + "/".join(f"{v:g}" for v in self.std))
        place = "centred" if self.anchor == "center" else "top-left"
        parts.append(
            {
                "letterbox": f"letterboxed ({place}, padded with {self.pad})",
                "stretch": "stretched to the input's size",
                "none": "not resized",
            }[self.resize]
        )
        if self.layout != "auto":
            parts.append(self.layout.upper())
        return ", ".join(parts)

    def image_shape(self, shape: tuple[int, ...]) -> ImageShape:
        """Read a network input's shape as one image.

        Raises:
            DataError: The shape is not that of one image.
        """
        found = image_shape(shape, self.layout)
        if found is None:
            raise DataError(
                f"an input of shape {list(shape)} is not one image",
                where="preprocess" if self.layout == "auto" else f"preprocess, layout={self.layout}",
                valid=("[1, C, H, W]", "[1, H, W, C] with C = 1 or 3"),
                hint="Give the samples as an .npz file or a callable instead of images",
            )
        return found

    def apply(
        self, image: Array, shape: tuple[int, ...], dtype: np.dtype[Any] | type = np.float32
    ) -> tuple[Array, Geometry]:
        """Make one network input.

        Args:
            image: Pixels, uint8 [H, W, 3], RGB.
            shape: The input's shape, [1, C, H, W] or [1, H, W, C].
            dtype: The input's element type. ``uint8`` gets the raw pixels: no divide, mean or std.

        Returns:
            A contiguous array of ``shape``, and where the image lies in it.

        Raises:
            DataError: ``shape`` is not one image, or the image's size is wrong under ``resize = "none"``.
        """
        target = self.image_shape(shape)
        geometry, width, height = self._place(image, target)
        planes = _resized_planes(image, width, height, grey=target.channels == 1)
        if target.channels == 3 and self.color == "bgr":
            planes.reverse()
        tables = self._tables(np.dtype(dtype), target.channels)
        result = np.empty(shape, dtype)
        channels = result[0] if target.channels_first else result[0].transpose(2, 0, 1)
        rows = slice(geometry.pad_top, geometry.pad_top + height)
        columns = slice(geometry.pad_left, geometry.pad_left + width)
        padded = (height, width) != (target.height, target.width)
        for channel, plane, table in zip(channels, planes, tables, strict=True):
            if padded:
                channel[...] = table[self.pad]
            channel[rows, columns] = table[plane]
        return result, geometry

    def _place(self, image: Array, target: ImageShape) -> tuple[Geometry, int, int]:
        """The geometry, and the image's width and height inside the input."""
        height, width = image.shape[:2]
        if self.resize == "none":
            if (height, width) != (target.height, target.width):
                raise DataError(
                    f"the image is {width}x{height}, the network takes {target.width}x{target.height}",
                    hint="Use resize=letterbox or resize=stretch",
                )
            return Geometry(1.0, 1.0, 0, 0, width, height), width, height
        new_width, new_height = target.width, target.height
        if self.resize == "letterbox":
            scale = min(target.width / width, target.height / height)
            new_width = min(max(round(width * scale), 1), target.width)
            new_height = min(max(round(height * scale), 1), target.height)
        left, top = target.width - new_width, target.height - new_height
        left, top = (left // 2, top // 2) if self.anchor == "center" else (0, 0)
        geometry = Geometry(new_width / width, new_height / height, left, top, width, height)
        return geometry, new_width, new_height

    def _tables(self, dtype: np.dtype[Any], channels: int) -> list[Array]:
        """For each channel, what each of the 256 pixel values becomes."""
        levels = np.arange(256)
        if dtype == np.uint8:
            return [levels.astype(np.uint8)] * channels
        if channels == 1 and (len(set(self.mean)) > 1 or len(set(self.std)) > 1):
            raise DataError(
                "the network takes one channel, but mean or std differ between three",
                hint="Give one number each",
            )
        pairs = list(zip(self.mean, self.std, strict=True))[:channels]
        return [((levels / self.divide - mean) / std).astype(dtype) for mean, std in pairs]


def _resized_planes(image: Array, width: int, height: int, *, grey: bool) -> list[Array]:
    """The image's channels, each uint8 [height, width]."""
    from PIL import Image

    picture = Image.fromarray(image)
    if grey:
        picture = picture.convert("L")
    if picture.size != (width, height):
        # An affine map of pixel centres samples the four nearest pixels. `resize` would average over
        # all of them.
        step_x, step_y = picture.width / width, picture.height / height
        picture = picture.transform(
            (width, height), Image.Transform.AFFINE, (step_x, 0, 0, 0, step_y, 0), Image.Resampling.BILINEAR
        )
    return [np.asarray(plane) for plane in picture.split()]


def _valid_values(key: str) -> tuple[str, ...]:
    options = get_args(Preprocess.model_fields[key].annotation)
    if all(isinstance(option, str) for option in options) and options:
        return options
    return {
        "pad": ("a whole number from 0 to 255",),
        "divide": ("a number above 0",),
        "mean": ("one number", "three numbers such as 0.485/0.456/0.406"),
        "std": ("one number above 0", "three numbers above 0 such as 0.229/0.224/0.225"),
    }[key]


def _shown(value: Any) -> str:
    return "'" + ("/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)) + "'"
