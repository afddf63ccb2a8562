from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.data.callables import CallableSamples
from edgekit.data.preprocess import Preprocess
from edgekit.errors import DataError
from edgekit.graph import TensorSpec

F32 = np.dtype(np.float32)
IMAGE = (TensorSpec("x", (1, 3, 8, 8), F32),)
TWO = (TensorSpec("a", (1, 2), F32), TensorSpec("b", (1, 3), F32))


def opened(source: Any, inputs: tuple[TensorSpec, ...] = IMAGE, limit: int | None = None) -> CallableSamples:
    return CallableSamples(source, inputs, Preprocess(), limit=limit)


def images() -> Iterator[Any]:
    for seed in range(4):
        yield np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_images_are_preprocessed_and_the_function_is_called_for_each_pass() -> None:
    samples = opened(images)
    assert samples.count is None
    for _ in range(2):
        found = list(samples)
        assert [s.order for s in found] == [0, 1, 2, 3]
        np.testing.assert_allclose(
            found[1].feeds["x"][0], list(images())[1].transpose(2, 0, 1) / 255, rtol=1e-6
        )
    assert len(list(opened(images, limit=3))) == 3


def test_floats_and_dicts_are_fed_as_they_are() -> None:
    data = np.random.default_rng(0).standard_normal((3, 8, 8)) * 50
    (sample,) = opened(lambda: [data])
    np.testing.assert_array_equal(sample.feeds["x"], data[None].astype(np.float32))
    (sample,) = opened(lambda: [{"a": np.ones(2), "b": np.zeros((1, 3))}], TWO)
    assert {name: feed.shape for name, feed in sample.feeds.items()} == {"a": (1, 2), "b": (1, 3)}


def test_pillow_images_and_tensors_are_taken() -> None:
    import torch

    (sample,) = opened([Image.new("L", (16, 8), 51)])
    assert sample.image is not None
    assert sample.image.shape == (8, 16, 3)
    (sample,) = opened([torch.ones(3, 8, 8)])
    assert sample.feeds["x"].sum() == 192


def test_pairs_carry_a_name() -> None:
    (sample,) = opened(lambda: [("frame-7.png", next(images()))])
    assert (sample.name, sample.order) == ("frame-7.png", None)


def test_a_list_can_stand_in_but_a_generator_cannot() -> None:
    samples = opened(list(images()), limit=10)
    assert samples.count == 4
    assert len(list(samples)) == len(list(samples)) == 4
    with pytest.raises(DataError, match=r"only once.*Give the function"):
        opened(images())


def broken() -> Iterator[Any]:
    yield next(images())
    raise KeyError("camera")


@pytest.mark.parametrize(
    ("source", "inputs", "message"),
    [
        (broken, IMAGE, r"broken: raised KeyError: 'camera'"),
        (lambda: 3, IMAGE, "returned a int"),
        (lambda: [], IMAGE, "there are no samples"),
        (lambda: ["a.png"], IMAGE, r"a sample is a str \(valid: an image"),
        (lambda: [(np.zeros((3, 8, 8)), 1)], IMAGE, "a sample is a tuple"),
        (lambda: [np.zeros((3, 9, 8))], IMAGE, r"sample 0, input 'x': a sample has the shape \[3, 9, 8\]"),
        (lambda: [np.full((3, 8, 8), np.inf)], IMAGE, "NaN or infinite"),
        (lambda: [{"a": np.ones(2)}], TWO, r"lacks b \(valid: a, b\)"),
        (lambda: [{"a": np.ones(2), "b": np.ones(3), "c": 1}], TWO, "has the unknown c"),
        (lambda: [np.ones(2)], TWO, "one array, but the network has 2 inputs"),
        (lambda: [np.array(["a"])], (TensorSpec("x", (1,), F32),), "type <U1"),
    ],
)
def test_what_does_not_fit_is_refused(source: Any, inputs: tuple[TensorSpec, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(opened(source, inputs))
