import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UnknownNameError, UsageError
from edgekit.measure.decode import Detections, decoder

SIZE = (64, 96)
CELLS = [(s, x, y) for s in (8, 16, 32) for y in range(SIZE[0] // s) for x in range(SIZE[1] // s)]
CLASSES = 3
Objects = dict[int, tuple[float, float, float, float, float, int]]

# cell -> offset x and y, width, height (in strides), score, class
objects = st.dictionaries(
    st.integers(0, len(CELLS) - 1),
    st.tuples(
        st.floats(-0.5, 1.5),
        st.floats(-0.5, 1.5),
        st.floats(0.5, 3),
        st.floats(0.5, 3),
        st.integers(300, 1000).map(lambda score: score / 1000),
        st.integers(0, CLASSES - 1),
    ),
    max_size=6,
)


def grid(found: Objects, layout: str) -> np.ndarray:
    """The output [N, 5 + C] of a yolox or yolov5 network that sees these objects."""
    rows = np.zeros((len(CELLS), 5 + CLASSES), np.float32)
    for cell, (x, y, width, height, score, kind) in found.items():
        stride, column, row = CELLS[cell]
        if layout == "yolox":
            rows[cell, :4] = x, y, np.log(width), np.log(height)
        else:
            rows[cell, :4] = (column + x) * stride, (row + y) * stride, width * stride, height * stride
        rows[cell, 4] = 1
        rows[cell, 5 + kind] = score
    return rows


def boxes_of(found: Objects) -> np.ndarray:
    """x1, y1, x2, y2, score, class of every object, best first."""
    rows = []
    for cell, (x, y, width, height, score, kind) in found.items():
        stride, column, row = CELLS[cell]
        cx, cy, w, h = (column + x) * stride, (row + y) * stride, width * stride, height * stride
        rows.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, kind))
    return np.array(sorted(rows, key=lambda r: (-r[4], r))).reshape(-1, 6)


def found_by(detections: Detections) -> np.ndarray:
    rows = np.concatenate([detections.boxes, detections.scores[:, None], detections.classes[:, None]], axis=1)
    return np.array(sorted(rows.tolist(), key=lambda r: (-r[4], r))).reshape(-1, 6)


@given(objects)
@settings(max_examples=60)
def test_grids_decode_to_the_objects_they_were_made_of(found: Objects) -> None:
    expected = boxes_of(found)
    v5 = grid(found, "yolov5")
    v8 = np.delete(v5, 4, axis=1).T
    # An IoU of 1 suppresses nothing, so that overlapping objects all stay.
    for name, rows in (("yolox", grid(found, "yolox")), ("yolov5", v5), ("yolov8", v8)):
        detections = decoder(name, score=0.2, iou=1)({"out": rows[None]}, SIZE)
        assert detections.class_count == CLASSES
        np.testing.assert_allclose(found_by(detections), expected, atol=1e-4)


FOUND: Objects = {3: (0.5, 0.25, 2, 1, 0.9, 1), 100: (0.1, 0.9, 1, 1.5, 0.5, 2)}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("yolov8", lambda r: {"boxes": r[:, :4].T, "scores": r[:, 5:].T}),
        ("yolov8", lambda r: {"scores": r[:, 5:], "boxes": r[:, :4]}),
        ("yolov5", lambda r: {"scores": r[:, 5:] * r[:, 4:5], "b": r[:, :4]}),
        ("yolov5", lambda r: {"cls": r[:, 5:], "obj": r[:, 4:5], "box": r[:, :4]}),
        ("yolox", lambda r: {"a": r[:, 4:5].T, "b": r[:, :4].T, "c": r[:, 5:].T}),
    ],
)
def test_parts_may_be_outputs_of_their_own(name: str, make: Any) -> None:
    outputs = {key: part[None] for key, part in make(grid(FOUND, name)).items()}
    outputs["raw"] = np.zeros((1, 3, 8, 12, 8), np.float32)
    detections = decoder(name, score=0.2, iou=1)(outputs, SIZE)
    np.testing.assert_allclose(found_by(detections), boxes_of(FOUND), atol=1e-4)


def test_names_tell_boxes_from_four_class_scores() -> None:
    rows = np.zeros((1, 4, len(CELLS)), np.float32)
    scores = rows.copy()
    scores[0, 3, 5] = 0.5
    detections = decoder("yolov8")({"scores": scores, "box": rows + 7}, SIZE)
    assert (detections.classes.tolist(), detections.scores.tolist()) == ([3], [0.5])
    with pytest.raises(UsageError, match="expects one output"):
        decoder("yolov8")({"a": scores, "b": rows}, SIZE)


