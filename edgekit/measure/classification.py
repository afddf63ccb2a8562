"""How often a classifier's largest score is the right class's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.data.base import Sample, Samples
from edgekit.errors import DataError, ModelError
from edgekit.measure.result import Measurement, Method
from edgekit.objects import load_callable
from edgekit.session import Runner

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ClassificationResult:
    """What an evaluation found.

    Attributes:
        top1: Share of the samples whose largest score is their class's.
        top5: Share of the samples whose class is among the five largest; None for five classes or fewer.
        samples: Samples evaluated.
    """

    top1: float
    top5: float | None
    samples: int

    def measurements(self) -> dict[str, Measurement]:
        """``accuracy`` and ``top5`` for a report."""
        spread = {"samples": float(self.samples)}
        found = {"accuracy": Measurement(self.top1, "accuracy", Method.HOST, spread)}
        if self.top5 is not None:
            found["top5"] = Measurement(self.top5, "accuracy", Method.HOST, spread)
        return found


def evaluate_classification(
    runner: Runner,
    samples: Samples,
    labels: Sequence[int] | None = None,
    *,
    progress: Progress | None = None,
) -> ClassificationResult:
    """Run a classifier over labelled samples.

    Args:
        runner: A network whose first output holds the scores of one sample.
        samples: The samples.
        labels: The class of each sample of the source, in its order; None takes the folder that an image lies
            in: classes are the folders' names in sorted order.
        progress: Called after each sample with the number done and the total (None where unknown).

    Raises:
        DataError: A sample has no label, or a label is no class of the network.
        ModelError: The first output is a single number.
    """
    ranks: list[int] = []
    classes = 0
    by_folder: list[tuple[str, list[int]]] = []
    for done, sample in enumerate(samples, start=1):
        scores = next(iter(runner.run(sample.feeds).values())).reshape(-1)
        classes = len(scores)
        if classes < 2:
            raise ModelError("classification needs an output with one score for each class")
        order = scores.argsort(kind="stable")[::-1].tolist()
        if labels is None:
            by_folder.append((PurePosixPath(sample.name).parent.as_posix(), order))
        else:
            ranks.append(order.index(_label(labels, samples, sample, done - 1, classes)))
        if progress is not None:
            progress(done, samples.count)
    if labels is None:
        names = sorted({name for name, _ in by_folder})
        if not 2 <= len(names) <= classes:
            raise DataError(
                f"the images lie in {len(names)} folders, and the network has {classes} classes",
                where=samples.source,
                hint="Put the images of each class into a folder of its own, or give the labels",
            )
        ranks = [order.index(names.index(name)) for name, order in by_folder]
    count = len(ranks)
    top5 = sum(rank < 5 for rank in ranks) / count if classes > 5 else None
    return ClassificationResult(sum(rank == 0 for rank in ranks) / count, top5, count)


def read_labels(source: str, folder: Path | None = None) -> list[int]:
    """Labels from ``package.module:callable``, which returns one whole number for each sample.

    Raises:
        DataError: It returns something else.
        UsageError: There is no such callable.
    """
    found = load_callable(source, folder)()
    try:
        return [int(label) for label in found]
    except (TypeError, ValueError) as error:
        raise DataError("does not return one whole number for each sample", where=source) from error


def _label(labels: Sequence[int], samples: Samples, sample: Sample, index: int, classes: int) -> int:
    # Files that cannot be read leave no gap in the count, but their labels are there.
    position = index + len(samples.skipped) if sample.order is None else sample.order
    if position >= len(labels):
        raise DataError(f"there are {len(labels)} labels, none for sample {position}", where=sample.name)
    if not 0 <= labels[position] < classes:
        raise DataError(
            f"the label {labels[position]} is no class of the network",
            where=sample.name,
            valid=(f"0 to {classes - 1}",),
        )
    return labels[position]
