import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit.data.preprocess import Geometry, Preprocess, image_shape
from edgekit.errors import DataError, UsageError

YOLOX = "resize=letterbox,anchor=top-left,pad=114,color=bgr,divide=1"
sides = st.integers(1, 900)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def to_network(geometry: Geometry, boxes: np.ndarray) -> np.ndarray:
    """The inverse of ``Geometry.to_image``."""
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    pad = np.array([geometry.pad_left, geometry.pad_top] * 2)
    return np.asarray(boxes * scale + pad)


@given(sides, sides, st.integers(8, 640), st.integers(8, 640), st.sampled_from(["center", "top-left"]))
def test_letterbox_maps_boxes_there_and_back(
    width: int, height: int, rows: int, columns: int, anchor: str
) -> None:
    preprocess = Preprocess.model_validate({"anchor": anchor})
    array, geometry = preprocess.apply(np.zeros((height, width, 3), np.uint8), (1, 3, rows, columns))
    assert array.shape == (1, 3, rows, columns)
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height * 0.9]])
    inside = to_network(geometry, boxes)
    assert inside.min() >= -1e-9
    assert (inside[:, 2] <= columns + 1e-9).all()
    assert (inside[:, 3] <= rows + 1e-9).all()
    np.testing.assert_allclose(geometry.to_image(inside), boxes, atol=1e-6)


@given(sides, sides, st.integers(8, 300), st.integers(8, 300))
def test_the_padding_is_exactly_what_the_geometry_says(
    width: int, height: int, rows: int, columns: int
) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    array, geometry = Preprocess(pad=0, divide=1).apply(image, (1, 1, rows, columns))
    lit = np.argwhere(array[0, 0] > 0)
    x1, y1, x2, y2 = to_network(geometry, np.array([[0.0, 0.0, width, height]]))[0].round()
    assert [*lit.min(axis=0), *(lit.max(axis=0) + 1)] == [y1, x1, y2, x2]
    # One side is filled, and the ratio is kept to within a pixel.
    assert x2 - x1 == columns or y2 - y1 == rows
    scale = min(columns / width, rows / height)
    assert max(abs(x2 - x1 - width * scale), abs(y2 - y1 - height * scale)) <= 1


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    image = noise(37, 53)
    array, _ = Preprocess(resize="stretch", divide=1).apply(image, (1, 3, 20, 31))
    for y, x in ((0, 0), (7, 11), (19, 30), (12, 3)):
        at_y, at_x = (y + 0.5) * 37 / 20 - 0.5, (x + 0.5) * 53 / 31 - 0.5
        top, left = int(np.floor(at_y)), int(np.floor(at_x))
        part_y, part_x = at_y - top, at_x - left
        ys, xs = np.clip([top, top + 1], 0, 36), np.clip([left, left + 1], 0, 52)
        corners = image[np.ix_(ys, xs)].astype(float)
        expected = np.einsum("y,x,yxc->c", [1 - part_y, part_y], [1 - part_x, part_x], corners)
        np.testing.assert_allclose(array[0, :, y, x], expected, atol=1.01)


def test_yolox_convention() -> None:
    image = np.zeros((200, 100, 3), np.uint8)
    image[:, :, 0] = 200  # red
    array, geometry = Preprocess.parse(YOLOX).apply(image, (1, 3, 416, 416))
    assert (geometry.pad_left, geometry.pad_top) == (0, 0)
    assert array[0, :, 10, 10].tolist() == [0, 0, 200]
    assert array[0, :, 10, 300].tolist() == [114, 114, 114]
    assert array.dtype == np.float32
    assert array.flags["C_CONTIGUOUS"]


