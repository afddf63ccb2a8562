"""Variations of unlabelled samples, so that a hundred photographs carry far.

An image goes through one affine map, from its own pixels straight to the network's: placement, scale, shift,
rotation and mirroring in one bilinear look-up, as deployment's preprocessing does it. Then colours, then
blur, on the small image. The teacher answers the varied image, so that no label has to follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from edgekit.data.preprocess import Array, Preprocess
from edgekit.train.match import OutputKind

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Augmentation:
    """How strongly samples are varied; all of it is drawn anew each time.

    Attributes:
        scale: Smallest and largest size of the image, relative to its usual one; log-uniform.
        aspect: Largest change of the ratio of its sides.
        shift: Largest displacement, relative to the network's input.
        rotate: Largest rotation, degrees.
        flip: Probability of mirroring left and right.
        color: Largest change of brightness, contrast and saturation, relative; half of it of each channel.
        grey: Probability of taking the colours out.
        blur: Probability of a Gaussian blur of up to 1.5 pixels.
        mosaic: Probability of four images in one.
        noise: Of arrays: standard deviation of added noise, relative to the array's own.
        mixup: Of arrays: probability of a mix with another sample, up to half of it.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    aspect: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    flip: float = 0.0
    color: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    mosaic: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    @property
    def images(self) -> bool:
        """Whether images are varied at all."""
        return replace(self, noise=0.0, mixup=0.0) != NONE

    @property
    def arrays(self) -> bool:
        """Whether arrays are varied at all."""
        return self.noise > 0 or self.mixup > 0


NONE = Augmentation()


def default_augmentation(kind: OutputKind) -> Augmentation:
    """What suits a network whose first output is of this kind.

    Faces come aligned: an embedding's image is hardly moved. Detectors see several scales and mosaics.
    """
    if kind is OutputKind.EMBEDDING:
        return Augmentation((0.94, 1.06), 0.04, 0.04, 5.0, 0.5, 0.3, 0.05, 0.1)
    if kind is OutputKind.DETECTOR:
        return Augmentation((0.6, 1.5), 0.1, 0.2, 0.0, 0.5, 0.3, 0.02, 0.05, 0.3)
    if kind is OutputKind.CLASSES:
        return Augmentation((0.9, 1.4), 0.1, 0.1, 5.0, 0.5, 0.3, 0.05, 0.1)
    return Augmentation((0.9, 1.2), 0.05, 0.05, 0.0, 0.5, 0.2, 0.02, 0.05)


