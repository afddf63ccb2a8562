"""Label-free distillation: a student graph learns to answer as its teacher does, on unlabelled samples.

The teacher is the network before compression, or any other with the same inputs and outputs. What is compared
follows from what the outputs are for, see :mod:`edgekit.train.match`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.data.base import Samples
from edgekit.errors import ModelError, UsageError
from edgekit.graph import Change, Graph, TensorSpec, array
from edgekit.session import cores
from edgekit.train.augment import NONE, default_augmentation
from edgekit.train.executor import Executor, check_batch
from edgekit.train.features import Pair, find_pairs
from edgekit.train.loop import EpochStats, Loop, Progress, Status
from edgekit.train.match import Match, OutputKind
from edgekit.train.options import PRESETS, DistillOptions, Preset
from edgekit.train.pool import Feeder, Pool
from edgekit.train.team import Pairing, Teacher, Team
from edgekit.train.threads import one_thread

#: Share of a batch from which batch normalization's own statistics are good enough to train with.
NORM_BATCH = 8
#: Samples that adapters start from.
_FIRST = 8


@dataclass(frozen=True)
class DistillResult:
    """What distillation made.

    Attributes:
        graph: The student with the best weights.
        history: Every epoch.
        best_epoch: Whose weights it has; 0: those it started with.
        seconds: Wall time.
        notes: What was guessed, left out or stopped early.
        start: Held-out difference from the teacher before training, as the kinds of the outputs measure it.
        best: The same of the result.
        kinds: What the outputs were compared as.
    """

    graph: Graph
    history: tuple[EpochStats, ...]
    best_epoch: int
    seconds: float
    notes: tuple[str, ...]
    start: float
    best: float
    kinds: Mapping[str, OutputKind]


def distill(
    student: Graph,
    teacher: Graph,
    samples: Samples,
    options: DistillOptions | None = None,
    *,
    progress: Progress | None = None,
    status: Status | None = None,
    checkpoint: Path | None = None,
    hold: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> DistillResult:
    """Train a graph against its teacher.

    Args:
        student: The graph to train; stays as it is.
        teacher: The graph to learn from.
        samples: Unlabelled inputs of the student; a hundred photographs carry far.
        options: How.
        progress: Called after each step with the steps done and their (estimated) number.
        status: Called with what is being done.
        checkpoint: A file that the run continues from where it exists, and is saved to.
        hold: By initializer name, boolean arrays of its shape: weights at False are held at zero.

    Returns:
        The student with the weights of the best epoch on held-out samples, never worse than it started.

    Raises:
        ModelError: The networks do not fit each other, or cannot be trained through.
        DataError: The samples, labels or the checkpoint cannot be used.
        UsageError: An option does not fit the networks, or the checkpoint is another run's.
    """
    options = options or DistillOptions()
    with one_thread():
        return Run(student, teacher, samples, options, hold or {}).go(progress, status, checkpoint)


def pair_tensors(student: Graph, teacher: Graph) -> Pairing:
    """Which inputs and outputs of two networks belong together: by name, else by position and shape.

    Raises:
        ModelError: They do not fit each other; the message lists both sides.
    """
    return Pairing(
        inputs=_paired("inputs", student.inputs, teacher.inputs),
        outputs=_paired("outputs", student.outputs, teacher.outputs),
    )


def _paired(what: str, mine: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> dict[str, str]:
    by_name = {spec.name: spec for spec in theirs}
    named = [by_name.get(spec.name) for spec in mine]
    for others in (named, theirs):
        if len(mine) == len(theirs) == len(others) and all(
            other is not None and (spec.shape, spec.dtype) == (other.shape, other.dtype)
            for spec, other in zip(mine, others, strict=True)
        ):
            return {spec.name: other.name for spec, other in zip(mine, others, strict=True) if other}
    listed = [
        ", ".join(f"'{spec.name}' {list(spec.shape)} {spec.dtype}" for spec in side)
        for side in (mine, theirs)
    ]
    raise ModelError(
        f"the student's {what} ({listed[0]}) do not match the teacher's ({listed[1]})",
        where="teacher",
        hint="They have to agree in number, shape and type",
    )


class Run:
    """One distillation, put together.

    Attributes:
        presets: What is tried where the options say nothing.
        name: Of the change that the result's history names.
    """

    presets: Mapping[OutputKind, Preset] = PRESETS
    name = "distill"

    def __init__(
        self,
        student: Graph,
        teacher: Graph,
        samples: Samples,
        options: DistillOptions,
        hold: Mapping[str, np.ndarray[Any, Any]],
    ) -> None:
        self.student, self.teacher, self.options = student, teacher, options
        self.pairing = pair_tensors(student, teacher)
        self.match = Match(
            teacher,
            options.kinds,
            temperature=options.temperature,
            box_weight=options.box_weight,
            objectness=options.objectness,
        )
        self.kind = _leading(self.match)
        self.preset = _preset(self.presets[self.kind], options)
        self.hold = _masks(student, hold)
        self.pool = Pool(samples, student, options)
        self.feeder = self._feeder()
        self.notes = [*self.match.notes, *self.pool.notes]
        self.pairs = self._pairs()
        self.size = min(options.threads or cores(), self.preset.batch, self.pool.count)

    def go(self, progress: Progress | None, status: Status | None, checkpoint: Path | None) -> DistillResult:
        if status is not None:
            status("comparing with the teacher")
        with self._team() as team:
            team.answer_room = self.options.cache_bytes // 2
            team.fit_adapters(self.pool.held[:_FIRST])
            loop = Loop(
                team,
                self.pool,
                self.options,
                rate=self.preset.rate,
                batch=self.preset.batch,
                hold=self.hold,
                progress=progress,
                status=status,
            )
            loop.run(checkpoint, self._fingerprint() if checkpoint is not None else {})
            changed = loop.best_epoch > 0 or self.hold
            graph = team.master.executor.to_graph() if changed else self.student
            notes = (*self.notes, *loop.notes, *_speed(team, loop, self.pool))
        return DistillResult(
            graph=graph.with_change(self._change(loop)),
            history=tuple(loop.history),
            best_epoch=loop.best_epoch,
            seconds=loop.seconds,
            notes=notes,
            start=loop.start,
            best=loop.best,
            kinds=self.match.kinds,
        )

    def _feeder(self) -> Feeder:
        how = self.options.augment or default_augmentation(self.kind)
        feeder = Feeder(self.student, self.pool, how)
        if self.pool.images and not how.images and how != NONE:
            self.pool.notes.append("samples are images: noise and mixup do not apply to them")
        if not self.pool.images and not how.arrays:
            self.pool.notes.append("samples came as arrays: they are not varied (noise and mixup can be set)")
        if self.pool.streaming and how.mosaic > 0:
            self.pool.notes.append("mosaics mix neighbours of the stream")
        return feeder

    def _pairs(self) -> tuple[Pair, ...]:
        if self.preset.features == 0 or self.options.feature_count == 0:
            return ()
        found = find_pairs(
            self.student, self.teacher, most=self.options.feature_count, plan=self.options.plan
        )
        if found:
            mapped = sum(pair.needs_adapter for pair in found)
            how = f", {mapped} of them by a learned 1×1 map" if mapped else ""
            self.notes.append(f"{len(found)} inner tensors are compared{how}")
        else:
            self.notes.append("no inner tensors of the same name and size: outputs alone are compared")
        return found

    def _team(self) -> Team:
        has_classes = OutputKind.CLASSES in self.match.kinds.values()
        if self.options.labels is not None:
            self.notes.append(
                f"{self.pool.labelled} samples have a label"
                if has_classes
                else "labels are not used: no output holds classes"
            )
        team = Team(
            self.student,
            Teacher(self.teacher, self.pairing.inputs, [pair.name for pair in self.pairs]),
            self.pairing,
            self.match,
            self.pairs,
            self.feeder,
            size=self.size,
            train_norm=self._trains_norm(),
            feature_weight=self.preset.features,
            label_weight=self.options.label_weight if has_classes and self.pool.labelled else 0.0,
        )
        team.batched = self._batched(team.master.executor)
        return team

    def _batched(self, executor: Executor) -> bool:
        items = [*self.pool.held, *next(self.pool.epoch(0, 2))][:2]
        feeds = [{k: torch.from_numpy(v) for k, v in self.feeder.plain(item).items()} for item in items]
        if len(feeds) < 2 or check_batch(executor, feeds):
            return True
        self.notes.append("the graph does not take batches: gradients are added up sample by sample")
        return False

    def _trains_norm(self) -> bool:
        """Whether batch normalization, where there is any, uses the batch's statistics."""
        if not any(node.op_type == "BatchNormalization" for node in self.student.nodes):
            return False
        share = min(self.preset.batch, self.pool.count) // self.size
        if self.options.freeze_norm or share < NORM_BATCH:
            why = "as asked" if self.options.freeze_norm else f"a worker sees {share} samples at a time"
            self.notes.append(f"batch normalization keeps its running statistics ({why})")
            return False
        return True

    def _fingerprint(self) -> dict[str, str]:
        masks = hashlib.sha256()
        for name, mask in sorted(self.hold.items()):
            masks.update(name.encode() + np.packbits(mask.numpy()).tobytes())
        return {
            **self.options.fingerprint(),
            "student": self.student.sha256(),
            "teacher": self.teacher.sha256(),
            "samples": f"{self.pool.samples.source}, {self.pool.count} + {len(self.pool.held)}",
            "threads": str(self.size),
            "hold": masks.hexdigest(),
        }

    def _change(self, loop: Loop) -> Change:
        change = f"{loop.start:.4g} to {loop.best:.4g}" if loop.best_epoch else f"{loop.start:.4g}, no gain"
        return Change(
            self.name,
            f"{len(loop.history)} epochs, difference from the teacher {change}",
            details={
                "epochs": len(loop.history),
                "best_epoch": loop.best_epoch,
                "start": loop.start,
                "best": loop.best,
                "rate": self.preset.rate,
                "batch": self.preset.batch,
                "samples": self.pool.count,
                "seed": self.options.seed,
                "kinds": {name: str(kind) for name, kind in self.match.kinds.items()},
            },
        )


