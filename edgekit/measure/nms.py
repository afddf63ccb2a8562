"""Non-maximum suppression: of boxes that overlap, keep the best."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nms(boxes: Array, scores: Array, classes: Array, iou: float, *, limit: int = 300) -> Array:
    """Indices of the boxes that stay, best first.

    Greedy: the best box stays and removes every box of its class that overlaps it by more than ``iou``; then
    the best of the rest, and so on. Boxes of different classes do not touch each other.

    Args:
        boxes: [K, 4]: x1, y1, x2, y2, finite.
        scores: [K]. Of equal scores, the one that comes first is the better.
        classes: [K].
        iou: Intersection over union, 0 to 1.
        limit: Stop after so many.
    """
    order = np.argsort(-scores, kind="stable")
    left, top, right, bottom = np.asarray(boxes, np.float64)[order].T
    kinds = classes[order]
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    # Only boxes of the same class are compared, each group in one piece of memory.
    groups = {int(kind): np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == limit:
            break
        group = groups[int(kinds[i])]
        rest = group[np.searchsorted(group, i, side="right") :]
        if not len(rest):
            continue
        width = np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])
        height = np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        alive[rest[shared > iou * (areas[i] + areas[rest] - shared)]] = False
    return order[np.array(kept, np.int64)]