class Augmenter:
    """Makes varied network inputs of images.

    Args:
        spec_name: The input's name.
        shape: The input's shape, [1, C, H, W] or [1, H, W, C].
        dtype: Its element type.
        preprocess: How images become inputs.
        how: The strength.
    """

    def __init__(
        self,
        spec_name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        preprocess: Preprocess,
        how: Augmentation,
    ) -> None:
        self.name, self.shape, self.dtype = spec_name, shape, dtype
        self.preprocess, self.how = preprocess, how
        target = preprocess.image_shape(shape)
        self.size = (target.width, target.height)
        self.pad = (preprocess.pad,) * 3
        # The varied image already has the network's size.
        self._place = preprocess.model_copy(update={"resize": "none"})

    def plain(self, image: Array) -> Feeds:
        """The input as deployment makes it."""
        return {self.name: self.preprocess.apply(image, self.shape, self.dtype)[0]}

    def varied(self, image: Array, others: Sequence[Array], rng: np.random.Generator) -> Feeds:
        """One variation.

        Args:
            image: uint8 [H, W, 3], RGB.
            others: Images that a mosaic takes its other three quarters from.
            rng: Everything is drawn from it.
        """
        how = self.how
        if others and rng.random() < how.mosaic:
            picture = self._mosaic(image, others, rng)
        else:
            picture = self._moved(image, self.size, rng)
        pixels = np.asarray(picture)
        if how.color > 0 or how.grey > 0:
            pixels = recolored(pixels, how, rng)
        if rng.random() < how.blur:
            soft = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
            pixels = np.asarray(soft)
        return {self.name: self._place.apply(pixels, self.shape, self.dtype)[0]}

    def _moved(self, image: Array, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
        """The image in a canvas of ``size`` (width, height), moved and padded."""
        how, (width, height) = self.how, size
        tall, wide = image.shape[:2]
        scale = np.array([width / wide, height / tall])
        if self.preprocess.resize != "stretch":
            scale[:] = scale.min()
        scale *= math.exp(rng.uniform(*np.log(how.scale)))
        scale *= np.exp(rng.uniform(-1, 1) * math.log1p(how.aspect) * np.array([0.5, -0.5]))
        centre = np.array([width, height]) / 2
        if self.preprocess.anchor == "top-left" and self.preprocess.resize == "letterbox":
            centre = np.array([wide, tall]) * min(width / wide, height / tall) / 2
        centre = centre + rng.uniform(-how.shift, how.shift, 2) * np.array([width, height])
        angle = math.radians(rng.uniform(-how.rotate, how.rotate))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        # From canvas to image, as Pillow wants it.
        back = turn / scale[:, None]
        if rng.random() < how.flip:
            back[0] *= -1
        offset = np.array([wide, tall]) / 2 - back @ centre
        matrix = (*back[0], offset[0], *back[1], offset[1])
        return Image.fromarray(image).transform(
            size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=self.pad
        )

    def _mosaic(self, image: Array, others: Sequence[Array], rng: np.random.Generator) -> Image.Image:
        """Four images about a random centre."""
        width, height = self.size
        canvas = Image.new("RGB", self.size, self.pad)
        x = int(width * rng.uniform(0.35, 0.65))
        y = int(height * rng.uniform(0.35, 0.65))
        corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        picked = [image, *(others[i] for i in rng.integers(len(others), size=3))]
        order = rng.permutation(4)
        for (left, top, right, bottom), index in zip(corners, order, strict=True):
            canvas.paste(self._moved(picked[index], (right - left, bottom - top), rng), (left, top))
        return canvas


def recolored(pixels: Array, how: Augmentation, rng: np.random.Generator) -> Array:
    """Change brightness, contrast, tint and saturation of uint8 [H, W, 3]: a table per channel, one blend."""
    amount = how.color
    gain = 1 + rng.uniform(-amount, amount)
    contrast = 1 + rng.uniform(-amount, amount)
    tint = 1 + rng.uniform(-amount, amount, 3) / 2
    levels = np.arange(256, dtype=np.float32)
    table = ((levels - 114) * contrast + 114)[:, None] * (gain * tint)[None]
    table = np.clip(table + 0.5, 0, 255).astype(np.uint8)
    colored = np.stack([table[:, c][pixels[..., c]] for c in range(3)], axis=-1)
    saturation = 0.0 if rng.random() < how.grey else 1 + rng.uniform(-amount, amount)
    if saturation == 1:
        return colored
    picture = Image.fromarray(colored)
    grey = picture.convert("L").convert("RGB")
    return np.asarray(Image.blend(grey, picture, saturation))


def varied_arrays(
    feeds: Mapping[str, Array],
    others: Sequence[Mapping[str, Array]],
    how: Augmentation,
    rng: np.random.Generator,
) -> Feeds:
    """Noise and mixup for samples that came as arrays; whole numbers stay as they are."""
    share, other = 0.0, feeds
    # A network that reads whole numbers, such as tokens, has no sample halfway between two.
    floats = all(value.dtype.kind == "f" for value in feeds.values())
    if others and floats and rng.random() < how.mixup:
        share, other = rng.uniform(0, 0.5), others[int(rng.integers(len(others)))]
    result: Feeds = {}
    for name, value in feeds.items():
        if value.dtype.kind != "f":
            result[name] = value
            continue
        mixed = value if share == 0 else value * (1 - share) + other[name] * share
        if how.noise > 0:
            mixed = mixed + rng.normal(size=value.shape) * (how.noise * float(value.std()))
        result[name] = np.asarray(mixed, value.dtype)
    return result
