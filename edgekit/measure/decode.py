"""Turning the outputs of a detector into boxes.

=============  =========================================================================================
``yolov5``     ``[1, N, 5 + C]``: centre x and y, width, height in input pixels, objectness, class scores
``yolov8``     ``[1, 4 + C, N]``: centre x and y, width, height in input pixels, class scores
``yolox``      ``[1, N, 5 + C]``: as yolov5, but x and y are offsets from the cell and width and height are
               logarithms, all in strides
=============  =========================================================================================

N are the cells of all feature maps, fine to coarse, row by row; C the classes. All scores are probabilities.

The parts may also be outputs of their own, with either axis first: boxes of 4, objectness of 1 (``yolov5``
and ``yolox``; left out where the scores hold it already) and class scores. They are told apart by their size,
and where a size fits two by a word in their names: ``box`` or ``reg``, ``obj`` or ``conf``. Outputs that do
not have three axes (raw maps, mask prototypes) are passed over.

Any other network is decoded by a callable ``package.module:name``, see :class:`CallableDecoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekit.errors import UnknownNameError, UsageError
from edgekit.measure.nms import nms
from edgekit.objects import load_callable

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

#: Pixels per cell of the feature maps, fine to coarse: the sets that yolox networks have.
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32), (8, 16))

# Candidates that go into the suppression, best first: more cost time and do not change the mAP of COCO.
_CANDIDATES = 3000


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first.

    Attributes:
        boxes: float32 [K, 4]: x1, y1, x2, y2 in pixels.
        scores: float32 [K], 0 to 1.
        classes: int64 [K], from 0.
        class_count: How many classes the network tells apart; None where the decoder does not know.
    """

    boxes: Array
    scores: Array
    classes: Array
    class_count: int | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep], self.class_count)


class Decoder(Protocol):
    """Outputs of one image to detections in input pixels."""

    @property
    def name(self) -> str: ...

    def __call__(self, outputs: Mapping[str, Array], size: Size) -> Detections:
        """Decode.

        Args:
            outputs: The network's outputs by name.
            size: Height and width of the network's input, in pixels.

        Raises:
            UsageError: The outputs are not those of such a network.
        """
        ...


