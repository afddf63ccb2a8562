"""The task-aligned assigner."""

from __future__ import annotations

import pytest
import torch

from edgekit.models.yolo.architecture import Architecture, cells
from edgekit.models.yolo.assign import Assigner, Assignment, Truth, assign, overlaps


def _centres() -> torch.Tensor:
    centres, strides = cells(Architecture(size=128))
    return (centres * strides)[0].T


def _truth() -> Truth:
    boxes = torch.tensor([[[10.0, 10, 40, 60], [50, 20, 53, 34], [0, 0, 0, 0]]])
    return Truth(boxes, torch.tensor([[3, 7, 0]]), torch.tensor([[True, True, False]]))


def _assigned(rule: Assigner | None = None, seed: int = 0) -> tuple[Assignment, torch.Tensor]:
    torch.manual_seed(seed)
    centres = _centres()
    scores = torch.rand(1, len(centres), 10)
    reach = torch.rand(1, len(centres), 4) * 20 + 2
    boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
    return assign(scores, boxes, centres, _truth(), rule), centres


@pytest.mark.parametrize(
    ("other", "expected"), [([0, 0, 10, 10], 1.0), ([5, 0, 15, 10], 1 / 3), ([20, 20, 30, 30], 0.0)]
)
def test_overlaps(other: list[float], expected: float) -> None:
    found = overlaps(torch.tensor([0.0, 0, 10, 10]), torch.tensor(other, dtype=torch.float32))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_no_truth_gets_more_cells_than_allowed_and_none_is_left_out() -> None:
    found, _ = _assigned(Assigner(top=4))
    counts = torch.bincount(found.truth[found.positive], minlength=3)
    assert counts.max() <= 4
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == 0


def test_positive_cells_lie_in_their_truth_or_near_a_small_one() -> None:
    found, centres = _assigned()
    boxes = _truth().boxes[0][found.truth[0][found.positive[0]]]
    inside = centres[found.positive[0]]
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(min=9.0) / 2
    assert ((inside - (boxes[:, :2] + boxes[:, 2:]) / 2).abs() < half).all()


def test_quality_peaks_at_the_best_overlap_and_is_zero_elsewhere() -> None:
    found, _ = _assigned()
    assert (found.quality[~found.positive] == 0).all()
    assert found.quality.max() <= 1
    assert found.quality[found.positive].max() > 0


def test_every_small_box_has_a_cell_wherever_it_lies() -> None:
    centres = _centres()
    for offset in range(0, 80, 3):
        box = torch.tensor([[[10 + offset / 10, 20 + offset / 7, 14 + offset / 10, 31 + offset / 7]]])
        truth = Truth(box, torch.tensor([[1]]), torch.tensor([[True]]))
        size = torch.full((1, len(centres), 4), 5.0)
        boxes = torch.cat([centres - size[..., :2], centres + size[..., 2:]], dim=-1)
        assert assign(torch.full((1, len(centres), 10), 0.1), boxes, centres, truth).positive.any()


def test_an_image_without_digits_has_no_positive_cells() -> None:
    centres = _centres()
    nothing = Truth(
        torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool)
    )
    found = assign(torch.rand(1, len(centres), 10), torch.rand(1, len(centres), 4), centres, nothing)
    assert not found.positive.any()
    assert not found.quality.any()


def test_a_cell_goes_to_the_truth_it_overlaps_most() -> None:
    centres = _centres()
    boxes = torch.tensor([[[16.0, 16, 48, 48], [16, 16, 56, 56]]])
    truth = Truth(boxes, torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    guess = torch.tensor([16.0, 16, 56, 56]).expand(1, len(centres), 4)
    found = assign(torch.full((1, len(centres), 10), 0.5), guess, centres, truth, Assigner(top=100))
    assert (found.truth[found.positive] == 1).all()
