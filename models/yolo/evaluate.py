"""Scores a detector as COCO does: decode, suppress duplicates, mean average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .assign import overlaps
from .data import scene_annotations
from .glyphs import Split
from .scenes import scenes

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Decoding:
    """How detections are read from an output. score: least score. overlap: above it, the lesser of two boxes
    of one class goes. before: boxes that enter the comparison. most: boxes that leave it.
    """

    score: float = 0.001
    overlap: float = 0.7
    before: int = 1000
    most: int = 300


@dataclass(frozen=True)
class Detections:
    """boxes: [n, 4], left, top, right, bottom in input pixels. scores: [n], falling. labels: int64 [n]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def detections(output: Tensor, how: Decoding | None = None) -> Detections:
    """Reads one image's output [4 + C, N]; a cell may name several classes."""
    how = how if how is not None else Decoding()
    centre, size, chances = output[:2], output[2:4], output[4:]
    boxes = torch.cat([centre - size / 2, centre + size / 2]).T
    label, cell = (chances > how.score).nonzero(as_tuple=True)
    scores, order = chances[label, cell].sort(descending=True, stable=True)
    order, scores = order[: how.before], scores[: how.before]
    label, boxes = label[order], boxes[cell[order]]
    # Boxes of different classes are moved apart, so that one comparison serves all classes.
    apart = boxes + label[:, None].to(boxes.dtype) * 4096.0
    clash = overlaps(apart[:, None], apart[None]) > how.overlap
    clash = clash.triu(1)
    keep = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if keep[i]:
            keep &= ~clash[i]
    kept = keep.nonzero()[: how.most, 0]
    return Detections(boxes[kept], scores[kept], label[kept])


@dataclass(frozen=True)
class Score:
    """Mean average precision: at an overlap of 0.5, and averaged over 0.5 to 0.95."""

    map50: float
    map50_95: float


def coco_score(truth: dict[str, Any], found: list[dict[str, Any]]) -> Score:
    """COCO's mean average precision of detections (image_id, category_id, bbox, score)."""
    from faster_coco_eval import COCO, COCOeval_faster

    if not found:
        return Score(0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its table
        reference = COCO(truth)
        run = COCOeval_faster(reference, reference.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return Score(float(run.stats[1]), float(run.stats[0]))


def torch_runner(model: nn.Module) -> Run:
    """Runs a module on float32 images [B, 3, S, S]."""

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            out: npt.NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
        return out

    return run


def _inputs(count: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    for scene in scenes(Split.VALIDATION, count, seed):
        yield np.ascontiguousarray(scene.image.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def evaluate(run: Run, count: int, seed: int) -> Score:
    """The score on the first ``count`` validation scenes with a seed, one image at a time."""
    found: list[dict[str, Any]] = []
    for index, image in enumerate(_inputs(count, seed)):
        seen = detections(torch.from_numpy(run(image)[0]))
        for box, score, label in zip(
            seen.boxes.tolist(), seen.scores.tolist(), seen.labels.tolist(), strict=True
        ):
            left, top, right, bottom = box
            bbox = [left, top, right - left, bottom - top]
            found.append({"image_id": index, "category_id": label, "bbox": bbox, "score": score})
    return coco_score(scene_annotations(count, seed), found)
