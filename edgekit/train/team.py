"""A training step shared out over threads, each with a replica of the student.

Threads inside an operation have to meet after every operation, hundreds of times a step; on cores that others
use too, they mostly wait for each other. Replicas meet once a step. They share the weights' memory; gradients
are added in the order of the replicas, so that the result depends on their number, not on timing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.graph import Graph
from edgekit.session import open_runner
from edgekit.train.executor import Executor
from edgekit.train.features import Adapters, Pair
from edgekit.train.losses import is_probability
from edgekit.train.match import Match, OutputKind
from edgekit.train.pool import Feeder, Item

Tensors = dict[str, Tensor]
Names = Mapping[str, str]


class Replica(nn.Module):
    """A student and the adapters of its inner tensors."""

    def __init__(self, graph: Graph, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.executor = Executor(graph)
        self.adapters = Adapters(pairs)


@dataclass(frozen=True)
class Pairing:
    """Which of the student's tensors are which of the teacher's.

    Attributes:
        inputs: The student's input names to the teacher's.
        outputs: The student's output names to the teacher's.
    """

    inputs: Names
    outputs: Names


class Teacher:
    """Answers by ONNX Runtime, sample by sample: on a CPU faster than a batch in torch."""

    def __init__(self, graph: Graph, inputs: Names, inner: Sequence[str]) -> None:
        self.runner = open_runner(graph, threads=1, extra_outputs=inner)
        self.inputs = inputs

    def __call__(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
        """Outputs and inner tensors of a batch, by the teacher's names, from the student's feeds."""
        answers = [self.runner.run({self.inputs[k]: v for k, v in feed.items()}) for feed in feeds]
        return {name: torch.from_numpy(np.concatenate([a[name] for a in answers])) for name in answers[0]}


@dataclass
class Clock:
    """Seconds that the workers spent on each part, summed."""

    spent: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.last
        self.last = now


class Team:
    """Replicas that compute gradients side by side; use as a context manager.

    Args:
        student: The graph to train.
        teacher: Answers.
        pairing: Names of one in the other.
        match: Compares the outputs.
        pairs: Inner tensors to compare.
        feeder: Makes inputs.
        size: Number of replicas.
        batched: False runs the samples of a share one by one.
        train_norm: Let batch normalization use the batch's statistics.
        feature_weight: Of inner tensors.
        label_weight: Of labels.

    Attributes:
        master: The replica whose gradients are set and whose weights all share.
        clocks: Where the time went.
    """

    def __init__(
        self,
        student: Graph,
        teacher: Teacher,
        pairing: Pairing,
        match: Match,
        pairs: Sequence[Pair],
        feeder: Feeder,
        *,
        size: int,
        batched: bool = True,
        train_norm: bool = False,
        feature_weight: float = 0.0,
        label_weight: float = 0.0,
    ) -> None:
        self.teacher, self.pairing, self.match, self.feeder = teacher, pairing, match, feeder
        self.batched, self.train_norm = batched, train_norm
        self.feature_weight, self.label_weight = feature_weight, label_weight
        self.replicas = [Replica(student, pairs) for _ in range(size)]
        self.master = self.replicas[0]
        for replica in self.replicas[1:]:
            for mine, shared in zip(replica.parameters(), self.master.parameters(), strict=True):
                mine.data = shared.data
        self.clocks = [Clock() for _ in range(size)]
        self.pool = ThreadPoolExecutor(
            size, thread_name_prefix="edgekit-train", initializer=torch.set_num_threads, initargs=(1,)
        )
        self.answers: dict[int, Tensors] = {}
        self.answer_room = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def gradients(self, batch: list[Item], seed: Sequence[int]) -> float:
        """Set the master's gradients for a batch; returns its loss.

        Args:
            batch: The items.
            seed: What each item's variation is drawn from, with its place in the batch.
        """
        shares = [s for s in np.array_split(np.arange(len(batch)), len(self.replicas)) if len(s)]
        work = [
            self.pool.submit(self._share, number, [int(i) for i in share], batch, seed)
            for number, share in enumerate(shares)
        ]
        losses = [done.result() for done in work]
        weights = [len(share) / len(batch) for share in shares]
        self._collect(weights)
        return float(np.dot(losses, weights))

    def evaluate(self, items: Sequence[Item], batch: int) -> float:
        """Mean difference of the outputs from the teacher's, without variations, in evaluation mode."""
        groups = [list(items[i : i + batch]) for i in range(0, len(items), batch)]
        lanes = [groups[i :: len(self.replicas)] for i in range(len(self.replicas))]
        work = [
            self.pool.submit(self._evaluate_lane, number, lane) for number, lane in enumerate(lanes) if lane
        ]
        total = [done.result() for done in work]
        return sum(total) / len(items)

    def fit_adapters(self, items: Sequence[Item]) -> None:
        """Start the adapters from a regression on a few samples."""
        if not len(self.master.adapters.maps):
            return
        feeds = [self.feeder.plain(item) for item in items]
        goal = self.teacher(feeds)
        with torch.no_grad():
            self.master.eval()
            parts = [self._forward(self.master, [feed], inner=True) for feed in feeds]
        mine = {name: torch.cat([part[name] for part in parts]) for name in self.master.adapters.names}
        self.master.adapters.fit(mine, goal)

    def _share(self, number: int, share: list[int], batch: list[Item], seed: Sequence[int]) -> float:
        replica, clock = self.replicas[number], self.clocks[number]
        clock.last = time.perf_counter()
        replica.zero_grad(set_to_none=True)
        replica.train(self.train_norm)
        items = [batch[i] for i in share]
        feeds = [self.feeder.varied(batch[i], batch, np.random.default_rng([*seed, i])) for i in share]
        clock.lap("inputs")
        goal = self._goal(items, feeds, keep=not self.feeder.varies)
        clock.lap("teacher")
        chunks = [list(range(len(items)))] if self.batched else [[i] for i in range(len(items))]
        total = 0.0
        for chunk in chunks:
            loss = self._loss(
                replica,
                [feeds[i] for i in chunk],
                {name: value[chunk] for name, value in goal.items()} if len(chunks) > 1 else goal,
                [items[i].label for i in chunk],
            )
            loss = loss * (len(chunk) / len(items))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        clock.lap("student")
        return total

    def _goal(
        self, items: Sequence[Item], feeds: Sequence[Mapping[str, np.ndarray]], *, keep: bool
    ) -> Tensors:
        """The teacher's answers; unvaried ones are remembered while there is room."""
        if not keep:
            return self.teacher(feeds)
        found: list[Tensors] = []
        for item, feed in zip(items, feeds, strict=True):
            known = self.answers.get(item.index)
            if known is None:
                known = self.teacher([feed])
                self._remember(item.index, known)
            found.append(known)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _remember(self, index: int, answer: Tensors) -> None:
        size = sum(value.numel() * value.element_size() for value in answer.values())
        if size <= self.answer_room:
            self.answer_room -= size
            self.answers[index] = answer

    def _loss(
        self,
        replica: Replica,
        feeds: Sequence[Mapping[str, np.ndarray]],
        goal: Tensors,
        labels: Sequence[int | None],
    ) -> Tensor:
        inner = self.feature_weight > 0 and len(replica.adapters.pairs) > 0
        mine = self._forward(replica, feeds, inner=inner)
        loss = self._difference(mine, goal, labels)
        return loss + self.feature_weight * replica.adapters.loss(mine, goal) if inner else loss

    def _difference(self, mine: Tensors, goal: Tensors, labels: Sequence[int | None]) -> Tensor:
        """Of the outputs, from the teacher's and from the labels that there are."""
        loss = self.match.loss(mine, goal)
        if self.label_weight > 0 and any(label is not None for label in labels):
            loss = (1 - self.label_weight) * loss + self.label_weight * label_loss(self.match, mine, labels)
        return loss

    def _forward(
        self, replica: Replica, feeds: Sequence[Mapping[str, np.ndarray]], *, inner: bool
    ) -> Tensors:
        """The student's outputs by the teacher's names, and its inner tensors."""
        tensors = {name: _tensor([feed[name] for feed in feeds]) for name in feeds[0]}
        found: Tensors = replica.executor(tensors, replica.adapters.names if inner else ())
        return {self.pairing.outputs.get(name, name): value for name, value in found.items()}

    @torch.no_grad()
    def _evaluate_lane(self, number: int, groups: Sequence[list[Item]]) -> float:
        replica = self.replicas[number].eval()
        total = 0.0
        for items in groups:
            feeds = [self.feeder.plain(item) for item in items]
            goal = self._goal(items, feeds, keep=True)
            if self.batched:
                mine = self._forward(replica, feeds, inner=False)
            else:
                parts = [self._forward(replica, [feed], inner=False) for feed in feeds]
                mine = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            total += float(self._difference(mine, goal, [item.label for item in items])) * len(items)
        return total

    @torch.no_grad()
    def _collect(self, weights: Sequence[float]) -> None:
        """The replicas' gradients and running statistics, averaged, go to the master."""
        replicas = self.replicas[: len(weights)]
        for several in zip(*(replica.parameters() for replica in replicas), strict=True):
            total = None
            for parameter, weight in zip(several, weights, strict=True):
                if parameter.grad is not None:
                    part = parameter.grad * weight
                    total = part if total is None else total + part
            several[0].grad = total
        if self.train_norm:
            self.share_buffers(replicas)

    @torch.no_grad()
    def share_buffers(self, sources: Sequence[Replica] | None = None) -> None:
        """Give every replica the mean of the running statistics of ``sources`` (the master's by default)."""
        sources = sources or [self.master]
        for several in zip(*(source.buffers() for source in sources), strict=True):
            if several[0].is_floating_point():
                several[0].copy_(torch.stack(list(several)).mean(0))
        for replica in self.replicas[1:]:
            for mine, shared in zip(replica.buffers(), self.master.buffers(), strict=True):
                mine.copy_(shared)


def label_loss(match: Match, outputs: Mapping[str, Tensor], labels: Sequence[int | None]) -> Tensor:
    """Cross-entropy of the outputs of classes against labels; samples without one are left out."""
    rows = [i for i, label in enumerate(labels) if label is not None]
    goal = torch.tensor([label for label in labels if label is not None])
    parts = []
    for name, kind in match.kinds.items():
        if kind is OutputKind.CLASSES:
            values = outputs[name].flatten(1)[rows]
            known = match.probabilities[name]
            if is_probability(values) if known is None else known:
                values = values.clamp_min(1e-6).log()
            parts.append(nn.functional.cross_entropy(values, goal))
    return torch.stack(parts).mean()


def _tensor(arrays: Sequence[np.ndarray]) -> Tensor:
    """A batch. Images in channels-last memory: convolutions forward and backward take 15 to 20 % less."""
    batch = torch.from_numpy(np.ascontiguousarray(np.concatenate(arrays)))
    images = batch.ndim == 4 and batch.is_floating_point()
    return batch.contiguous(memory_format=torch.channels_last) if images else batch