def test_default_is_rgb_over_255_centred() -> None:
    array, geometry = Preprocess().apply(np.full((50, 100, 3), (255, 0, 51), np.uint8), (1, 3, 100, 100))
    assert (geometry.pad_left, geometry.pad_top) == (0, 25)
    np.testing.assert_allclose(array[0, :, 50, 50], [1, 0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(array[0, :, 0, 0], 114 / 255, rtol=1e-6)


def test_mean_and_std_follow_the_division_in_the_networks_order() -> None:
    preprocess = Preprocess.parse("color=bgr,mean=0.1/0.2/0.3,std=0.5:0.25:2,resize=none")
    image = np.full((4, 4, 3), (255, 0, 51), np.uint8)
    array, _ = preprocess.apply(image, (1, 3, 4, 4))
    np.testing.assert_allclose(array[0, :, 0, 0], [(0.2 - 0.1) / 0.5, -0.2 / 0.25, (1 - 0.3) / 2], rtol=1e-6)


def test_layouts_hold_the_same_numbers() -> None:
    image = noise(33, 47)
    first, _ = Preprocess().apply(image, (1, 3, 24, 40))
    last, _ = Preprocess().apply(image, (1, 24, 40, 3))
    np.testing.assert_array_equal(first[0].transpose(1, 2, 0), last[0])
    assert last.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((1, 3, 8, 9), "auto", (8, 9, 3, True)),
        ((1, 8, 9, 3), "auto", (8, 9, 3, False)),
        ((1, 1, 8, 9), "auto", (8, 9, 1, True)),
        ((1, 3, 8, 3), "nhwc", (3, 8, 3, False)),
        ((1, 3, 8, 9), "nhwc", None),
        ((2, 3, 8, 9), "auto", None),
        ((1, 4, 8, 9), "auto", None),
        ((1, 128), "auto", None),
    ],
)
def test_image_shape(
    shape: tuple[int, ...], layout: str, expected: tuple[int, int, int, bool] | None
) -> None:
    found = image_shape(shape, layout)
    assert (found and (found.height, found.width, found.channels, found.channels_first)) == expected


def test_one_channel_gets_the_luminance() -> None:
    image = noise(16, 16)
    array, _ = Preprocess(divide=1).apply(image, (1, 16, 16, 1))
    np.testing.assert_array_equal(array[0, :, :, 0], np.asarray(Image.fromarray(image).convert("L")))
    with pytest.raises(DataError, match="one channel"):
        Preprocess.parse("mean=0.1/0.2/0.3").apply(image, (1, 1, 16, 16))


def test_uint8_inputs_get_raw_pixels() -> None:
    image = noise(16, 16)
    array, _ = Preprocess.parse("mean=0.5,std=0.2,color=bgr").apply(image, (1, 16, 16, 3), np.uint8)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[0], image[:, :, ::-1])


def test_without_resize_the_size_must_fit() -> None:
    with pytest.raises(DataError, match=r"20x10.*32x32.*letterbox"):
        Preprocess(resize="none").apply(noise(10, 20), (1, 3, 32, 32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=3", "unknown key 'size'.*resize.*layout"),
        ("resize=crop", "'resize' cannot be 'crop'.*letterbox, stretch, none"),
        ("anchor=bottom", "center, top-left"),
        ("pad=300", "whole number from 0 to 255"),
        ("pad=grey", "whole number"),
        ("divide=0", "above 0"),
        ("divide=inf", "above 0"),
        ("mean=1/2", "'mean' cannot be '1/2'.*three numbers"),
        ("mean=nan", "three numbers"),
        ("std=0.1/0/0.1", "above 0"),
        ("color", "'color' has no value"),
        ("color=", "'color' has no value"),
        ("color=rgb,color=bgr", "twice"),
    ],
)
def test_parse_says_what_is_valid(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess.parse(text)


def test_parse_and_read_agree_and_round_trip() -> None:
    parsed = Preprocess.parse(" resize=stretch , divide=127.5, mean=1, std=0.5/0.25/0.125, layout=nhwc ")
    assert parsed.mean == (1, 1, 1)
    assert Preprocess.read(parsed.model_dump()) == parsed
    assert Preprocess.parse("") == Preprocess()
    with pytest.raises(UsageError, match="unknown key 'colour'"):
        Preprocess.read({"colour": "rgb"})


def test_describe_is_one_line_with_what_matters() -> None:
    assert Preprocess().describe() == "RGB / 255, letterboxed (centred, padded with 114)"
    text = Preprocess.parse(YOLOX + ",mean=1,std=2,layout=nchw").describe()
    assert text == "BGR 0–255, minus 1/1/1, over 2/2/2, letterboxed (top-left, padded with 114), NCHW"


def test_a_photo_takes_less_than_8_ms() -> None:
    image, preprocess = noise(480, 640), Preprocess()
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        preprocess.apply(image, (1, 3, 416, 416))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.008
