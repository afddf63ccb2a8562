"""How far a student is from its teacher on the graph's outputs, without labels.

What an output is for is guessed from the graph: :func:`guess_kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.graph import Graph, TensorSpec
from edgekit.train import losses
from edgekit.train.losses import Cells

#: Sets of pixels per cell that detectors have, fine to coarse.
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (4, 8, 16), (16, 32), (8, 16), (8,), (16,), (32,))
#: Anchors per cell.
ANCHORS = (1, 2, 3, 5, 6, 9)
#: Fewest cells of a detector.
FEWEST_CELLS = 21
#: Nodes behind which the last operator with a meaning is looked for.
_PASSES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Cast"})


class OutputKind(StrEnum):
    """What an output is for, and so how a difference in it is measured.

    ``embedding``: a vector that is compared by its direction. ``classes``: logits or probabilities along the
    last axis. ``detector``: boxes and scores of many cells. ``regression``: any other numbers.
    """

    EMBEDDING = "embedding"
    CLASSES = "classes"
    DETECTOR = "detector"
    REGRESSION = "regression"


def guess_kinds(graph: Graph) -> dict[str, OutputKind]:
    """What each floating output is for, from its shape, its name and the node that makes it.

    Numbered as in the code: (1) many cells at the strides of an image are a detector; (2) a vector behind
    Softmax, LogSoftmax or Sigmoid, or so named, holds classes; (3) a vector behind a normalization, or so
    named, or of a multiple of 64 numbers, is an embedding; (4) other vectors of 2 numbers or more hold
    classes; (5) the rest is regression.
    """
    return {spec.name: _guess(graph, spec) for spec in graph.outputs if spec.dtype.kind == "f"}


def _guess(graph: Graph, spec: TensorSpec) -> OutputKind:
    if _is_detector(spec.shape, _image_sizes(graph)):
        return OutputKind.DETECTOR  # (1)
    shape = [d for i, d in enumerate(spec.shape) if i == 0 or d > 1]
    if len(shape) != 2:
        return OutputKind.REGRESSION  # (5)
    maker, name = _maker(graph, spec.name), spec.name.lower()
    if maker in ("Softmax", "LogSoftmax", "Sigmoid") or _named(name, ("logit", "prob", "class", "score")):
        return OutputKind.CLASSES  # (2)
    if maker in ("LpNormalization", "Div") or _named(name, ("embed", "feat")) or shape[1] % 64 == 0:
        return OutputKind.EMBEDDING  # (3)
    return (
        OutputKind.REGRESSION if _named(name, ("box", "reg", "pose", "point")) else OutputKind.CLASSES
    )  # (4)


def _named(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)


def _maker(graph: Graph, output: str) -> str:
    """Operator that computes an output's values, behind nodes that only move them."""
    value = graph.values()[output]
    producer = value.producer()
    while producer is not None and producer.op_type in _PASSES and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return "" if producer is None else producer.op_type


def _holds_probabilities(maker: str) -> bool | None:
    """Told by the node that makes an output; None for one that may make either."""
    if maker in ("Softmax", "Sigmoid", "HardSigmoid"):
        return True
    return False if maker in ("Gemm", "MatMul", "Conv", "Add", "LogSoftmax") else None


def _image_sizes(graph: Graph) -> list[tuple[int, int]]:
    """Height and width of every input that may be an image, in either layout."""
    shapes = [spec.shape for spec in graph.inputs if len(spec.shape) == 4]
    return [(s[2], s[3]) for s in shapes if s[1] <= 4] + [(s[1], s[2]) for s in shapes if s[3] <= 4]


def _is_cells(count: int, sizes: list[tuple[int, int]]) -> bool:
    found = {
        anchors * sum(math.ceil(height / s) * math.ceil(width / s) for s in strides)
        for height, width in sizes
        for strides in STRIDES
        for anchors in ANCHORS
    }
    return count >= FEWEST_CELLS and count in found


def _is_detector(shape: tuple[int, ...], sizes: list[tuple[int, int]]) -> bool:
    """[1, cells, 5 or more] or the reverse; parts of a detector that are outputs of their own are not."""
    if len(shape) != 3 or shape[0] != 1:
        return False
    first, last = shape[1:]
    return (_is_cells(first, sizes) and last >= 5) or (_is_cells(last, sizes) and first >= 5)


