"""The loss and its parts, and that it teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.models.yolo.architecture import Architecture, Detector, Raw
from edgekit.models.yolo.assign import Truth
from edgekit.models.yolo.augment import Pool, Strength, batch
from edgekit.models.yolo.loss import complete_iou, losses, side_loss


def test_complete_iou_is_one_for_equal_boxes_and_falls_with_distance() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    assert complete_iou(box, box).item() == pytest.approx(1.0, abs=1e-4)
    near, far = complete_iou(box, box + 15).item(), complete_iou(box, box + 40).item()
    assert far < near < 0


def test_complete_iou_punishes_a_wrong_shape() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    wide = torch.tensor([[-5.0, 5, 15, 15]])  # same centre, same area
    plain = 100 / 300
    assert complete_iou(box, wide).item() < plain


def test_side_loss_is_least_where_the_distribution_surrounds_the_side() -> None:
    logits = torch.full((3, 4, 16), -20.0)
    logits[0, :, 5], logits[1, :, 5:7], logits[2, :, 9] = 20.0, 20.0, 20.0
    exact, between, wrong = side_loss(logits, torch.full((3, 4), 5.5)).tolist()
    assert between == pytest.approx(0.6931, abs=1e-3)
    assert between < exact < wrong


def test_a_batch_without_digits_still_has_a_loss_to_follow() -> None:
    model = Detector(Architecture(size=64, channels=(4, 8, 8, 8, 16), depths=(1, 1, 1, 1)))
    raw = model.raw(torch.rand(2, 3, 64, 64))
    truth = Truth(
        torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, dtype=torch.bool)
    )
    found = losses(model.head, raw, truth)
    assert found.boxes.item() == 0
    assert found.sides.item() == 0
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.classes.item() > 0


def test_the_loss_is_small_where_all_is_right() -> None:
    model = Detector(Architecture(size=64))
    cells = model.head.centres.shape[-1]
    truth = Truth(torch.tensor([[[16.0, 16, 48, 48]]]), torch.tensor([[4]]), torch.tensor([[True]]))
    place = (model.head.centres * model.head.strides)[0]
    strides = model.head.strides[0, 0]
    sides = torch.stack([place[0] - 16, place[1] - 16, 48 - place[0], 48 - place[1]]) / strides
    inside = (sides > 0).all(dim=0)
    bins = torch.arange(16.0)[None, :, None]
    boxes = (30 * (1 - (bins - sides[:, None]).abs()).clamp(min=-1)).reshape(1, 64, cells)
    classes = torch.full((1, 10, cells), -12.0)
    classes[0, 4, inside] = 6.0
    good = losses(model.head, Raw(boxes, classes), truth).total.item()
    bad = losses(model.head, Raw(torch.zeros_like(boxes), torch.zeros_like(classes)), truth).total.item()
    assert good < 0.1 * bad


def test_a_tiny_network_learns_two_images_by_heart(pool: Pool, tiny: Architecture) -> None:
    torch.manual_seed(0)
    as_they_are = Strength(mosaic=0, scale=1, shift=0, light=0)
    images, truth = batch(np.random.default_rng(0), pool, np.arange(2), as_they_are)
    model = Detector(tiny)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    history = []
    for _ in range(40):
        found = losses(model.head, model.raw(images), truth)
        optimizer.zero_grad()
        found.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append(found.total.item())
    assert history[-1] < 0.3 * history[0]
