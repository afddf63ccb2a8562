"""The model's data, as hooks a recipe names: sentences of the SST-2 folder that EDGEKIT_SST2 names.

The data set is not part of this project. The folder holds ``train.tsv`` and ``dev.tsv``, as GLUE has them: a
line of headings, then a sentence, a tab and its class (0 negative, 1 positive) on each line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import DataError

from . import LENGTH, package_folder
from .tokenizer import Tokenizer

VARIABLE = "EDGEKIT_SST2"
CALIBRATION_SENTENCES = 200

Feeds = dict[str, npt.NDArray[np.int32]]


def source(given: Path | None = None) -> Path:
    """The folder of SST-2: the given one, or that of EDGEKIT_SST2."""
    return given or Path(os.environ.get(VARIABLE, ""))


def read(part: str, folder: Path | None = None) -> tuple[list[str], list[int]]:
    """Sentences and classes of ``train`` or ``dev``.

    Raises:
        DataError: The file is missing, or a line is not a sentence with a class.
    """
    path = source(folder) / f"{part}.tsv"
    hint = f"Set {VARIABLE} to a folder with SST-2's train.tsv and dev.tsv, as GLUE has them"
    if not path.is_file():
        raise DataError("SST-2 is not there", where=str(path), hint=hint)
    sentences, classes = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        sentence, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1"):
            raise DataError("is no sentence with the class 0 or 1", where=f"{path}, line {number}", hint=hint)
        sentences.append(sentence.strip())
        classes.append(int(label))
    return sentences, classes


def calibration() -> Iterator[Feeds]:
    """200 sentences for training, spread over the file."""
    sentences, _ = read("train")
    chosen = sentences[:: max(1, len(sentences) // CALIBRATION_SENTENCES)][:CALIBRATION_SENTENCES]
    yield from feeds(chosen)


def test() -> Iterator[Feeds]:
    """All sentences of the development set: the classes of SST-2's test set are not published."""
    yield from feeds(read("dev")[0])


def test_labels() -> list[int]:
    """The class of each."""
    return read("dev")[1]


def feeds(sentences: list[str]) -> Iterator[Feeds]:
    """``tokens`` and ``mask``, int32 [1, 64], of each sentence."""
    tokenizer = Tokenizer.read(package_folder() / "vocab.txt")
    for sentence in sentences:
        tokens, mask = tokenizer.encode([sentence], LENGTH)
        yield {"tokens": tokens, "mask": mask}
