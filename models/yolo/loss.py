"""What training minimizes: class error, box overlap and box-side distributions, over the assigned cells.

- classes: binary cross entropy against the assigned quality (TOOD, arXiv:2108.07755)
- boxes: complete IoU (arXiv:1911.08287, equations 10 and 11)
- sides: distribution focal loss (Generalized Focal Loss, arXiv:2006.04388, equation 6)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .architecture import Head, Raw
from .assign import Assigner, Truth, assign, overlaps


@dataclass(frozen=True)
class Weights:
    """How much each part counts."""

    boxes: float = 7.5
    classes: float = 0.5
    sides: float = 1.5


@dataclass(frozen=True)
class Losses:
    """The parts, already weighted; scalars."""

    boxes: Tensor
    classes: Tensor
    sides: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.boxes + self.classes + self.sides


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """CIoU of boxes [n, 4] (left, top, right, bottom): overlap, less centre distance and aspect mismatch."""
    overlap = overlaps(first, second)
    low = torch.minimum(first[:, :2], second[:, :2])
    high = torch.maximum(first[:, 2:], second[:, 2:])
    diagonal = (high - low).square().sum(dim=1) + 1e-7
    apart = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]).square().sum(dim=1) / 4
    angles = [torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + 1e-7)) for b in (first, second)]
    aspect = (4 / math.pi**2) * (angles[1] - angles[0]).square()
    with torch.no_grad():  # the trade-off weighs the terms; it is no term itself
        trade = aspect / (1 - overlap + aspect + 1e-7)
    return overlap - apart / diagonal - trade * aspect


def side_loss(logits: Tensor, sides: Tensor) -> Tensor:
    """Distribution focal loss [n]: logits [n, 4, bins] should peak at the two bins around each side [n, 4]
    (bins).
    """
    bins = logits.shape[-1]
    sides = sides.clamp(0, bins - 1 - 0.01)
    low = sides.floor().long()
    share = sides - low
    logs = logits.log_softmax(dim=-1)
    near = logs.gather(-1, low[..., None])[..., 0]
    far = logs.gather(-1, low[..., None] + 1)[..., 0]
    return -(near * (1 - share) + far * share).mean(dim=-1)


def corners(head: Head, sides: Tensor) -> Tensor:
    """Distances to the sides [B, 4, N] (strides) -> boxes [B, N, 4], left, top, right, bottom in pixels."""
    near, far = sides.chunk(2, dim=1)
    boxes = torch.cat([head.centres - near, head.centres + far], dim=1) * head.strides
    return boxes.transpose(1, 2)


def losses(
    head: Head, raw: Raw, truth: Truth, weights: Weights | None = None, rule: Assigner | None = None
) -> Losses:
    """The loss of a batch from the head's logits."""
    weights = weights if weights is not None else Weights()
    side_logits, class_logits = raw.boxes.float(), raw.classes.float().transpose(1, 2)
    boxes = corners(head, head.sides(side_logits))
    centres = (head.centres * head.strides)[0].T
    found = assign(class_logits.detach().sigmoid(), boxes.detach(), centres, truth, rule)
    targets = torch.zeros_like(class_logits)
    image, cell = found.positive.nonzero(as_tuple=True)
    index = found.truth[image, cell]
    quality = found.quality[image, cell]
    targets[image, cell, truth.labels[image, index]] = quality
    scale = quality.sum().clamp(min=1.0)
    by_class = functional.binary_cross_entropy_with_logits(class_logits, targets, reduction="sum") / scale
    if image.numel() == 0:
        nothing = side_logits.sum() * 0.0
        return Losses(nothing, by_class * weights.classes, nothing)
    wanted = truth.boxes[image, index]
    by_box = ((1 - complete_iou(boxes[image, cell], wanted)) * quality).sum() / scale
    stride = head.strides[0, 0, cell][:, None]
    place = centres[cell]
    sides = torch.cat([place - wanted[:, :2], wanted[:, 2:] - place], dim=1) / stride
    chosen = side_logits[image, :, cell].reshape(len(cell), 4, head.bins)
    by_side = (side_loss(chosen, sides) * quality).sum() / scale
    return Losses(by_box * weights.boxes, by_class * weights.classes, by_side * weights.sides)
