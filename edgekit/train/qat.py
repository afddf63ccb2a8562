"""Quantization-aware training: a quantized graph learns to answer as its float original does.

The network computes with the codes of the deployed graph (:mod:`edgekit.train.fake_quant`) while its weights
are trained in float. By default nothing but unlabelled samples and the float network is needed
(quantization-aware distillation). Labels can be mixed in as :func:`~edgekit.train.distill.distill` does, and
all else of it holds here too: schedules, variations, checkpoints, weights held at zero, the best epoch on
held-out samples. The mean of the weights that the loop keeps is rounded as any other candidate is: a weight
that swings between two codes (Nagel et al. 2022, arXiv:2203.11086) settles in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.base import Samples
from edgekit.errors import UsageError
from edgekit.graph import Graph, array
from edgekit.passes.edit import set_constant
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import Plan
from edgekit.quantize.qparams import QParams
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.scheme import Scheme
from edgekit.train.distill import DistillResult, Run
from edgekit.train.executor import Executor
from edgekit.train.fake_quant import Trainable, make_trainable
from edgekit.train.loop import EpochStats, Progress, Status
from edgekit.train.match import OutputKind
from edgekit.train.options import DistillOptions, Preset
from edgekit.train.roles import Role, roles
from edgekit.train.threads import one_thread

Mask = np.ndarray[Any, Any]

#: What suits a kind of network. The student starts near its teacher: steps have to be small, or they do
#: more harm at first than rounding does. Tried once each. A detector (default model, 64 scenes, 7 to 10
#: epochs) came from a held-out difference of 0.0117 to 0.0075 at 3e-4, to 0.0056 at 1e-3, to 0.0060 at 2e-3.
#: A face network (100 photographs) was still above its 0.0019 after 17 epochs at 1e-3 and after 6 at 3e-4;
#: 10 epochs at 5e-5 brought it from 0.0020 to 0.0018. The presets of classes and regression are guesses.
PRESETS: Mapping[OutputKind, Preset] = {
    OutputKind.EMBEDDING: Preset(5e-5, 8, 0.0),
    OutputKind.CLASSES: Preset(3e-4, 16, 0.0),
    OutputKind.DETECTOR: Preset(1e-3, 8, 0.0),
    OutputKind.REGRESSION: Preset(3e-4, 8, 0.0),
}


@dataclass(frozen=True)
class QatOptions:
    """A quantization-aware training.

    Attributes:
        distill: How long and how; where it leaves the rate, the batch or the weight of inner tensors open,
            :data:`PRESETS` of this module hold.
        learn_scales: Whether the scales are learned too (LSQ, arXiv:1902.08153): the ends of ranges move to
            where the outputs lose least. Off, the ranges of the calibration stay.
    """

    distill: DistillOptions = field(default_factory=DistillOptions)
    learn_scales: bool = True


@dataclass(frozen=True)
class QatResult:
    """What the training made.

    Attributes:
        graph: The float graph with the new weights and biases; it serves to be quantized with ``params`` and
            ``scales`` again, not to run in float.
        params: Parameters of the activations.
        scales: Scales of the weights by node name.
        quantized: The QDQ graph of both, to deploy.
        history: Every epoch.
        best_epoch: Whose weights it has; 0: those it started with.
        start: Held-out difference of the quantized graph from the teacher before training.
        best: The same of the result.
        seconds: Wall time.
        notes: What was guessed, left out or stopped early.
        kinds: What the outputs were compared as.
    """

    graph: Graph
    params: dict[str, QParams]
    scales: dict[str, Array]
    quantized: Graph
    history: tuple[EpochStats, ...]
    best_epoch: int
    start: float
    best: float
    seconds: float
    notes: tuple[str, ...]
    kinds: Mapping[str, OutputKind]


def qat(
    work: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    scheme: Scheme,
    scales: Mapping[str, Array] | None,
    teacher: Graph,
    samples: Samples,
    options: QatOptions | None = None,
    *,
    progress: Progress | None = None,
    status: Status | None = None,
    checkpoint: Path | None = None,
    hold: Mapping[str, Mask] | None = None,
) -> QatResult:
    """Train a quantized graph against its float original.

    Args:
        work: The float graph that was quantized, equalized and with corrected biases if it was.
        plan: What is quantized in it.
        params: Parameters of the activations.
        scheme: The target's number formats.
        scales: Scales of the weights by node name; None finds them.
        teacher: The float network to learn from.
        samples: Unlabelled inputs.
        options: How.
        progress: Called after each step with the steps done and their (estimated) number.
        status: Called with what is being done.
        checkpoint: A file that the run continues from where it exists, and is saved to.
        hold: By initializer name of ``work``, boolean arrays: weights at False are held at zero, whose code
            is 0.

    Returns:
        The network with the weights of the best epoch on held-out samples, never worse there than it started.

    Raises:
        ModelError: Nothing is quantized, a node cannot be trained through, or the networks do not fit.
        DataError: There are no samples, or they, labels or the checkpoint cannot be used.
        UsageError: An option or a mask does not fit, or the checkpoint is another run's.
    """
    options = options or QatOptions()
    work, masks = _masked(work, hold or {})
    start = Quantization(work, plan, params, scheme, scales or {})
    trainable = make_trainable(start, learn_scales=options.learn_scales)
    settings = replace(options.distill, freeze_norm=True)
    trained = roles(trainable.graph)
    masks = {name: mask for name, mask in masks.items() if trained.get(name) is Role.WEIGHT}
    with one_thread():
        run = _QatRun(trainable, teacher, samples, settings, masks)
        found = run.go(progress, status, checkpoint)
    return _result(trainable, found)


class _QatRun(Run):
    presets = PRESETS
    name = "qat"

    def __init__(
        self,
        trainable: Trainable,
        teacher: Graph,
        samples: Samples,
        options: DistillOptions,
        hold: Mapping[str, Mask],
    ) -> None:
        self.work = trainable.start.work
        super().__init__(trainable.graph, teacher, samples, options, hold)
        self.notes += _notes(trainable)

    def _batched(self, executor: Executor) -> bool:
        # Of the float form: rounding turns the last digits, in which batches differ, into whole steps.
        return super()._batched(Executor(self.work))

    def _trains_norm(self) -> bool:
        return False


def _result(trainable: Trainable, found: DistillResult) -> QatResult:
    changed = found.history and (found.best_epoch > 0)
    end = trainable.export(found.graph)
    change = found.graph.history[-1]
    graph = end.work.with_change(change)
    quantized = replace(end, work=graph).deployed()
    moved = _largest_move(trainable, end) if changed else 0.0
    notes = [*found.notes]
    if trainable.thetas:
        notes.append(f"{len(trainable.thetas)} scales were learned; they moved by up to {100 * moved:.1f} %")
    return QatResult(
        graph=graph,
        params=dict(end.params),
        scales=dict(end.scales),
        quantized=quantized,
        history=found.history,
        best_epoch=found.best_epoch,
        start=found.start,
        best=found.best,
        seconds=found.seconds,
        notes=tuple(notes),
        kinds=found.kinds,
    )


def _largest_move(trainable: Trainable, end: Quantization) -> float:
    start = trainable.start
    moves = [abs(end.params[t].scale / start.params[t].scale - 1) for t in start.params]
    moves += [float(np.abs(end.scales[n] / start.scales[n] - 1).max()) for n in start.scales]
    return max(moves, default=0.0)


def _masked(work: Graph, hold: Mapping[str, Mask]) -> tuple[Graph, dict[str, Mask]]:
    """The graph with the weights at zero that are held there, whether they are trained or not."""
    if not hold:
        return work, {}
    found = work.copy()
    values = found.model.graph.initializers
    for name, mask in hold.items():
        weight = array(values[name]) if name in values else None
        if weight is None or weight.shape != mask.shape or mask.dtype != np.bool_:
            raise UsageError(
                f"the mask {list(mask.shape)} {mask.dtype} fits no weight of that name",
                where=f"hold, {name}",
                hint="A mask is a boolean array of its initializer's shape, in the graph that was quantized",
            )
        set_constant(values[name], (weight * mask).astype(weight.dtype))
    return found, dict(hold)


def _notes(trainable: Trainable) -> list[str]:
    start, notes = trainable.start, []
    norms = sum(node.op_type == "BatchNormalization" for node in start.work.nodes)
    if norms:
        notes.append(
            f"{norms} BatchNormalization nodes are not folded into convolutions: they run in float and keep "
            "their statistics; capture folds those that it can"
        )
    constants = len(start.plan.constants)
    if constants or trainable.frozen:
        notes.append(
            f"{len(trainable.weights)} weights are trained; {constants} constant operands and the weights of "
            f"{len(trainable.frozen)} nodes stay as they are"
        )
    return notes
