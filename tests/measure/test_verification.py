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
from edgekit.measure.verification import compare_pairs, evaluate_verification

INPUT = (TensorSpec("x", (1, 3, 8, 8), np.dtype(np.float32)),)


class Mean:
    """The mean colour as embedding."""

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {"e": feeds["x"].mean(axis=(2, 3)) - 0.5}


def test_pairs_apart_are_told_apart() -> None:
    embeddings = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    found = compare_pairs(embeddings, ["a", "a", "b", "b"])
    assert (found.auc, found.tar) == (1.0, 1.0)
    assert (found.genuine, found.impostor, found.people) == (2, 4, 2)


def test_the_auc_is_the_share_of_couples_in_order() -> None:
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((20, 3))
    names = [str(i // 4) for i in range(20)]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    same = [unit[i] @ unit[j] for i, j in pairs if names[i] == names[j]]
    other = [unit[i] @ unit[j] for i, j in pairs if names[i] != names[j]]
    expected = np.mean([(s > o) + 0.5 * (s == o) for s in same for o in other])
    assert compare_pairs(embeddings, names).auc == pytest.approx(expected)


def test_equal_embeddings_count_half() -> None:
    found = compare_pairs(np.ones((4, 2)), ["a", "a", "b", "b"])
    assert found.auc == pytest.approx(0.5)
    assert found.tar == 0.0


def test_one_person_is_refused() -> None:
    with pytest.raises(DataError, match="1 folders"):
        compare_pairs(np.ones((3, 2)), ["a", "a", "a"])


def test_the_folder_is_the_identity(tmp_path: Path) -> None:
    for person, colour in (("ann", (255, 0, 0)), ("bob", (0, 255, 0))):
        (tmp_path / person).mkdir()
        for index in range(2):
            Image.new("RGB", (8, 8), colour).save(tmp_path / person / f"{index}.png")
    samples = open_samples(str(tmp_path), INPUT, Preprocess())
    found = evaluate_verification(Mean(), samples)
    assert (found.auc, found.people, found.images) == (1.0, 2, 4)
    assert set(found.measurements()) == {"AUC", "TAR@FAR1e-3"}


def test_two_outputs_are_refused() -> None:
    class Two:
        def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
            return {"a": feeds["x"], "b": feeds["x"]}

    samples = open_samples([np.zeros((1, 3, 8, 8), np.float32)], INPUT, Preprocess())
    with pytest.raises(ModelError, match="one output"):
        evaluate_verification(Two(), samples)
