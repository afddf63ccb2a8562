"""The scene generator: repeatable, its boxes tight and inside, its splits apart."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from edgekit.models.yolo import data, displays, glyphs, labels, scenes
from edgekit.models.yolo.glyphs import (
    FONTS,
    SegmentStyle,
    Split,
    handwritten,
    outline,
    printed,
    scan_indices,
    segments_of,
    seven_segment,
)
from edgekit.models.yolo.props import Maker, Prop, placed
from edgekit.models.yolo.surroundings import photo_region


def test_a_scene_depends_on_its_arguments_alone() -> None:
    first = scenes.make_scene(Split.TRAIN, 3, 7)
    scenes.make_scene(Split.VALIDATION, 1, 9)
    again = scenes.make_scene(Split.TRAIN, 3, 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(first.labels, again.labels)


@pytest.mark.parametrize(
    ("split", "index", "seed"), [(Split.VALIDATION, 3, 7), (Split.TRAIN, 4, 7), (Split.TRAIN, 3, 8)]
)
def test_every_argument_matters(split: Split, index: int, seed: int) -> None:
    assert not np.array_equal(
        scenes.make_scene(split, index, seed).image, scenes.make_scene(Split.TRAIN, 3, 7).image
    )


@pytest.mark.parametrize("split", list(Split))
def test_scenes_keep_their_promises(split: Split) -> None:
    for scene in scenes.scenes(split, 12, 5):
        assert scene.image.shape == (scenes.SIZE, scenes.SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert scenes.FEWEST <= len(scene.labels) <= scenes.MOST
        assert len(scene.boxes) == len(scene.labels)
        assert set(scene.labels.tolist()) <= set(range(10))
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= scenes.SIZE
        sizes = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (sizes >= scenes.SMALLEST).all()
        assert sizes.max() <= scenes.LARGEST


def test_digits_do_not_cover_each_other() -> None:
    for scene in scenes.scenes(Split.TRAIN, 10, 6):
        for a, b in combinations(scene.boxes, 2):
            width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            shared = max(0.0, float(width)) * max(0.0, float(height))
            smaller = min(float((box[2:] - box[:2]).prod()) for box in (a, b))
            # Boxes of neighbours in a turned row overlap a little, their digits do not.
            assert shared < 0.5 * smaller


@pytest.mark.parametrize("digit", range(10))
def test_boxes_are_tight_around_turned_digits(digit: int) -> None:
    mask = printed(digit, FONTS[2], 90)
    patch = Image.new("RGBA", (160, 160), (255, 255, 255, 0))
    alpha = Image.new("L", patch.size)
    alpha.paste(Image.fromarray(mask), (40, 30))
    patch.putalpha(alpha)
    prop = Prop(patch, (placed(digit, mask, (40, 30)),), flat=True)
    rng = np.random.default_rng(digit)
    corners = (scenes._corners(rng, patch.size, 15.0) + 128).astype(np.float32)
    scene = Image.new("RGB", (scenes.SIZE, scenes.SIZE))
    scenes._paste(rng, scene, prop, corners)
    rows, columns = np.nonzero(np.asarray(scene)[..., 0] > 110)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    source = np.array([[0, 0], [160, 0], [160, 160], [0, 160]], np.float32)
    box = scenes._boxes(prop.inks, scenes._homography(source, corners))[0]
    np.testing.assert_allclose(box, seen, atol=1.5)


def test_an_outline_has_the_extremes_of_the_ink() -> None:
    mask = np.zeros((9, 12), np.uint8)
    mask[2:5, 3:10] = 255
    points = outline(mask)
    assert points.min(axis=0).tolist() == [3, 2]
    assert points.max(axis=0).tolist() == [10, 5]
    with pytest.raises(ValueError, match="without ink"):
        outline(np.zeros((3, 3), np.uint8))


def test_every_digit_lights_its_own_segments() -> None:
    style = SegmentStyle(40)
    masks = [seven_segment(segments_of(digit), style) for digit in range(10)]
    assert all(mask.shape == (40, style.advance) for mask in masks)
    assert all(not np.array_equal(a, b) for a, b in combinations(masks, 2))


def test_handwriting_keeps_its_height() -> None:
    for digit in range(10):
        mask = handwritten(np.random.default_rng(digit), digit, Split.VALIDATION, 40)
        assert abs(mask.shape[0] - 40) <= 2


@pytest.mark.parametrize(
    "maker",
    [displays.lcd, displays.led, displays.counter, displays.dial, labels.label, labels.number_plate,
     labels.sticker, labels.note, labels.painted],
)  # fmt: skip
def test_props_hold_their_digits(maker: Maker) -> None:
    prop = maker(np.random.default_rng(1), (0, 5, 9), 60, Split.TRAIN)
    assert sorted(ink.label for ink in prop.inks) == [0, 5, 9]
    for ink in prop.inks:
        assert (ink.points >= 0).all()
        assert (ink.points <= prop.patch.size).all()


def test_validation_shares_neither_scans_nor_photo_regions_with_training() -> None:
    train, held_out = set(scan_indices(Split.TRAIN).tolist()), set(scan_indices(Split.VALIDATION).tolist())
    assert not train & held_out
    assert len(held_out) == pytest.approx(0.2 * (len(train) + len(held_out)), abs=1)
    for photo in range(2):
        assert photo_region(Split.TRAIN, photo)[2] <= photo_region(Split.VALIDATION, photo)[0]


def test_seeds_are_apart() -> None:
    seeds = [data.TRAINING_SEED, data.CALIBRATION_SEED, data.VALIDATION_SEED, data.MONITOR_SEED]
    assert len(set(seeds)) == len(seeds)


def test_hooks_stream_images_that_match_their_annotations() -> None:
    document = data.scene_annotations(4, data.VALIDATION_SEED)
    assert [image["id"] for image in document["images"]] == [0, 1, 2, 3]
    assert [category["id"] for category in document["categories"]] == list(range(10))
    assert len({found["id"] for found in document["annotations"]}) == len(document["annotations"])
    second = scenes.make_scene(Split.VALIDATION, 1, data.VALIDATION_SEED)
    mine = [found for found in document["annotations"] if found["image_id"] == 1]
    assert [found["category_id"] for found in mine] == second.labels.tolist()
    left, top, right, bottom = second.boxes[0].tolist()
    assert mine[0]["bbox"] == [left, top, right - left, bottom - top]
    assert mine[0]["area"] == pytest.approx((right - left) * (bottom - top))
    stream = data.validation()
    next(stream)
    assert np.array_equal(next(stream), second.image)
    assert next(data.calibration()).shape == (256, 256, 3)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"edgekit\[yolo\].*scikit-learn"):
        glyphs.datasets()
    with pytest.raises(ModuleNotFoundError, match=r"edgekit\[yolo\].*font-of-nobody"):
        glyphs._font_file("font_of_nobody/files/None.ttf")


def test_a_recipe_can_list_the_model_without_loading_torch() -> None:
    code = "import sys, edgekit.models.yolo, edgekit.models.yolo.data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
