"""How far a student's answer is from its teacher's: one function for each kind of output.

Every loss is 0 where student and teacher agree, needs no label and is scaled so that 1 is a large difference,
whatever the network's numbers are. Teacher tensors carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Probabilities are kept this far from 0 and 1 before a logarithm.
EDGE = 1e-6
#: Relative error of a box from which its loss is linear. Boxes of small objects are right to a few
#: hundredths: at 0.1 the pull fades long before (default model, two epochs: mAP .832 against .843 at 0.02).
BOX_BETA = 0.02
#: Extent of a raw box, in cells, that coordinate errors are divided by.
EXTENT = (0.5, 32.0)


def regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over the teacher's variance."""
    return functional.mse_loss(student, teacher) / _variance(teacher)


def embedding(student: Tensor, teacher: Tensor) -> Tensor:
    """``(1 − cos) + 0.1 · relative MSE + relations``, for tensors [N, D].

    The relations are the cosine similarities of the batch's samples to each other (relational knowledge
    distillation, arXiv:1904.05068); a batch of one has none.
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    near = functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)
    loss = (1 - (near[0] * near[1]).sum(1)).mean()
    energy = teacher.square().sum(1).mean().clamp_min(EDGE)
    loss = loss + 0.1 * (student - teacher).square().sum(1).mean() / energy
    if len(student) > 1:
        loss = loss + functional.mse_loss(near[0] @ near[0].T, near[1] @ near[1].T)
    return loss


def classes(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, *, probabilities: bool | None = None
) -> Tensor:
    """Kullback–Leibler divergence of the class probabilities, softened (arXiv:1503.02531), last axis.

    Probabilities that do not sum to 1 belong to independent labels; each counts as a Bernoulli variable.

    Args:
        student: [N, …, C].
        teacher: The same.
        temperature: Divides the logits.
        probabilities: Whether these are probabilities, not logits; None tells by the teacher's values.
    """
    if not (is_probability(teacher) if probabilities is None else probabilities):
        goal = functional.log_softmax(teacher / temperature, -1)
        guess = functional.log_softmax(student / temperature, -1)
        return _kl(guess, goal) * temperature**2
    if sums_to_one(teacher):
        # Logarithms of probabilities are logits, but for a constant that the softmax takes out again.
        return classes(_log(student), _log(teacher), temperature, probabilities=False)
    return bernoulli(student, teacher).sum(-1).mean()


def class_probabilities(values: Tensor, like: Tensor, *, probabilities: bool | None = None) -> Tensor:
    """``values`` as probabilities, read as what the teacher's output ``like`` is: logits or probabilities."""
    return (
        values if (is_probability(like) if probabilities is None else probabilities) else values.softmax(-1)
    )


def bernoulli(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback–Leibler divergence of independent probabilities, element by element."""
    student = student.clamp(EDGE, 1 - EDGE)
    teacher = teacher.clamp(EDGE, 1 - EDGE)
    yes = teacher * (teacher.log() - student.log())
    no = (1 - teacher) * (torch.log1p(-teacher) - torch.log1p(-student))
    return yes + no


@dataclass(frozen=True)
class Cells:
    """A detector's answer, cell by cell.

    Attributes:
        boxes: [N, cells, 4], as the network has them.
        objectness: Probabilities [N, cells]; None for networks without.
        scores: Class probabilities [N, cells, C].
    """

    boxes: Tensor
    objectness: Tensor | None
    scores: Tensor

    @property
    def confidence(self) -> Tensor:
        """[N, cells]: how sure the network is of the best class."""
        best = self.scores.amax(-1)
        return best if self.objectness is None else best * self.objectness


def box_errors(student: Tensor, teacher: Tensor) -> Tensor:
    """Differences of boxes [..., 4] relative to the teacher's box size.

    The teacher's values tell the encoding: corners (x1 ≤ x2, y1 ≤ y2 throughout), centre with width and
    height (none below 0), or else offsets with logarithms of width and height, in cells.
    """
    first, second = teacher[..., :2], teacher[..., 2:]
    if bool((second >= first).all()):
        size = second - first
        scale = torch.cat([size, size], -1).clamp_min(float(size.mean()) * 0.05 + EDGE)
        return (student - teacher) / scale
    if bool((second >= 0).all()):
        floor = float(second.mean()) * 0.05 + EDGE
        scale = torch.cat([second, second], -1).clamp_min(floor)
        return (student - teacher) / scale
    extent = second.exp().clamp(*EXTENT)
    return (student - teacher) / torch.cat([extent, torch.ones_like(extent)], -1)


def detector(student: Cells, teacher: Cells, *, box_weight: float = 2.0) -> Tensor:
    """Scores by Bernoulli divergence in every cell; boxes by smooth L1, weighted with the confidence.

    Both are divided by the teacher's total confidence, about the number of its detections, so that thousands
    of empty cells do not drown them; an empty cell counts as much as the student's false alarm there. Class
    scores of a cell without an object mean nothing where there is an objectness: they are weighted with it.
    """
    weight = teacher.confidence
    # An image without a detection must not blow up what little there is.
    total = weight.sum().clamp_min(float(len(weight)))
    scores = bernoulli(student.scores, teacher.scores).sum(-1)
    if teacher.objectness is not None and student.objectness is not None:
        scores = scores * teacher.objectness + bernoulli(student.objectness, teacher.objectness)
    errors = box_errors(student.boxes, teacher.boxes)
    nothing = torch.zeros_like(errors)
    boxes = functional.smooth_l1_loss(errors, nothing, beta=BOX_BETA, reduction="none").sum(-1)
    return (scores.sum() + box_weight * (weight * boxes).sum()) / total


def is_probability(values: Tensor) -> bool:
    """Whether all values lie in 0 to 1."""
    return bool(((values >= 0) & (values <= 1 + 1e-4)).all())


def sums_to_one(values: Tensor) -> bool:
    """Whether the last axis holds a distribution."""
    return bool(((values.sum(-1) - 1).abs() < 1e-2).all())


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(EDGE).log()


def _kl(guess: Tensor, goal: Tensor) -> Tensor:
    """Divergence of log-probabilities along the last axis, averaged over the rest."""
    return (goal.exp() * (goal - guess)).sum(-1).mean()


def _variance(teacher: Tensor) -> Tensor:
    """Of all values; where they are all alike, their mean square."""
    spread = teacher.var(unbiased=False)
    return torch.where(spread > 1e-8, spread, teacher.square().mean()).clamp_min(1e-8)
