"""Which cell answers for which digit: the task-aligned assigner of TOOD (arXiv:2108.07755, section 3.3).

A cell's alignment with a truth is ``t = s^alpha * u^beta``: s is its score for the truth's class, u the
overlap of its box. For each truth the cells inside it with the largest t are positive; a cell that several
truths want goes to the one it overlaps most. The targets are then t, scaled per truth so that the best cell's
target is its overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """The digits of a batch, padded to M per image.

    boxes: [B, M, 4], left, top, right, bottom in pixels. labels: int64 [B, M]. valid: bool [B, M].
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Assignment:
    """What each cell should say.

    positive: bool [B, N]. truth: int64 [B, N], index of the truth it answers for (0 where not positive).
    quality: [B, N], the class target, 0 where not positive.
    """

    positive: Tensor
    truth: Tensor
    quality: Tensor


@dataclass(frozen=True)
class Assigner:
    """How cells are chosen. top: cells per truth. alpha, beta: weights of score and overlap.

    reach: pixels to which small boxes are grown when asking which cells lie inside; with the finest stride,
    8, every truth has at least one.
    """

    top: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    reach: float = 9.0


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] (left, top, right, bottom); leading axes broadcast."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    return shared / (areas - shared + 1e-7)


def _inside(truth: Truth, centres: Tensor, reach: float) -> Tensor:
    """bool [B, M, N]: whether a cell's centre [N, 2] (pixels) lies in a truth, small truths grown to
    ``reach``.
    """
    middle = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
    half = ((truth.boxes[..., 2:] - truth.boxes[..., :2]) / 2).clamp(min=reach / 2)
    away = (centres[None, None] - middle[:, :, None]).abs()
    return (away < half[:, :, None]).all(dim=-1) & truth.valid[:, :, None]


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, centres: Tensor, truth: Truth, rule: Assigner | None = None
) -> Assignment:
    """Assigns cells to truths.

    scores: [B, N, C], 0..1. boxes: [B, N, 4], left, top, right, bottom in pixels. centres: [N, 2], pixels.
    """
    rule = rule if rule is not None else Assigner()
    batch, cells = scores.shape[:2]
    most = truth.boxes.shape[1]
    if most == 0:
        nothing = torch.zeros(batch, cells, device=scores.device)
        return Assignment(nothing.bool(), nothing.long(), nothing)
    inside = _inside(truth, centres, rule.reach)
    wanted = truth.labels.clamp(min=0)[:, :, None].expand(batch, most, cells)
    score = scores.transpose(1, 2).gather(1, wanted)
    overlap = overlaps(truth.boxes[:, :, None], boxes[:, None]) * inside
    aligned = score.pow(rule.alpha) * overlap.pow(rule.beta) * inside
    # Cells outside rank below cells inside even where the alignment is 0, as it is for most in the first
    # steps.
    ranked = torch.where(inside, aligned, torch.full_like(aligned, -1.0))
    top = ranked.topk(min(rule.top, cells), dim=-1).indices
    chosen = torch.zeros_like(inside).scatter_(-1, top, True) & inside
    # One cell, one truth: the one it overlaps most.
    rivals = torch.where(chosen, overlap, torch.full_like(overlap, -1.0))
    winner = rivals.argmax(dim=1)
    positive = chosen.any(dim=1)
    mine = torch.zeros_like(chosen).scatter_(1, winner[:, None], True) & chosen
    kept = aligned * mine
    best = kept.amax(dim=-1, keepdim=True)
    reach = (overlap * mine).amax(dim=-1, keepdim=True)
    quality = (kept / (best + 1e-9) * reach).amax(dim=1)
    return Assignment(positive, torch.where(positive, winner, torch.zeros_like(winner)), quality)