def _leading(match: Match) -> OutputKind:
    """The kind that decides on batch, rate and variations."""
    order = (OutputKind.DETECTOR, OutputKind.EMBEDDING, OutputKind.CLASSES, OutputKind.REGRESSION)
    return min(match.kinds.values(), key=order.index)


def _preset(preset: Preset, options: DistillOptions) -> Preset:
    return Preset(
        rate=preset.rate if options.rate is None else options.rate,
        batch=preset.batch if options.batch is None else options.batch,
        features=preset.features if options.features is None else options.features,
    )


def _masks(student: Graph, hold: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    values = student.model.graph.initializers
    masks = {}
    for name, mask in hold.items():
        weight = array(values[name]) if name in values else None
        if weight is None or weight.shape != mask.shape or mask.dtype != np.bool_:
            raise UsageError(
                f"the mask {list(mask.shape)} {mask.dtype} fits no weight of that name",
                where=f"hold, {name}",
                hint="A mask is a boolean array of its initializer's shape",
            )
        masks[name] = torch.from_numpy(np.ascontiguousarray(mask))
    return masks


def _speed(team: Team, loop: Loop, pool: Pool) -> list[str]:
    """One line on how fast it went and what took the time."""
    spent: dict[str, float] = {}
    for clock in team.clocks:
        for part, seconds in clock.spent.items():
            spent[part] = spent.get(part, 0.0) + seconds
    total = sum(spent.values())
    if not total:
        return []
    rate = loop.trained / (total / len(team.clocks))
    shares = ", ".join(f"{part} {100 * seconds / total:.0f} %" for part, seconds in spent.items())
    return [f"{rate:.1f} samples/s on {len(team.clocks)} threads of {os.cpu_count()} ({shares})"]
