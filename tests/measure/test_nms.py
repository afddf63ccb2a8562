import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.measure.nms import nms


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def reference(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, limit_iou: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(classes[i] != classes[k] or iou(boxes[i], boxes[k]) <= limit_iou for k in kept):
            kept.append(i)
    return kept


# Whole numbers make equal scores, touching edges, empty and identical boxes common.
box = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
entry = st.tuples(box, st.integers(0, 5), st.integers(0, 2))


@given(st.lists(entry, max_size=25), st.sampled_from([0.0, 0.3, 0.5, 0.65, 1.0]))
@settings(max_examples=200)
def test_agrees_with_the_plain_double_loop(
    entries: list[tuple[tuple[int, ...], int, int]], limit: float
) -> None:
    corners = np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in entries], float).reshape(-1, 4)
    scores = np.array([s for _, s, _ in entries], float)
    classes = np.array([c for _, _, c in entries], int)
    expected = reference(corners, scores, classes, limit)
    assert nms(corners, scores, classes, limit).tolist() == expected
    assert nms(corners, scores, classes, limit, limit=3).tolist() == expected[:3]


def test_3000_boxes_take_less_than_a_tenth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    corner = rng.random((3000, 2)) * 400
    boxes = np.concatenate([corner, corner + 5 + rng.random((3000, 2)) * 60], axis=1)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        nms(boxes, rng.random(3000), rng.integers(0, 80, 3000), 0.65)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
