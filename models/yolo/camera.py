"""The camera: light falling on the scene, lens blur, sensor noise, compression. RGB images in and out, same
size.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from .props import chance

_COARSE = 32  # light changes slowly, so it is computed on a coarse grid and enlarged


def _light(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Brightness factors [size, size]: a slope, a spot of light, dark corners, perhaps a cast shadow."""
    axis = np.linspace(-1, 1, _COARSE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.32) * (x * np.cos(angle) + y * np.sin(angle))
    cx, cy = rng.uniform(-1, 1, 2)
    light += rng.uniform(0, 0.35) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.1, 0.8))
    light *= 1 - rng.uniform(0, 0.2) * (x**2 + y**2)
    coarse = Image.fromarray(light.astype(np.float32))
    factors = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    if chance(rng, 0.35):
        factors = factors * _shadow(rng, size)
    return factors.astype(np.float32)


def _shadow(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Factors of a soft-edged shadow with one straight edge, as of a door or a person."""
    small = size // 2
    mask = Image.new("L", (small, small), 255)
    middle, angle = rng.uniform(0.25, 0.75, 2) * small, rng.uniform(0, 2 * np.pi)
    along, away = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    width = rng.uniform(0.3, 1.5) * small
    corners = (
        middle - 2 * small * along, middle + 2 * small * along,
        middle + 2 * small * along + width * away, middle - 2 * small * along + width * away,
    )  # fmt: skip
    ImageDraw.Draw(mask).polygon(
        [(float(p[0]), float(p[1])) for p in corners], fill=int(rng.uniform(110, 200))
    )
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 6.0))).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return np.asarray(mask, np.float32) / np.float32(255)


def _shake(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Motion blur along a short straight path."""
    angle, reach = rng.uniform(0, np.pi), rng.uniform(0.8, 2.2)
    kernel = np.zeros((5, 5), np.float32)
    for step in np.linspace(-reach, reach, 9):
        kernel[round(2 + step * np.sin(angle)), round(2 + step * np.cos(angle))] += 1
    return image.filter(ImageFilter.Kernel((5, 5), list(kernel.ravel()), float(kernel.sum())))


def compress(image: Image.Image, quality: int) -> Image.Image:
    """The image after a JPEG round trip."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def shoot(rng: np.random.Generator, scene: Image.Image) -> npt.NDArray[np.uint8]:
    """What a cheap camera makes of the scene: uint8 [size, size, 3]."""
    size = scene.size[0]
    if chance(rng, 0.15):
        scene = _shake(rng, scene)
    elif chance(rng, 0.6):
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.95)))
    pixels = np.asarray(scene, np.float32)
    cast = rng.uniform(0.92, 1.08, 3) * np.exp(rng.normal(0.0, 0.14))
    pixels = pixels * (_light(rng, size)[..., None] * cast.astype(np.float32))
    contrast, black = rng.uniform(0.8, 1.1), rng.uniform(0, 14)
    pixels = (pixels - 128) * np.float32(contrast) + np.float32(128 + black / 2)
    if chance(rng, 0.75):
        sigma = np.float32(rng.uniform(0.5, 7.0))
        noise = rng.standard_normal((size, size, 3), dtype=np.float32)
        if chance(rng, 0.5):  # demosaicing spreads grain over neighbours
            noise[:, 1:] = (noise[:, 1:] + noise[:, :-1]) * np.float32(0.7)
        pixels = pixels + noise * sigma
    shot: npt.NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    if chance(rng, 0.6):
        shot = np.asarray(compress(Image.fromarray(shot), int(rng.integers(38, 95))))
    return shot
