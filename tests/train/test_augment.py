"""Variations of images and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.data.preprocess import Preprocess
from edgekit.train.augment import NONE, Augmentation, Augmenter, default_augmentation, varied_arrays
from edgekit.train.match import OutputKind

Array = np.ndarray[Any, Any]
SHAPE = (1, 3, 32, 48)


def augmenter(how: Augmentation, **preprocess: object) -> Augmenter:
    return Augmenter("x", SHAPE, np.dtype(np.float32), Preprocess.read(preprocess), how)


def photo(seed: int = 0, height: int = 50, width: int = 70) -> Array:
    """Smooth, so that a look-up half a pixel off changes little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / rng.uniform(6, 12) + y / rng.uniform(6, 12) + c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.mark.parametrize("preprocess", [{"resize": "stretch"}, {}, {"anchor": "top-left", "pad": 10}])
def test_without_strength_an_image_is_placed_as_deployment_places_it(preprocess: dict[str, object]) -> None:
    made = augmenter(NONE, **preprocess)
    image = photo()
    plain = made.plain(image)["x"]
    varied = made.varied(image, [], np.random.default_rng(0))["x"]
    # The border of a letterboxed image may fall half a pixel elsewhere, and the image with it.
    assert np.median(np.abs(varied - plain)) < 0.04
    assert np.mean(np.abs(varied - plain) > 0.1) < 0.08


def test_flip_mirrors() -> None:
    made = augmenter(Augmentation(flip=1.0), resize="stretch")
    image = photo()
    mirrored = made.varied(image, [], np.random.default_rng(0))["x"][..., ::-1]
    assert np.abs(mirrored - made.plain(image)["x"]).max() < 0.05


def test_scale_and_shift_stay_within_their_limits() -> None:
    made = augmenter(Augmentation(scale=(0.5, 0.5)), pad=0)
    white = np.full((64, 96, 3), 255, np.uint8)
    covered = made.varied(white, [], np.random.default_rng(0))["x"].mean()
    assert covered == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kind", list(OutputKind))
def test_variations_follow_from_the_seed_and_differ(kind: OutputKind) -> None:
    made = augmenter(default_augmentation(kind))
    others = [photo(seed) for seed in (1, 2)]
    first, again, other = (made.varied(photo(), others, np.random.default_rng(s))["x"] for s in (3, 3, 4))
    assert first.shape == SHAPE
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
    assert 0 <= first.min() <= first.max() <= 1


def test_mosaic_holds_several_images() -> None:
    made = augmenter(Augmentation(mosaic=1.0), resize="stretch")
    flat = [np.full((40, 40, 3), level, np.uint8) for level in (0, 85, 170, 255)]
    levels = [np.unique(made.varied(flat[0], flat[1:], np.random.default_rng(s))["x"]) for s in range(8)]
    assert max(map(len, levels)) >= 3
    assert all(0 in seen for seen in levels)


def test_faces_are_hardly_moved_and_detectors_see_mosaics() -> None:
    face, boxes = default_augmentation(OutputKind.EMBEDDING), default_augmentation(OutputKind.DETECTOR)
    assert face.mosaic == 0
    assert face.shift <= 0.05
    assert face.flip == 0.5
    assert boxes.mosaic > 0


def test_uint8_inputs_get_pixels() -> None:
    made = Augmenter("x", SHAPE, np.dtype(np.uint8), Preprocess(), Augmentation(color=0.3))
    assert made.varied(photo(), [], np.random.default_rng(0))["x"].dtype == np.uint8


def test_noise_is_relative_and_leaves_whole_numbers() -> None:
    feeds: dict[str, Array] = {"a": np.arange(1000, dtype=np.float32), "ids": np.arange(5)}
    made = varied_arrays(feeds, [], Augmentation(noise=0.1), np.random.default_rng(0))
    np.testing.assert_array_equal(made["ids"], feeds["ids"])
    assert np.std(made["a"] - feeds["a"]) == pytest.approx(0.1 * feeds["a"].std(), rel=0.1)
    assert made["a"].dtype == np.float32


def test_mixup_mixes_floats_alone() -> None:
    zero, one = {"a": np.zeros(4, np.float32)}, {"a": np.ones(4, np.float32)}
    made = varied_arrays(zero, [one], Augmentation(mixup=1.0), np.random.default_rng(0))["a"]
    assert 0 < made[0] <= 0.5
    tokens: dict[str, Array] = {"a": np.zeros(4, np.float32), "ids": np.arange(4)}
    same = varied_arrays(
        tokens, [{**one, "ids": np.arange(4)}], Augmentation(mixup=1.0), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(same["a"], tokens["a"])
