from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import DataError, ModelError
from edgekit.graph import TensorSpec
from edgekit.measure.classification import evaluate_classification, read_labels

INPUT = (TensorSpec("x", (1, 6), np.dtype(np.float32)),)
IMAGE = (TensorSpec("x", (1, 3, 4, 4), np.dtype(np.float32)),)


class Same:
    """The inputs as scores."""

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": feeds["x"]}


class Channels:
    """The mean of each channel as score."""

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": feeds["x"].mean(axis=(2, 3))}


def test_top1_and_top5() -> None:
    scores = np.eye(6, dtype=np.float32)[:, None] + np.linspace(0.1, 0, 6, dtype=np.float32)
    samples = open_samples(list(scores), INPUT, Preprocess())
    found = evaluate_classification(Same(), samples, [0, 1, 2, 3, 4, 0])
    assert found.top1 == pytest.approx(5 / 6)
    assert found.top5 == pytest.approx(1.0)
    found = evaluate_classification(Same(), samples, [5, 5, 5, 5, 5, 5])
    assert [found.top1, found.top5] == pytest.approx([1 / 6, 1 / 6])
    assert set(found.measurements()) == {"accuracy", "top5"}


def test_folders_are_classes(tmp_path: Path) -> None:
    for name, colour in (("a-red", (255, 0, 0)), ("b-green", (0, 255, 0)), ("c-blue", (255, 0, 9))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / name / "0.png")
    found = evaluate_classification(Channels(), open_samples(str(tmp_path), IMAGE, Preprocess()))
    assert found.top1 == pytest.approx(2 / 3)
    assert found.top5 is None


def test_an_unreadable_image_does_not_move_the_labels(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(tmp_path / "2.png")
    samples = open_samples(str(tmp_path), IMAGE, Preprocess())
    assert evaluate_classification(Channels(), samples, [0, 1, 2]).top1 == 1.0


def test_too_few_labels_and_wrong_ones_are_refused() -> None:
    samples = open_samples([np.ones((1, 6), np.float32)] * 2, INPUT, Preprocess())
    with pytest.raises(DataError, match="1 labels"):
        evaluate_classification(Same(), samples, [0])
    with pytest.raises(DataError, match="no class"):
        evaluate_classification(Same(), samples, [0, 6])


def test_images_in_one_folder_need_labels(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="1 folders"):
        evaluate_classification(Channels(), open_samples(str(tmp_path), IMAGE, Preprocess()))


def test_one_score_is_refused() -> None:
    spec = (TensorSpec("x", (1, 1), np.dtype(np.float32)),)
    samples = open_samples([np.ones((1, 1), np.float32)], spec, Preprocess())
    with pytest.raises(ModelError, match="one score for each"):
        evaluate_classification(Same(), samples, [0])


def test_labels_are_read_from_a_callable(tmp_path: Path) -> None:
    (tmp_path / "mine_labels.py").write_text("def good(): return [1, 2]\ndef bad(): return 3\n")
    assert read_labels("mine_labels:good", tmp_path) == [1, 2]
    with pytest.raises(DataError, match="whole number"):
        read_labels("mine_labels:bad", tmp_path)
