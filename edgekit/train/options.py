"""What distillation can be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.data.preprocess import Preprocess
from edgekit.errors import UsageError
from edgekit.train.augment import Augmentation
from edgekit.train.match import OutputKind

if TYPE_CHECKING:
    from edgekit.data.base import Sample
    from edgekit.prune.plan import PruningPlan

#: Labels: class numbers in the order of the samples, by the samples' names, or from the sample.
Labels = Sequence[int] | Mapping[str, int] | Callable[["Sample"], int | None]


@dataclass(frozen=True)
class Preset:
    """What suits a kind of network.

    Tried once each, with one seed. A face network of which 35 % of the inner channels were cut by magnitude,
    88 photographs, ten epochs: a relative rate of 0.01 came to an AUC of .966, 0.003 to .945, 0.02 to .950;
    0.01 with inner tensors at a weight of 0.1 to .975. A detector cut by 10 % wants less: four epochs brought
    its loss from 14.7 to 9.9 at 0.01, to 6.9 at 0.003, to 6.3 at 0.0015, to 6.7 at 0.0008; at 0.002
    with inner tensors to 6.6. The presets of classes and regression are guesses.

    Attributes:
        rate: Peak learning rate, relative to the size of each channel.
        batch: Samples per step.
        features: Weight of the inner tensors in the loss.
    """

    rate: float
    batch: int
    features: float


PRESETS: Mapping[OutputKind, Preset] = {
    OutputKind.EMBEDDING: Preset(1e-2, 8, 0.1),
    OutputKind.CLASSES: Preset(1e-2, 16, 0.1),
    OutputKind.DETECTOR: Preset(1.5e-3, 8, 0.0),
    OutputKind.REGRESSION: Preset(5e-3, 8, 0.1),
}


@dataclass(frozen=True)
class DistillOptions:
    """A distillation; all that its result depends on, beside the networks and the samples.

    Attributes:
        epochs: Most passes over the samples; None: 30, or with a limit in seconds as many as it allows.
        seconds: Most wall time; the schedule of the learning rate adapts. None: no limit. With a limit, how
            far it comes depends on the machine, and the weights with it.
        rate: Peak learning rate, relative to the size of each channel's weights (see
            :mod:`edgekit.train.optimizer`): 0.01 changes them by up to a hundredth in a step. None takes
            :data:`PRESETS`.
        batch: Samples per step; None takes :data:`PRESETS`.
        decay: Weight decay, not of biases and scales.
        warmup: Share of the steps until the peak.
        average: Horizon of the running mean of the weights, as a share of the steps.
        clip: Largest norm of the gradient.
        held_out: Every so many-th sample is held out to choose the best epoch by.
        patience: Stop after so many epochs without a better one, if they are a good part of the run too; 0
            never stops.
        kinds: What outputs are for, where the guess is wrong, by name.
        temperature: Softens class probabilities.
        box_weight: Of a detector's boxes against its scores.
        objectness: Whether a detector's fifth channel is an objectness; None tells by the orientation.
        features: Weight of the inner tensors in the loss, 0 for outputs alone; None takes :data:`PRESETS`.
        feature_count: Most inner tensors that are compared.
        plan: How the student was cut from the teacher; inner tensors are then compared channel by channel.
        labels: Class numbers, for networks with an output of classes.
        label_weight: Share of the labels' cross-entropy in the loss of samples that have one.
        augment: How samples are varied; None takes what suits the kind.
        preprocess: How images become inputs; None takes the samples' own.
        freeze_norm: Keep the running statistics of batch normalization as they are.
        cache_bytes: Most memory for decoded samples.
        threads: Workers that each take a share of a batch, with one thread; 0 is one per core. Part of what
            the weights depend on, in the last digits.
        seed: Of everything that is drawn.
        checkpoint_seconds: Least time between two checkpoints.
    """

    epochs: int | None = None
    seconds: float | None = None
    rate: float | None = None
    batch: int | None = None
    decay: float = 1e-4
    warmup: float = 0.05
    average: float = 0.05
    clip: float = 5.0
    held_out: int = 8
    patience: int = 8
    kinds: Mapping[str, OutputKind] | None = None
    temperature: float = 2.0
    box_weight: float = 2.0
    objectness: bool | None = None
    features: float | None = None
    feature_count: int = 6
    plan: PruningPlan | None = None
    labels: Labels | None = None
    label_weight: float = 0.5
    augment: Augmentation | None = None
    preprocess: Preprocess | None = None
    freeze_norm: bool = False
    cache_bytes: int = 2 << 30
    threads: int = 0
    seed: int = 0
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise UsageError(f"{name} cannot be {value}", where="distill", valid=(f"{low:g} or more",))
        for name in ("rate", "seconds", "temperature", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} cannot be {value}", where="distill", valid=("above 0",))
        for name in ("warmup", "average", "label_weight"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} cannot be {value}", where="distill", valid=("0 to 1",))

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree on; limits on how long it runs are left out."""
        skipped = {"seconds", "patience", "checkpoint_seconds", "labels", "plan", "cache_bytes"}
        return {name: repr(getattr(self, name)) for name in self.__dataclass_fields__ if name not in skipped}


_LEAST: Mapping[str, float] = {
    "epochs": 1,
    "batch": 1,
    "decay": 0,
    "held_out": 2,
    "patience": 0,
    "features": 0,
    "feature_count": 0,
    "box_weight": 0,
    "cache_bytes": 0,
    "threads": 0,
    "seed": 0,
    "checkpoint_seconds": 0,
}
