from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import OutputError
from edgekit.measure.decode import Detections
from edgekit.measure.overlay import class_color, draw_detections, save_jpeg

GREY = np.full((480, 640, 3), 128, np.uint8)


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores), np.array(classes, np.int64)
    )


def changed(picture: Image.Image) -> np.ndarray:
    return np.asarray((np.asarray(picture).astype(int) != 128).any(axis=2))


def test_a_box_is_drawn_where_it_is_in_its_colour() -> None:
    picture = draw_detections(GREY, found([[100, 200, 300, 400]], [0.9], [3]), ["a", "b", "c", "dog"])
    assert picture.size == (640, 480)
    assert picture.getpixel((200, 399)) == picture.getpixel((100, 300)) == class_color(3)
    marks = changed(picture)
    assert not marks[203:396, 104:296].any()
    assert not marks[:150].any()
    assert marks[170:200, 100:160].any()  # the label


def test_weak_detections_are_left_out_and_the_best_kept() -> None:
    weak = found([[100, 200, 300, 400]], [0.2], [0])
    assert not changed(draw_detections(GREY, weak)).any()
    assert changed(draw_detections(GREY, weak, score=0.1)).any()
    many = found(
        [[i * 20, 100, i * 20 + 10, 110] for i in range(30)], [0.3 + i / 100 for i in range(30)], [0] * 30
    )
    assert changed(draw_detections(GREY, many, limit=1))[100:111, :560].sum() == 0


def test_labels_stay_inside_and_apart() -> None:
    corner = draw_detections(GREY, found([[600, 0, 640, 30]], [0.9], [0]), ["a long name for a class"])
    assert changed(corner)[:40, 420:].any()
    twice = found([[200, 200, 300, 300], [202, 202, 300, 300]], [0.9, 0.8], [0, 1])
    marks = changed(draw_detections(GREY, twice, ["left", "right"]))
    assert marks[180:199, 200:230].any()
    assert marks[205:220, 206:230].any()  # the second label moved into its box


@pytest.mark.parametrize(("side", "expected"), [(64, 480), (4000, 640), (600, 600)])
def test_pictures_have_a_readable_size(side: int, expected: int) -> None:
    image = np.full((side // 2, side, 3), 128, np.uint8)
    picture = draw_detections(image, found([[0, 0, side, side / 2]], [1.0], [0]))
    assert max(picture.size) == expected
    assert changed(picture)[0, expected // 2]


def test_first_classes_have_different_colours() -> None:
    colors = np.array([class_color(k) for k in range(10)], float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 999 * np.eye(10)
    assert apart.min() > 30


def test_a_picture_is_saved_as_jpeg_or_not_at_all(tmp_path: Path) -> None:
    red = Image.new("RGB", (100, 80), "red")
    save_jpeg(red, tmp_path / "new" / "x.jpg")
    with Image.open(tmp_path / "new" / "x.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.size == (100, 80)
    with pytest.raises(OutputError):
        save_jpeg(red, tmp_path / "new" / "x.jpg" / "y.jpg")
