"""How well a detector finds what is annotated: COCO mean average precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.base import Sample, Samples
from edgekit.data.preprocess import image_shape
from edgekit.errors import DataError
from edgekit.measure.annotations import Annotations, Entry, Source, read_annotations
from edgekit.measure.decode import Decoder, Detections
from edgekit.measure.result import Measurement, Method
from edgekit.session import Runner

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DetectionResult:
    """What an evaluation found.

    Attributes:
        map: COCO mAP: mean average precision over IoU 0.50 to 0.95, classes that occur, at most 100 boxes an
            image.
        map50: The same at IoU 0.50 alone.
        images: Images evaluated.
        boxes: Annotated boxes in them.
        seconds: Wall time of the whole evaluation.
        network_seconds: The part of it spent in the network.
        per_class: mAP of each category that occurs, by name.
        names: All category names; the network's class k is the k-th.
        unannotated: Samples that have no entry among the annotations: not run, not counted.
        notes: What the user should know to read the figures.
        kept: The first samples with their detections, as many as were asked for.
    """

    map: float
    map50: float
    images: int
    boxes: int
    seconds: float
    network_seconds: float
    per_class: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    unannotated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kept: tuple[tuple[Sample, Detections], ...] = ()

    def measurements(self) -> dict[str, Measurement]:
        """``mAP`` and ``mAP50`` for a report."""
        spread = {"images": float(self.images), "boxes": float(self.boxes)}
        note = "; ".join(self.notes)
        return {
            "mAP": Measurement(self.map, "mAP", Method.HOST, spread, note),
            "mAP50": Measurement(self.map50, "mAP", Method.HOST, spread, note),
        }


def detect(runner: Runner, sample: Sample, decoder: Decoder) -> Detections:
    """Run a detector on one sample.

    Returns:
        Boxes in pixels of the image, clipped to it; of samples that came as arrays, in pixels of the input.

    Raises:
        DataError: No input of the sample is an image, so that its size is unknown.
        UsageError: The outputs do not fit the decoder.
    """
    return _decode(runner.run(sample.feeds), sample, decoder)


def evaluate_detection(
    runner: Runner,
    samples: Samples,
    annotations: Source,
    decoder: Decoder,
    *,
    progress: Progress | None = None,
    keep: int = 0,
    folder: Path | None = None,
) -> DetectionResult:
    """Measure COCO mAP over the samples that are annotated.

    Args:
        runner: The network.
        samples: Images. Each is matched to an annotated image by its path, file name or id; samples without
            names (an array file, a callable) by their order.
        annotations: COCO annotations: a JSON file, its content, or a callable that returns it. The network's
            class k is the category with the k-th lowest id.
        decoder: How the outputs are read.
        progress: Called after each sample with the number done and the total (None where unknown).
        keep: Return the first so many samples with their detections.
        folder: What a relative path of ``annotations`` is relative to.

    Raises:
        DataError: The annotations are unusable, annotate no sample, or have too few categories.
        UsageError: The outputs do not fit the decoder.
    """
    start = time.perf_counter()
    known = read_annotations(annotations, folder)
    tally = _Tally(known)
    kept: list[tuple[Sample, Detections]] = []
    network_seconds = 0.0
    for done, sample in enumerate(samples, start=1):
        entry = known.find(sample)
        if entry is None:
            tally.unannotated.append(sample.name)
        else:
            before = time.perf_counter()
            outputs = runner.run(sample.feeds)
            network_seconds += time.perf_counter() - before
            found = _decode(outputs, sample, decoder)
            tally.add(sample, entry, found, outputs)
            if len(kept) < keep:
                kept.append((sample, found))
        if progress is not None:
            progress(done, samples.count)
    figures, per_class = tally.score(samples.source)
    return DetectionResult(
        map=figures[0],
        map50=figures[1],
        images=len(tally.entries),
        boxes=tally.box_count,
        seconds=time.perf_counter() - start,
        network_seconds=network_seconds,
        per_class=per_class,
        names=tuple(known.names),
        unannotated=tuple(tally.unannotated),
        notes=tally.notes(),
        kept=tuple(kept),
    )


def _decode(outputs: dict[str, Any], sample: Sample, decoder: Decoder) -> Detections:
    sizes = [size for feed in sample.feeds.values() if (size := image_shape(feed.shape))]
    if not sizes:
        shapes = ", ".join(f"{name} {list(feed.shape)}" for name, feed in sample.feeds.items())
        raise DataError(
            f"no input is an image ({shapes})", where=sample.name, valid=("[1, C, H, W]", "[1, H, W, C]")
        )
    height, width = sizes[0].height, sizes[0].width
    found = decoder(outputs, (height, width))
    if sample.geometry is not None:
        boxes = sample.geometry.to_image(found.boxes)
    else:
        boxes = np.clip(found.boxes, 0, np.array([width, height] * 2))
    return Detections(boxes.astype(np.float32), found.scores, found.classes, found.class_count)


class _Tally:
    """Collects detections, one image at a time, and scores them at the end."""

    def __init__(self, known: Annotations) -> None:
        self.known = known
        self.entries: dict[Any, Entry] = {}
        self.rows: list[np.ndarray[Any, Any]] = []
        self.unannotated: list[str] = []
        self._broken: list[str] = []
        self._resized: list[str] = []
        self._class_count: int | None = None

    @property
    def box_count(self) -> int:
        return sum(len(self.known.boxes.get(key, ())) for key in self.entries)

    def add(self, sample: Sample, entry: Entry, found: Detections, outputs: dict[str, Any]) -> None:
        if entry["id"] in self.entries:
            raise DataError(f"two samples are the annotated image {entry['id']}", where=sample.name)
        self._check_classes(found)
        if any(o.dtype.kind == "f" and not np.isfinite(o).all() for o in outputs.values()):
            self._broken.append(sample.name)
        place = sample.geometry
        if place is not None:
            size = (entry.get("width", place.width), entry.get("height", place.height))
            if size != (place.width, place.height):
                self._resized.append(sample.name)
        position = len(self.entries) + 1
        self.entries[entry["id"]] = entry
        rows = np.empty((len(found), 7))
        rows[:, 0] = position
        rows[:, 1:3] = found.boxes[:, :2]
        rows[:, 3:5] = found.boxes[:, 2:] - found.boxes[:, :2]
        rows[:, 5] = found.scores
        rows[:, 6] = found.classes + 1
        self.rows.append(rows)

    def _check_classes(self, found: Detections) -> None:
        categories = len(self.known.categories)
        top = int(found.classes.max()) + 1 if len(found) else 0
        self._class_count = max(found.class_count or 0, top, self._class_count or 0)
        if self._class_count > categories:
            raise DataError(
                f"the network has {self._class_count} classes, the annotations have {categories} categories",
                where=self.known.where,
                hint="Class k of the network is the category with the k-th lowest id",
            )

    def score(self, source: str) -> tuple[tuple[float, float], dict[str, float]]:
        if not self.entries:
            raise DataError(
                f"none of the {len(self.unannotated)} samples is annotated in '{self.known.where}'; "
                f"they are called {', '.join(self.unannotated[:3])}",
                where=source,
                valid=[f"{', '.join(self.known.examples())} …"],
            )
        if not self.box_count:
            raise DataError("the evaluated images have no annotated boxes", where=self.known.where)
        precision = _average_precision(self._dataset(), np.concatenate(self.rows))
        occurring = precision > -1
        per_class = {
            name: float(precision[:, :, k].mean())
            for k, name in enumerate(self.known.names)
            if occurring[:, :, k].all()
        }
        return (float(precision[occurring].mean()), float(precision[0][occurring[0]].mean())), per_class

    def _dataset(self) -> dict[str, Any]:
        """The evaluated images in COCO's format, ids from 1: the evaluator reads a box id 0 as no match."""
        category = {key: k + 1 for k, key in enumerate(self.known.categories)}
        images: list[Entry] = []
        boxes: list[Entry] = []
        for position, key in enumerate(self.entries, start=1):
            images.append({"id": position})
            for entry in self.known.boxes.get(key, ()):
                x, y, width, height = entry["bbox"]
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": position,
                        "category_id": category[entry["category_id"]],
                        "bbox": [x, y, width, height],
                        "area": entry.get("area", width * height),
                        "iscrowd": entry.get("iscrowd", 0),
                    }
                )
        return {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": k, "name": str(k)} for k in category.values()],
        }

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.unannotated:
            notes.append(
                f"{len(self.unannotated)} images are not annotated: left out ({self.unannotated[0]} …)"
            )
        if self._broken:
            notes.append(
                f"outputs hold NaN or infinite values for {len(self._broken)} images ({self._broken[0]} …)"
            )
        if self._resized:
            notes.append(
                f"{len(self._resized)} images differ in size from their annotations ({self._resized[0]} …)"
            )
        if self._class_count and self._class_count < len(self.known.categories):
            notes.append(
                f"the network has {self._class_count} classes, the annotations {len(self.known.categories)}"
            )
        return tuple(notes)


def _average_precision(dataset: dict[str, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Precision [10 IoU from 0.50, 101 recalls, classes], 100 boxes an image; -1 for absent classes."""
    if not len(rows):  # the evaluator wants one detection at least
        result = np.full((10, 101, len(dataset["categories"])), -1.0)
        result[:, :, [b["category_id"] - 1 for b in dataset["annotations"] if not b["iscrowd"]]] = 0
        return result
    import contextlib
    import io

    from faster_coco_eval import COCO, COCOeval_faster

    # Standard output belongs to the caller's JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(dataset)
        evaluation = COCOeval_faster(
            truth, truth.loadRes(rows), iouType="bbox", print_function=lambda *_: None
        )
        evaluation.evaluate()
        evaluation.accumulate()
    precision: np.ndarray[Any, Any] = evaluation.eval["precision"][:, :, :, 0, -1]
    return precision