@dataclass(frozen=True)
class YoloDecoder:
    """The three built-in layouts.

    Attributes:
        name: ``yolov5``, ``yolov8`` or ``yolox``.
        score: Detections below this score are dropped. The default is that of the network's own evaluation.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        limit: At most so many detections.
        every_class: True makes one detection of each class above ``score``; False only of a cell's best
            class.
    """

    name: str
    score: float
    iou: float
    limit: int = 300
    every_class: bool = True

    def __call__(self, outputs: Mapping[str, Array], size: Size) -> Detections:
        # What overflows or is NaN is dropped below.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._decode(outputs, size)

    def _decode(self, outputs: Mapping[str, Array], size: Size) -> Detections:
        boxes, objectness, scores = self._parts(outputs, size)
        _check_scores(self.name, scores if objectness is None else objectness)
        if self.name == "yolox":
            boxes = _yolox_boxes(boxes, size, self._expected(outputs))
        if objectness is not None:
            # Scores are at most 1, so that a cell below the threshold cannot rise above it.
            alive = np.flatnonzero(objectness >= self.score)
            boxes, scores = boxes[alive], scores[alive] * objectness[alive, None]
        cells, classes = self._choose(scores)
        found = scores[cells, classes]
        corners = _corners(boxes[cells])
        sound = np.isfinite(corners).all(axis=1)
        corners, found, classes = corners[sound], found[sound], classes[sound]
        best = np.argsort(-found, kind="stable")[:_CANDIDATES]
        corners, found, classes = corners[best], found[best], classes[best]
        keep = nms(corners, found, classes, self.iou, limit=self.limit)
        return Detections(
            corners[keep].astype(np.float32),
            found[keep].astype(np.float32),
            classes[keep].astype(np.int64),
            scores.shape[1],
        )

    def _choose(self, scores: Array) -> tuple[Array, Array]:
        if self.every_class:
            cells, classes = np.nonzero(scores >= self.score)
            return cells, classes
        if not len(scores):
            empty = np.zeros(0, np.int64)
            return empty, empty
        best = scores.argmax(axis=1)
        cells = np.flatnonzero(scores[np.arange(len(scores)), best] >= self.score)
        return cells, best[cells]

    def _parts(self, outputs: Mapping[str, Array], size: Size) -> tuple[Array, Array | None, Array]:
        """Boxes [N, 4], objectness [N] or None, class scores [N, C]."""
        parts = {name: array for name, array in outputs.items() if array.ndim == 3 and array.shape[0] == 1}
        first = 4 if self.name == "yolov8" else 5
        if any(array.dtype.kind != "f" for array in parts.values()):
            listed = ", ".join(f"{name} {array.dtype}" for name, array in parts.items())
            raise UsageError(f"expects floats; the network gives {listed}", where=f"decoder {self.name}")
        if len(parts) == 1:
            (array,) = parts.values()
            rows = array[0].T if self.name == "yolov8" else array[0]
            cells, channels = rows.shape
            swapped = _is_cell_count(channels, size) and not _is_cell_count(cells, size)
            if channels <= first or swapped:
                raise UsageError(
                    self._expected(outputs),
                    where=f"decoder {self.name}",
                    hint="The axes look swapped: choose the decoder of that layout" if swapped else "",
                )
            return rows[:, :4], rows[:, 4] if first == 5 else None, rows[:, first:]
        if len(parts) == 2 or (len(parts) == 3 and first == 5):
            return self._separate(parts, outputs)
        raise UsageError(self._expected(outputs), where=f"decoder {self.name}")

    def _separate(
        self, parts: dict[str, Array], outputs: Mapping[str, Array]
    ) -> tuple[Array, Array | None, Array]:
        error = UsageError(self._expected(outputs), where=f"decoder {self.name}")
        boxes = _pick(parts, 4, ("box", "reg"))
        if boxes is None:
            raise error
        rest = {name: array for name, array in parts.items() if name != boxes}
        objectness = _pick(rest, 1, ("obj", "conf")) if len(rest) == 2 else None
        if len(rest) == 2 and objectness is None:
            raise error
        (scores,) = (name for name in rest if name != objectness)
        count = max(parts[boxes].shape[1:])
        names = [boxes, scores] if objectness is None else [boxes, scores, objectness]
        if any(count not in parts[name].shape[1:] for name in names):
            raise error
        rows = [_rows(parts[name], count) for name in names]
        return rows[0], rows[2][:, 0] if objectness is not None else None, rows[1]

    def _expected(self, outputs: Mapping[str, Array]) -> str:
        got = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        shape = "[1, 4 + classes, N]" if self.name == "yolov8" else "[1, N, 5 + classes]"
        parts = "boxes [1, N, 4] and scores [1, N, classes]"
        return f"expects one output {shape}, or {parts} as separate outputs; the network has {got}"


