import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data.images import ImageSamples, find_images
from edgekit.data.pixels import load_image
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError, UsageError
from edgekit.graph import TensorSpec

FLOAT = np.dtype(np.float32)
INPUT = (TensorSpec("x", (1, 3, 32, 32), FLOAT),)


def picture(seed: int = 0, size: tuple[int, int] = (20, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_folder_is_searched_deep_and_sorted(tmp_path: Path) -> None:
    for i, name in enumerate(
        ("b/2.png", "a/1.PNG", "c.bmp", "a/b/0.webp", "z.jpeg", ".hidden.png", ".git/x.png")
    ):
        save(picture(i), tmp_path / name, format=None if name != "a/1.PNG" else "PNG")
    (tmp_path / "labels.txt").write_text("1")
    samples = ImageSamples(tmp_path, INPUT, Preprocess())
    assert samples.count == 5
    first, second = list(samples), list(samples)
    assert [s.name for s in first] == ["a/1.PNG", "a/b/0.webp", "b/2.png", "c.bmp", "z.jpeg"]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.feeds["x"], b.feeds["x"])
    assert first[0].image is not None
    assert first[0].image.shape == (12, 20, 3)
    assert first[0].geometry is not None
    assert samples.notes == ("1 files that are no images were passed over (1 .txt)",)


def test_a_linked_folder_is_followed_once(tmp_path: Path) -> None:
    save(picture(), tmp_path / "data" / "1.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    assert [p.name for p in find_images(tmp_path / "link")[0]] == ["1.png"]


def test_a_limit_is_spread_over_the_folder(tmp_path: Path) -> None:
    for person in range(5):
        for shot in range(4):
            save(picture(), tmp_path / f"s{person}" / f"{shot}.png")
    samples = ImageSamples(tmp_path, INPUT, Preprocess(), limit=5)
    assert samples.count == 5
    assert [s.name[:2] for s in samples] == ["s0", "s1", "s2", "s3", "s4"]
    with pytest.raises(UsageError):
        ImageSamples(tmp_path, INPUT, Preprocess(), limit=0)


def test_unreadable_images_are_named_and_skipped(tmp_path: Path) -> None:
    save(picture(size=(200, 200)), tmp_path / "0.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "3.png").write_text("not an image")
    save(picture(), tmp_path / "4.png")
    samples = ImageSamples(tmp_path, INPUT, Preprocess())
    for _ in range(2):
        assert [s.name for s in samples] == ["0.jpg", "4.png"]
        assert [s.name for s in samples.skipped] == ["1.jpg", "2.png", "3.png"]
    assert all(s.reason.startswith("cannot be decoded: ") for s in samples.skipped)
    assert "truncated" in samples.skipped[0].reason
    assert str(tmp_path) not in samples.skipped[2].reason
    assert samples.count == 5


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"none of the 1 samples can be used; the first, 1.png: cannot be decoded"
    ):
        list(ImageSamples(tmp_path, INPUT, Preprocess()))


def test_images_of_a_wrong_size_are_skipped_where_nothing_resizes(tmp_path: Path) -> None:
    save(picture(size=(32, 32)), tmp_path / "1.png")
    save(picture(), tmp_path / "2.png")
    samples = ImageSamples(tmp_path, INPUT, Preprocess(resize="none"))
    assert [s.name for s in samples] == ["1.png"]
    assert "20x12" in samples.skipped[0].reason


def test_an_empty_folder_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder is empty.*jpg"):
        ImageSamples(tmp_path, INPUT, Preprocess())
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"no images in the folder, but 1 other files \(1 \.csv\)"):
        ImageSamples(tmp_path, INPUT, Preprocess())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((*INPUT, TensorSpec("y", (1, 4), FLOAT)), r"has 2: x \[1, 3, 32, 32\] float32, y.*npz"),
        ((TensorSpec("x", (1, 128), FLOAT),), r"cannot be fed to the input x \[1, 128\].*npz"),
        ((TensorSpec("x", (8, 3, 32, 32), FLOAT),), r"\[8, 3, 32, 32\]"),
        ((TensorSpec("x", (1, 3, 32, 32), np.dtype(np.int64)),), "type int64.*float32"),
    ],
)
def test_a_network_that_takes_no_image_is_refused(
    tmp_path: Path, inputs: tuple[TensorSpec, ...], message: str
) -> None:
    save(picture(), tmp_path / "1.png")
    with pytest.raises(DataError, match=message):
        ImageSamples(tmp_path, inputs, Preprocess())


def test_uint8_networks_get_raw_pixels_and_a_note(tmp_path: Path) -> None:
    save(picture(size=(32, 32)), tmp_path / "1.png")
    samples = ImageSamples(tmp_path, (TensorSpec("x", (1, 32, 32, 3), np.dtype(np.uint8)),), Preprocess())
    (sample,) = samples
    np.testing.assert_array_equal(sample.feeds["x"][0], np.asarray(picture(size=(32, 32))))
    assert "uint8" in samples.notes[0]


def test_leaving_early_stops_the_decoding_thread(tmp_path: Path) -> None:
    for i in range(30):
        save(picture(), tmp_path / f"{i:02}.png")
    iterator = iter(ImageSamples(tmp_path, INPUT, Preprocess()))
    next(iterator)
    del iterator
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("edgekit-decode")]


def test_decoding_stays_only_a_little_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgekit.data.images as module

    for i in range(12):
        save(picture(), tmp_path / f"{i:02}.png")
    decoded: list[str] = []
    original = load_image

    def counted(path: Path) -> np.ndarray:
        decoded.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "load_image", counted)
    for used, _ in enumerate(ImageSamples(tmp_path, INPUT, Preprocess()), start=1):
        if used == 1:
            time.sleep(0.1)  # time enough to decode all, if nothing held the thread back
        assert len(decoded) <= used + 2
    assert len(decoded) == 12
