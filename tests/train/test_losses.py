"""Losses against what they are by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekit.train import losses
from edgekit.train.losses import Cells


def test_regression_is_relative_to_the_teachers_variance() -> None:
    goal = torch.tensor([[1.0, 3.0]])
    assert float(losses.regression(goal + 0.5, goal)) == pytest.approx(0.25)
    assert float(losses.regression(100 * goal + 50, 100 * goal)) == pytest.approx(0.25)


def test_regression_survives_a_constant_teacher() -> None:
    assert float(losses.regression(torch.full((2, 3), 2.0), torch.full((2, 3), 4.0))) == pytest.approx(0.25)


def test_embedding_by_hand() -> None:
    goal, guess = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert float(losses.embedding(guess, goal)) == pytest.approx(1 + 0.1 * 2)
    several = losses.embedding(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    # One of the two is turned by 90 degrees; the similarity of the pair is 0 instead of 1, twice of four.
    assert float(several) == pytest.approx(0.5 + 0.1 * 1 + 0.5)


def test_classes_of_logits_are_kl_with_temperature() -> None:
    goal, guess = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (p * 1 - (1 - p) * 1)
    assert float(losses.classes(guess, goal, 2.0)) == pytest.approx(expected)


def test_classes_of_probabilities_are_those_of_their_logits() -> None:
    torch.manual_seed(0)
    goal, guess = torch.randn(3, 5), torch.randn(3, 5)
    expected = float(losses.classes(guess, goal, 2.0))
    assert float(losses.classes(guess.softmax(-1), goal.softmax(-1), 2.0)) == pytest.approx(
        expected, rel=1e-3
    )


def test_independent_labels_are_bernoulli() -> None:
    goal, guess = torch.tensor([[0.9, 0.8]]), torch.tensor([[0.5, 0.8]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(losses.classes(guess, goal, 2.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("goal", "shift", "expected"),
    [
        ([[10.0, 10, 30, 50], [5, 5, 25, 45]], [2.0, 0, 0, 0], 0.1),  # corners: 20 wide
        ([[100.0, 100, 20, 40], [200, 90, 20, 40]], [0.0, 4, 0, 0], 0.1),  # centre and size: 40 high
        ([[0.5, 0.5, math.log(4), -1.0], [0.1, 0.9, -1.0, 0.2]], [0.4, 0, 0, 0], 0.1),  # cells: 4 wide
        ([[0.5, 0.5, 1.0, -1.0], [0.1, 0.9, -1.0, 0.2]], [0.0, 0, 0.3, 0], 0.3),  # cells: a logarithm
    ],
)
def test_box_errors_are_relative_to_the_box(
    goal: list[list[float]], shift: list[float], expected: float
) -> None:
    teacher = torch.tensor([goal])
    student = teacher + torch.tensor([[shift, [0.0] * 4]])
    assert float(losses.box_errors(student, teacher).abs().max()) == pytest.approx(expected)


def cells(count: int, sure: float, background: float, boxes: Tensor | None = None) -> Cells:
    """One sure cell among empty ones."""
    scores = torch.full((1, count, 2), background)
    scores[0, 0, 0] = sure
    places = torch.tensor([50.0, 50, 20, 20]).expand(1, count, 4) if boxes is None else boxes
    return Cells(places, None, scores)


def test_background_does_not_drown_the_sure_cell() -> None:
    teacher = cells(3000, 0.9, 1e-4)
    missed = losses.detector(cells(3000, 0.3, 1e-4), teacher)
    jitter = losses.detector(cells(3000, 0.9, 1.2e-4), teacher)
    alarms = losses.detector(cells(3000, 0.9, 0.2), teacher)
    assert float(jitter) < 0.05 * float(missed)
    assert float(alarms) > float(missed)


def test_boxes_count_where_the_teacher_is_sure() -> None:
    teacher = cells(100, 0.9, 1e-4)
    moved = teacher.boxes.clone()
    moved[0, 0, 0] += 10
    elsewhere = teacher.boxes.clone()
    elsewhere[0, 1:, 0] += 10
    sure = losses.detector(cells(100, 0.9, 1e-4, moved), teacher)
    empty = losses.detector(cells(100, 0.9, 1e-4, elsewhere), teacher)
    assert float(empty) < 0.05 * float(sure)


def test_class_scores_of_empty_cells_are_free_where_there_is_an_objectness() -> None:
    boxes = torch.rand(1, 50, 4)
    nothing = torch.full((1, 50), 1e-6)
    teacher = Cells(boxes, nothing, torch.full((1, 50, 3), 0.1))
    student = Cells(boxes, nothing, torch.full((1, 50, 3), 0.9))
    assert float(losses.detector(student, teacher)) < 1e-3
    alarm = Cells(boxes, torch.full((1, 50), 0.5), teacher.scores)
    assert float(losses.detector(alarm, teacher)) > 10


def test_saturated_scores_keep_loss_and_gradient_finite() -> None:
    scores = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    loss = losses.detector(
        Cells(torch.rand(1, 1, 4), None, scores),
        Cells(torch.rand(1, 1, 4), None, torch.tensor([[[1.0, 0.0]]])),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