@dataclass(frozen=True)
class CallableDecoder:
    """The user's own decoder.

    It is called with the outputs by name and the input's (height, width), and returns boxes [K, 4] (x1, y1,
    x2, y2 in input pixels), scores [K] and classes [K], overlaps already removed
    (:func:`edgekit.measure.nms.nms` may help).

    Attributes:
        name: What the user called it.
        function: The callable.
        limit: At most so many detections are kept, the best.
    """

    name: str
    function: Callable[[Mapping[str, Array], Size], tuple[Any, Any, Any]]
    limit: int = 300

    def __call__(self, outputs: Mapping[str, Array], size: Size) -> Detections:
        where = f"decoder {self.name}"
        try:
            result = self.function(outputs, size)
        # The function is the user's and may raise anything.
        except Exception as error:
            raise UsageError(f"raised {type(error).__name__}: {error}", where=where) from error
        valid = ("boxes [K, 4]", "scores [K]", "classes [K], whole numbers from 0")
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            raise UsageError(
                f"returned a {type(result).__name__}, not three arrays", where=where, valid=valid
            )
        boxes, scores, classes = (np.asarray(part) for part in result)
        if boxes.size == 0 and scores.size == 0 and classes.size == 0:
            boxes, scores, classes = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
        count = len(scores) if scores.ndim == 1 else -1
        if boxes.shape != (count, 4) or classes.shape != (count,):
            shapes = ", ".join(str(list(part.shape)) for part in (boxes, scores, classes))
            raise UsageError(f"returned arrays of the shapes {shapes}", where=where, valid=valid)
        if classes.size and (np.any(classes != np.floor(classes)) or classes.min() < 0):
            raise UsageError(f"returned the classes {classes[:5].tolist()} …", where=where, valid=valid)
        sound = np.flatnonzero(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
        best = sound[np.argsort(-scores[sound], kind="stable")][: self.limit]
        return Detections(
            boxes[best].astype(np.float32), scores[best].astype(np.float32), classes[best].astype(np.int64)
        )


# Thresholds of each network's own evaluation on COCO.
_DEFAULTS = {
    "yolov5": {"score": 0.001, "iou": 0.6, "every_class": True},
    "yolov8": {"score": 0.001, "iou": 0.7, "every_class": True},
    "yolox": {"score": 0.01, "iou": 0.65, "every_class": False},
}


def decoder(
    name: str,
    *,
    score: float | None = None,
    iou: float | None = None,
    limit: int = 300,
    folder: Path | None = None,
) -> Decoder:
    """Find a decoder.

    Args:
        name: ``yolov5``, ``yolov8``, ``yolox`` or ``package.module:callable``.
        score: Drop detections below this score; by default what the network's own evaluation uses.
        iou: Overlap above which the weaker of two boxes of a class goes; by default as above.
        limit: Keep at most so many detections of an image.
        folder: Where a callable's module is looked for first.

    Raises:
        UnknownNameError: There is no decoder of that name.
        UsageError: The callable cannot be imported, or a threshold is outside 0 to 1.
    """
    for key, value in (("score", score), ("iou", iou)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{key} = {value:g}", where=f"decoder {name}", valid=("0 to 1",))
    if limit < 1:
        raise UsageError(f"limit = {limit}", where=f"decoder {name}", valid=("1 or more",))
    if ":" in name:
        if score is not None or iou is not None:
            raise UsageError("a callable sets its own thresholds", where=f"decoder {name}")
        return CallableDecoder(name, load_callable(name, folder), limit)
    if name not in _DEFAULTS:
        raise UnknownNameError(f"no decoder '{name}'", valid=(*_DEFAULTS, "package.module:callable"))
    default = _DEFAULTS[name]
    return YoloDecoder(
        name,
        float(default["score"] if score is None else score),
        float(default["iou"] if iou is None else iou),
        limit,
        bool(default["every_class"]),
    )


def _pick(parts: Mapping[str, Array], size: int, words: tuple[str, ...]) -> str | None:
    """The one output with an axis of ``size``, by its name where several have one."""
    found = [name for name, array in parts.items() if size in array.shape[1:]]
    if len(found) > 1:
        found = [name for name in found if any(word in name.lower() for word in words)]
    return found[0] if len(found) == 1 else None


def _rows(array: Array, count: int) -> Array:
    rows: Array = array[0]
    return rows if len(rows) == count else rows.T


def _corners(boxes: Array) -> Array:
    """Centre, width, height [K, 4] to x1, y1, x2, y2."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _yolox_boxes(boxes: Array, size: Size, expected: str) -> Array:
    """Boxes in cells and logarithms [N, 4] to centre and size in pixels (arXiv:2107.08430, section 2.1)."""
    height, width = size
    counts = {strides: _cell_count(strides, size) for strides in STRIDES}
    strides = next((s for s, count in counts.items() if count == len(boxes)), None)
    if strides is None:
        listed = [f"{count} (strides {', '.join(map(str, s))})" for s, count in counts.items()]
        raise UsageError(
            f"{expected}. {len(boxes)} cells do not fit an input of {width}x{height}",
            where="decoder yolox",
            valid=listed,
        )
    grids, steps = [], []
    for stride in strides:
        y, x = np.mgrid[: height // stride, : width // stride]
        grids.append(np.stack([x.ravel(), y.ravel()], axis=1))
        steps.append(np.full((x.size, 1), stride))
    grid, step = np.concatenate(grids).astype(np.float32), np.concatenate(steps).astype(np.float32)
    return np.concatenate([(boxes[:, :2] + grid) * step, np.exp(boxes[:, 2:]) * step], axis=1)


def _cell_count(strides: tuple[int, ...], size: Size) -> int:
    return sum((size[0] // s) * (size[1] // s) for s in strides)


def _is_cell_count(number: int, size: Size) -> bool:
    """Whether a network may have so many cells, with one box each or (yolov5) three."""
    return any(number in (count, 3 * count) for count in (_cell_count(s, size) for s in STRIDES))


def _check_scores(name: str, scores: Array) -> None:
    # Quantized probabilities may pass 0 and 1 by a step; logits of cells without an object lie far below 0.
    if scores.size and float(scores.min()) < -1:
        raise UsageError(
            f"scores reach down to {float(scores.min()):.3g}: they are logits, not probabilities",
            where=f"decoder {name}",
            hint="Export the network with the sigmoid, or give a callable as decoder",
        )
