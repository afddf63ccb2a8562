"""Inner tensors that a student shares with its teacher, as a further thing to learn from.

A cut student keeps its tensors' names, so that they are found by name. Compared are tensors in which
something ends: a resolution, or a transformer's residual block. Where the widths differ, either the plan of
the cut tells which of the teacher's channels are left, or a learned 1×1 convolution, thrown away afterwards,
maps the student's channels to the teacher's (FitNets, arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.train.losses import regression

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan

#: Positions of a tensor that an adapter is fitted to at most.
_POSITIONS = 4000
_RIDGE = 1e-3
_MOVES = frozenset({"Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class Pair:
    """A tensor that both networks have.

    Attributes:
        name: Its name.
        axis: The axis of the channels: 1 of [N, C, H, W], 2 of [N, T, C].
        student: Channels in the student.
        teacher: Channels in the teacher.
        kept: The teacher's channels that the student's are, where a plan tells.
    """

    name: str
    axis: int
    student: int
    teacher: int
    kept: tuple[int, ...] | None = None

    @property
    def needs_adapter(self) -> bool:
        return self.kept is None and self.student != self.teacher


def find_pairs(
    student: Graph, teacher: Graph, *, most: int = 6, plan: PruningPlan | None = None
) -> tuple[Pair, ...]:
    """Tensors to compare, in the order of the network, evenly thinned to ``most``.

    Args:
        student: The network that learns.
        teacher: The network that it learns from.
        most: Largest number; 0 finds none.
        plan: How the student was cut from the teacher.
    """
    mine = student.values()
    kept = _kept_channels(teacher, plan) if plan is not None else {}
    found: dict[str, Pair] = {}
    for candidates in _ends(teacher):
        pairs = []
        for value in candidates:
            name = str(value.name)
            wide, narrow = static_shape(value), static_shape(mine.get(name))
            pair = None if wide is None or narrow is None else _pair(name, narrow, wide, kept.get(name))
            if pair is not None:
                pairs.append(pair)
        if pairs:
            # The first that can be compared as it is.
            chosen = min(pairs, key=lambda pair: pair.needs_adapter)
            found.setdefault(chosen.name, chosen)
    return _thinned(list(found.values()), most)


def _thinned(found: list[Pair], most: int) -> tuple[Pair, ...]:
    if len(found) <= most:
        return tuple(found)
    # The last ones always: they are nearest to the answer.
    return tuple(found[len(found) - 1 - i * len(found) // most] for i in reversed(range(most)))


def _pair(
    name: str, narrow: tuple[int, ...], wide: tuple[int, ...], kept: tuple[int, ...] | None
) -> Pair | None:
    """None where the tensors differ in more than their channels."""
    if len(narrow) != len(wide) or narrow[0] != 1 or wide[0] != 1:
        return None
    axis = 1 if len(wide) == 4 else 2
    if any(a != b for i, (a, b) in enumerate(zip(narrow, wide, strict=True)) if i != axis):
        return None
    if kept is not None and len(kept) != narrow[axis]:
        kept = None
    return Pair(name, axis, narrow[axis], wide[axis], kept)


def _ends(graph: Graph) -> Iterator[list[ir.Value]]:
    """Where something ends, the tensors that stand for it, best first.

    Of a resolution: the map [1, C, H, W] that the next node takes to another one, and the last residual sum
    of that resolution: the map may be the widened inside of a block, of which a cut student has a part. Of
    a transformer's block: the residual sum [1, T, C].
    """
    outputs = _moved_to_outputs(graph)
    sums: dict[tuple[int, ...], ir.Value] = {}
    for node in graph.nodes:
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        before, after = static_shape(source), static_shape(result)
        if source is None or before is None or after is None:
            continue
        if len(before) == 4 and before[2:] != after[2:] and before[2] * before[3] > 1:
            ended = [source, *([sums[before[2:]]] if before[2:] in sums else [])]
            yield [v for v in ended if v.producer() is not None and str(v.name) not in outputs]
        if _is_sum(node, after):
            if len(after) == 4:
                sums[after[2:]] = result
            elif len(after) == 3 and after[1] > 1 and str(result.name) not in outputs:
                yield [result]


def _is_sum(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a node adds two computed tensors of the same shape."""
    return node.op_type == "Add" and all(
        value is not None and not value.is_initializer() and static_shape(value) == shape
        for value in node.inputs
    )


def _moved_to_outputs(graph: Graph) -> set[str]:
    """Tensors whose values the outputs are put together from: the loss compares those already."""
    found: set[str] = set()
    waiting = list(graph.model.graph.outputs)
    while waiting:
        value = waiting.pop()
        found.add(str(value.name))
        producer = value.producer()
        if producer is not None and producer.op_type in _MOVES:
            waiting += [source for source in producer.inputs if source is not None]
    return found


def _kept_channels(teacher: Graph, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """For each tensor that a plan narrows: the channels that are left."""
    from edgekit.prune.apply import kept_positions

    kept = kept_positions(teacher, plan)
    found: dict[str, tuple[int, ...]] = {}
    for name, value in teacher.values().items():
        shape = static_shape(value)
        if shape is None or len(shape) not in (3, 4):
            continue
        indices = kept.indices(name, 1 if len(shape) == 4 else 2)
        if indices is not None:
            found[name] = tuple(int(i) for i in indices)
    return found


class Adapters(nn.Module):
    """Compares inner tensors; holds the 1×1 maps of those whose widths differ.

    Args:
        pairs: From :func:`find_pairs`.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.maps = nn.ModuleList(nn.Linear(p.student, p.teacher) for p in pairs if p.needs_adapter)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors to keep when either network runs."""
        return tuple(pair.name for pair in self.pairs)

    @torch.no_grad()
    def fit(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Set the maps to the ridge regression of the teacher's tensors on the student's, so that training
        does not start with the noise of random maps.
        """
        for pair, linear in self._mapped():
            x, y = (_rows(side[pair.name], pair.axis).double() for side in (student, teacher))
            step = max(1, len(x) // _POSITIONS)
            x, y = x[::step], y[::step]
            mean_x, mean_y = x.mean(0), y.mean(0)
            x, y = x - mean_x, y - mean_y
            gram = x.T @ x
            gram += torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * float(gram.diagonal().mean()) + 1e-12)
            weight = torch.linalg.solve(gram, x.T @ y).T
            linear.weight.copy_(weight)
            linear.bias.copy_(mean_y - weight @ mean_x)

    def loss(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Mean over the tensors of the squared error over the teacher's variance."""
        maps = dict(zip([p.name for p, _ in self._mapped()], self.maps, strict=True))
        parts = []
        for pair in self.pairs:
            mine, goal = student[pair.name].float(), teacher[pair.name].float()
            if pair.kept is not None:
                goal = goal.index_select(pair.axis, torch.tensor(pair.kept, device=goal.device))
            elif pair.name in maps:
                mine = maps[pair.name](mine.movedim(pair.axis, -1)).movedim(-1, pair.axis)
            parts.append(regression(mine, goal))
        return torch.stack(parts).mean()

    def _mapped(self) -> list[tuple[Pair, nn.Linear]]:
        linears = [m for m in self.maps if isinstance(m, nn.Linear)]
        return list(zip([p for p in self.pairs if p.needs_adapter], linears, strict=True))


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """[positions, channels]."""
    return tensor.movedim(axis, -1).flatten(0, -2)
