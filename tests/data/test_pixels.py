from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data.pixels import load_image
from edgekit.errors import DataError


def picture(seed: int = 0, size: tuple[int, int] = (20, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    base = picture()
    rgb = np.asarray(base)
    grey = np.asarray(base.convert("L"))
    alpha = base.convert("RGBA")
    alpha.putalpha(7)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    expected = {
        "rgb": rgb,
        "rgba": rgb,
        "grey": np.repeat(grey[..., None], 3, 2),
        "wide": np.repeat(grey[..., None], 3, 2),
    }
    for name, image in {"rgb": base, "rgba": alpha, "grey": base.convert("L"), "wide": wide}.items():
        np.testing.assert_array_equal(load_image(save(image, tmp_path / f"{name}.png")), expected[name])
    indexed = base.quantize(4)
    found = load_image(save(indexed, tmp_path / "p.png"))
    np.testing.assert_array_equal(found, np.asarray(indexed.convert("RGB")))
    found = load_image(save(indexed, tmp_path / "pt.png", transparency=0))
    np.testing.assert_array_equal(found, np.asarray(indexed.convert("RGB")))
    assert load_image(save(base.convert("CMYK"), tmp_path / "cmyk.jpg")).shape == rgb.shape
    assert load_image(save(base.convert("1"), tmp_path / "bit.png")).shape == rgb.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}[orientation]
    upright = picture()
    # Pillow's transpositions undo the orientation; applying the inverse stores the picture as a camera would.
    inverse = {2: 4, 4: 2}
    stored = upright
    for turn in turns:
        stored = stored.transpose(Image.Transpose(inverse.get(turn, turn)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(load_image(path), np.asarray(upright))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    # The suffix says nothing: Pillow looks at the content.
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.png", format="TIFF")
    with pytest.raises(DataError, match="has floating-point pixels"):
        load_image(tmp_path / "x.png")