class Match:
    """Compares a student's outputs with its teacher's.

    Args:
        graph: Whose outputs are compared; both mappings are keyed by its output names.
        kinds: What outputs are for, where :func:`guess_kinds` guesses wrong, by name.
        temperature: Softens class probabilities; 1 leaves them.
        box_weight: Of a detector's boxes against its scores.
        objectness: Whether a detector's fifth channel is an objectness; by default it is one in
            [1, cells, 5 + C] and none in [1, 4 + C, cells].

    Attributes:
        kinds: The kind of each floating output, in order.
        probabilities: Whether an output holds probabilities; None where only its values can tell.
        notes: What was guessed, and which outputs are left out.

    Raises:
        UsageError: A kind is given for an output that does not exist or does not fit it.
    """

    def __init__(
        self,
        graph: Graph,
        kinds: Mapping[str, OutputKind] | None = None,
        *,
        temperature: float = 2.0,
        box_weight: float = 2.0,
        objectness: bool | None = None,
    ) -> None:
        self.temperature = temperature
        self.box_weight = box_weight
        self._specs = {spec.name: spec for spec in graph.outputs}
        given = {name: OutputKind(kind) for name, kind in (kinds or {}).items()}
        guessed = guess_kinds(graph)
        unknown = [name for name in given if name not in guessed]
        if unknown:
            raise UsageError(
                f"no floating output is called {', '.join(unknown)}", where="kinds", valid=list(guessed)
            )
        self.kinds = {name: given.get(name, kind) for name, kind in guessed.items()}
        if not self.kinds:
            raise UsageError("the network has no floating output to compare", where="kinds")
        self.probabilities = {name: _holds_probabilities(_maker(graph, name)) for name in self.kinds}
        self._cells_first = {
            name: self._orientation(name, _image_sizes(graph))
            for name, kind in self.kinds.items()
            if kind is OutputKind.DETECTOR
        }
        self._objectness = objectness
        self.notes = tuple(self._notes(given))

    def loss(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Mean over the outputs of what :mod:`edgekit.train.losses` has for their kinds; a scalar.

        Differentiable in ``student``; batches [N, …] of any N.
        """
        parts = []
        for name, kind in self.kinds.items():
            mine, goal = student[name].float(), teacher[name].detach().float()
            if kind is OutputKind.EMBEDDING:
                parts.append(losses.embedding(mine, goal))
            elif kind is OutputKind.CLASSES:
                parts.append(
                    losses.classes(
                        _trim(mine), _trim(goal), self.temperature, probabilities=self.probabilities[name]
                    )
                )
            elif kind is OutputKind.DETECTOR:
                cells = self._cells(name, mine, goal), self._cells(name, goal, goal)
                parts.append(losses.detector(*cells, box_weight=self.box_weight))
            else:
                parts.append(losses.regression(mine, goal))
        return torch.stack(parts).mean()

    def features(self, outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Vectors [N, F] whose squared distance to the teacher's own is the difference that matters.

        Embeddings are normalized, classes are probabilities, a detector's cells are weighted with the
        teacher's confidence and its boxes measured from the teacher's, relative to their size. Regression
        is divided by the teacher's standard deviation. Differentiable in ``outputs``.
        """
        parts = [
            part for name, kind in self.kinds.items()
            for part in self._vectors(name, kind, outputs[name].float(), teacher[name].detach().float())
        ]  # fmt: skip
        return torch.cat([part.flatten(1) for part in parts], 1)

    def distance(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> float:
        """Length of the difference in :meth:`features` over the length of the teacher's; 0 is the same."""
        with torch.no_grad():
            goal = self.features(teacher, teacher)
            error = self.features(student, teacher) - goal
            return float(error.square().sum().sqrt() / goal.square().sum().sqrt().clamp_min(1e-12))

    def _vectors(self, name: str, kind: OutputKind, mine: Tensor, goal: Tensor) -> Iterator[Tensor]:
        if kind is OutputKind.EMBEDDING:
            yield torch.nn.functional.normalize(mine.flatten(1), dim=1)
        elif kind is OutputKind.CLASSES:
            yield losses.class_probabilities(_trim(mine), _trim(goal), probabilities=self.probabilities[name])
        elif kind is OutputKind.REGRESSION:
            deviation = goal.std(unbiased=False).clamp_min(1e-6)
            yield mine / deviation / math.sqrt(max(1, goal[0].numel()))
        else:
            cells, wanted = self._cells(name, mine, goal), self._cells(name, goal, goal)
            weight = wanted.confidence
            yield weight.sqrt()[..., None] * losses.box_errors(cells.boxes, wanted.boxes)
            if cells.objectness is None or wanted.objectness is None:
                yield cells.scores
            else:
                yield cells.objectness
                yield wanted.objectness.sqrt()[..., None] * cells.scores

    def _cells(self, name: str, values: Tensor, goal: Tensor) -> Cells:
        """Split a detector's output; scores that are logits in ``goal`` become probabilities."""
        first = self._cells_first[name]
        if not first:
            values, goal = values.transpose(1, 2), goal.transpose(1, 2)
        scores = values[..., 4:] if losses.is_probability(goal[..., 4:]) else values[..., 4:].sigmoid()
        objectness = first if self._objectness is None else self._objectness
        if not objectness or scores.shape[-1] < 2:
            return Cells(values[..., :4], None, scores)
        return Cells(values[..., :4], scores[..., 0], scores[..., 1:])

    def _orientation(self, name: str, sizes: list[tuple[int, int]]) -> bool:
        """Whether the cells are the first axis after the batch."""
        shape = self._specs[name].shape
        if len(shape) != 3 or min(shape[1:]) < 5:
            raise UsageError(
                f"an output of shape {list(shape)} is not a detector's",
                where=f"kinds, {name}",
                valid=("[1, cells, 5 + C]", "[1, 4 + C, cells]"),
            )
        if _is_cells(shape[1], sizes) != _is_cells(shape[2], sizes):
            return _is_cells(shape[1], sizes)
        return shape[1] > shape[2]

    def _notes(self, given: Mapping[str, OutputKind]) -> Iterator[str]:
        for name, kind in self.kinds.items():
            if name not in given:
                yield f"output '{name}' {list(self._specs[name].shape)} is compared as {kind} (guessed)"
        left = [name for name in self._specs if name not in self.kinds]
        if left:
            yield f"outputs of whole numbers are not compared: {', '.join(left)}"


def _trim(values: Tensor) -> Tensor:
    """[N, C, 1, 1] as [N, C]: the classes last."""
    return values.flatten(1) if values[0].numel() == values.shape[1] else values