def test_a_network_with_stride_64_is_recognised() -> None:
    count = sum((128 // s) ** 2 for s in (8, 16, 32, 64))
    rows = np.zeros((1, count, 6), np.float32)
    rows[0, -1, 4:] = 1
    assert decoder("yolox")({"out": rows}, (128, 128)).boxes.tolist() == [[32, 32, 96, 96]]


def test_each_network_counts_classes_as_its_own_evaluation_does() -> None:
    rows = np.zeros((1, len(CELLS), 7), np.float32)
    rows[0, 0] = (9, 9, 1, 1, 1, 0.6, 0.5)
    assert len(decoder("yolov5")({"out": rows}, SIZE)) == 2
    assert len(decoder("yolov8")({"out": np.delete(rows, 4, 2).transpose(0, 2, 1)}, SIZE)) == 2
    assert len(decoder("yolox")({"out": rows}, SIZE)) == 1


def test_infinite_and_nan_values_are_no_detections() -> None:
    rows = grid(FOUND, "yolox")
    rows[0] = (0, 0, 1000, 0, 1, 1, 1, 1)  # exp overflows
    rows[1] = np.nan
    rows[2] = (np.inf, 0, 0, 0, 1, 1, 1, 1)
    detections = decoder("yolox", iou=1)({"out": rows[None]}, SIZE)
    np.testing.assert_allclose(found_by(detections), boxes_of(FOUND), atol=1e-4)
    assert len(decoder("yolov8")({"out": np.full((1, 7, 126), np.nan, np.float32)}, SIZE)) == 0


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        (
            "yolov8",
            {"o": (1, 10)},
            r"yolov8: expects one output \[1, 4 \+ classes, N\].*the network has o \[1, 10\]",
        ),
        ("yolox", {"o": (1, len(CELLS), 5)}, r"expects one output \[1, N, 5 \+ classes\]"),
        ("yolox", {"o": (1, 99, 85)}, r"99 cells do not fit an input of 96x64.*126 \(strides 8, 16, 32\)"),
        ("yolov8", {"o": (1, len(CELLS), 85)}, "axes look swapped"),
        ("yolov5", {"o": (1, 85, 3 * len(CELLS))}, "axes look swapped"),
        ("yolov8", {"a": (1, 4, 126), "b": (1, 80, 120)}, "expects one output"),
        ("yolov8", {"a": (1, 4, 126), "b": (1, 80, 126), "c": (1, 1, 126)}, "expects one output"),
        ("yolov8", {"o": (2, 84, 126)}, r"o \[2, 84, 126\]"),
    ],
)
def test_other_outputs_are_refused(name: str, outputs: dict[str, tuple[int, ...]], message: str) -> None:
    arrays = {key: np.zeros(shape, np.float32) for key, shape in outputs.items()}
    with pytest.raises(UsageError, match=message):
        decoder(name)(arrays, SIZE)


def test_logits_and_integers_are_refused() -> None:
    with pytest.raises(UsageError, match="logits, not probabilities"):
        decoder("yolov8")({"o": np.full((1, 7, 126), -8, np.float32)}, SIZE)
    with pytest.raises(UsageError, match="expects floats; the network gives o uint8"):
        decoder("yolov8")({"o": np.zeros((1, 7, 126), np.uint8)}, SIZE)


def test_unknown_names_and_thresholds() -> None:
    with pytest.raises(UnknownNameError, match=r"no decoder 'yolov9'.*yolov5, yolov8, yolox, package"):
        decoder("yolov9")
    with pytest.raises(UsageError, match="score = 2"):
        decoder("yolox", score=2)


OWN = """
import numpy as np

def good(outputs, size):
    height, width = size
    return [[0, 0, width, height], [1, 1, 2, 2], [0, 0, 1, float("nan")]], [0.1, 0.9, 0.5], [0, 2, 1]

def none(outputs, size):
    return [], [], []

def two(outputs, size):
    return [], []

def ragged(outputs, size):
    return np.zeros((3, 4)), np.zeros(2), np.zeros(3)

def halves(outputs, size):
    return np.zeros((1, 4)), np.ones(1), np.array([0.5])

def fails(outputs, size):
    return outputs["absent"]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_decoder.py").write_text(OWN)
    return tmp_path


def test_a_callable_decodes(own: Path) -> None:
    outputs: Mapping[str, np.ndarray] = {}
    detections = decoder("own_decoder:good", folder=own)(outputs, SIZE)
    assert detections.boxes.tolist() == [[1, 1, 2, 2], [0, 0, 96, 64]]
    assert detections.classes.tolist() == [2, 0]
    assert len(decoder("own_decoder:good", folder=own, limit=1)(outputs, SIZE)) == 1
    assert decoder("own_decoder:none", folder=own)(outputs, SIZE).boxes.shape == (0, 4)
    assert len(detections.above(0.5)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "own_decoder:two: returned a tuple, not three arrays"),
        ("ragged", r"shapes \[3, 4\], \[2\], \[3\]"),
        ("halves", r"classes \[0\.5\]"),
        ("fails", "raised KeyError: 'absent'"),
    ],
)
def test_what_a_callable_returns_is_checked(own: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decoder(f"own_decoder:{name}", folder=own)({}, SIZE)
