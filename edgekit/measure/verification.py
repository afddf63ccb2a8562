"""How well embeddings tell whether two images show the same person: verification over all pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from edgekit.data.base import Samples
from edgekit.errors import DataError, ModelError
from edgekit.measure.result import Measurement, Method
from edgekit.session import Runner

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int | None], None]

#: False-accept rate at which the true-accept rate is stated.
FALSE_ACCEPT_RATE = 1e-3


@dataclass(frozen=True)
class VerificationResult:
    """What an evaluation found.

    Attributes:
        auc: Area under the ROC curve over all pairs of images, scored by the cosine of their embeddings.
        tar: Share of the same-person pairs accepted at the threshold that accepts
            :data:`FALSE_ACCEPT_RATE` of the others.
        threshold: That threshold, a cosine.
        images: Images.
        people: Identities.
        genuine: Pairs of one person.
        impostor: Pairs of two.
    """

    auc: float
    tar: float
    threshold: float
    images: int
    people: int
    genuine: int
    impostor: int

    def measurements(self) -> dict[str, Measurement]:
        """``AUC`` and ``TAR@FAR1e-3`` for a report."""
        spread = {
            "images": float(self.images),
            "genuine": float(self.genuine),
            "impostor": float(self.impostor),
        }
        return {
            "AUC": Measurement(self.auc, "AUC", Method.HOST, spread),
            "TAR@FAR1e-3": Measurement(
                self.tar, "", Method.HOST, spread, f"at a cosine above {self.threshold:.3f}"
            ),
        }


def evaluate_verification(
    runner: Runner, samples: Samples, *, progress: Progress | None = None
) -> VerificationResult:
    """Embed every image and compare all pairs.

    The identity of an image is the folder it lies in.

    Args:
        runner: A network with one output, the embedding [1, D].
        samples: An image folder with one folder for each person.
        progress: Called after each sample with the number done and the total (None where unknown).

    Raises:
        DataError: There are not two people with a pair of images between them.
        ModelError: The network has several outputs.
    """
    embeddings, names = [], []
    for done, sample in enumerate(samples, start=1):
        outputs = runner.run(sample.feeds)
        if len(outputs) != 1:
            raise ModelError(f"verification needs one output, the embedding; there are {len(outputs)}")
        embeddings.append(next(iter(outputs.values())).reshape(-1).astype(np.float64))
        names.append(PurePosixPath(sample.name).parent.as_posix())
        if progress is not None:
            progress(done, samples.count)
    return compare_pairs(np.stack(embeddings), names)


def compare_pairs(embeddings: Array, names: list[str]) -> VerificationResult:
    """The figures for embeddings [N, D] of people by name.

    The AUC is the Mann-Whitney statistic: the share of (genuine, impostor) couples in the right order, ties
    counting half.

    Raises:
        DataError: There are no genuine or no impostor pairs.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(names), 1)
    scores = np.nan_to_num((unit @ unit.T)[first, second], nan=-1.0)
    who = np.array(names)
    same = who[first] == who[second]
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])
    if not genuine.size or not impostor.size:
        raise DataError(
            f"{len(set(names))} folders hold images, and verification needs pairs of one person and of two",
            hint="Put the images of each person into a folder of their own, two images or more",
        )
    below = np.searchsorted(impostor, genuine, side="left")
    tied = np.searchsorted(impostor, genuine, side="right") - below
    auc = float((below + 0.5 * tied).sum() / (genuine.size * impostor.size))
    accepted = int(impostor.size * FALSE_ACCEPT_RATE)
    threshold = float(impostor[-1 - accepted])
    tar = float((genuine > threshold).mean())
    return VerificationResult(auc, tar, threshold, len(names), len(set(names)), genuine.size, impostor.size)
