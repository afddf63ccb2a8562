"""The training loop: AdamW, warm-up and cosine, a running mean of the weights, the best epoch kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.train.checkpoint import load_checkpoint, save_checkpoint
from edgekit.train.optimizer import RelativeAdamW
from edgekit.train.options import DistillOptions
from edgekit.train.pool import Pool
from edgekit.train.team import Team

Progress = Callable[[int, int | None], None]
Status = Callable[[str], None]
State = dict[str, Tensor]

#: Passes over the samples where neither epochs nor seconds limit them.
EPOCHS = 30
#: Smallest gain on held-out samples, absolute and relative, that is one.
LEAST_GAIN = 1e-5
#: Least share of the run that patience takes.
PATIENCE_SHARE = 0.4
#: Lowest learning rate, relative to the peak.
FLOOR = 0.01


@dataclass(frozen=True)
class EpochStats:
    """One epoch.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean loss of the training batches.
        held_out: Difference of the outputs from the teacher's on held-out samples.
        rate: Learning rate at its end.
        seconds: Wall time since the start of the run.
    """

    epoch: int
    loss: float
    held_out: float
    rate: float
    seconds: float


def learning_rate(done: float, warmup: float) -> float:
    """Relative to the peak, with a share ``done`` of the run over: a line up, then half a cosine down."""
    if done < warmup:
        return max(done / warmup, FLOOR)
    rest = (done - warmup) / max(1e-9, 1 - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


class Loop:
    """A run over a team.

    Args:
        team: Computes gradients.
        pool: The samples.
        options: How long and how fast.
        rate: Peak learning rate.
        batch: Samples per step.
        hold: By ONNX name, where weights stay: False holds a weight at zero.
        progress: Called after each step with steps done and the (estimated) total.
        status: Called after each epoch with one line.

    Attributes:
        history: The epochs so far.
        start: Held-out difference before training.
        best: The lowest held-out difference so far, and
        best_epoch: where it was; 0 is the start.
        trained: Samples that this run, not those it continues, has trained on.
        notes: What the user should know.
    """

    def __init__(
        self,
        team: Team,
        pool: Pool,
        options: DistillOptions,
        *,
        rate: float,
        batch: int,
        hold: Mapping[str, Tensor],
        progress: Progress | None = None,
        status: Status | None = None,
    ) -> None:
        self.team, self.pool, self.options = team, pool, options
        self.rate, self.batch = rate, min(batch, pool.count)
        self.progress, self.status = progress, status
        self.model = team.master
        self._masks = [(self.model.executor.weight(name).data, mask) for name, mask in hold.items()]
        self.epochs = options.epochs or (EPOCHS if options.seconds is None else None)
        self.optimizer = _optimizer(self.model, rate, options.decay)
        self.history: list[EpochStats] = []
        self.notes: list[str] = []
        self.epoch = self.step = self.best_epoch = self.trained = 0
        self._begin, self._spent, self._evaluation = time.monotonic(), 0.0, 0.0
        self.start = self.best = math.inf
        self._best_done = 0.0
        self._hold()
        self.mean = _copy(self.model)
        self.best_state = _copy(self.model)

    @property
    def seconds(self) -> float:
        """Wall time so far, that of the runs it continues included."""
        return self._spent + time.monotonic() - self._begin

    def run(self, checkpoint: Path | None, fingerprint: Mapping[str, str]) -> None:
        """Train to the end, and leave the best weights in the model.

        Args:
            checkpoint: Continued from where it exists; written while training.
            fingerprint: What a checkpoint must agree on.

        Raises:
            DataError: The checkpoint is damaged.
            UsageError: The checkpoint belongs to another run.
        """
        if checkpoint is not None and checkpoint.exists():
            self._restore(load_checkpoint(checkpoint, fingerprint))
            self.notes.append(f"continued after epoch {self.epoch}")
        else:
            self.start = self.best = self._evaluate()
        saved = time.monotonic()
        over = self._finished()
        while not over:
            over = self._epoch() or self._finished()
            if checkpoint is not None and (
                over or time.monotonic() - saved >= self.options.checkpoint_seconds
            ):
                save_checkpoint(checkpoint, self._state(), fingerprint)
                saved = time.monotonic()
        _load(self.model, self.best_state)
        self.team.share_buffers()
        if self.best_epoch == 0:
            self.notes.append("no epoch was better than the start: the student's weights stay as they were")

    def _finished(self) -> bool:
        if self.epochs is not None and self.epoch >= self.epochs:
            return True
        return self._out_of_time() or self._patience_over()

    def _patience_over(self) -> bool:
        patience = self.options.patience
        if not patience or self.epoch - self.best_epoch < patience:
            return False
        # Epochs at the peak of the learning rate are often worse than what the descent then brings.
        if self._done() - self._best_done < PATIENCE_SHARE or self._done() > 0.95:
            return False
        self.notes.append(f"stopped: no better epoch in {self.epoch - self.best_epoch}")
        return True

    def _out_of_time(self) -> bool:
        limit = self.options.seconds
        return limit is not None and self.seconds + 1.2 * self._evaluation >= limit

    def _done(self) -> float:
        """Share of the run that is over, 0 to 1: of its steps or of its time, whichever is further."""
        shares = [0.0]
        if self.epochs is not None:
            shares.append(self.step / (self.epochs * self.pool.steps(self.batch)))
        if self.options.seconds is not None:
            shares.append((self.seconds + self._evaluation) / self.options.seconds)
        return min(1.0, max(shares))

    def _epoch(self) -> bool:
        """One pass; True when the run has to end."""
        losses = []
        for number, items in enumerate(self.pool.epoch(self.epoch, self.batch)):
            done = self._done()
            rate = self.rate * learning_rate(done, self.options.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.team.gradients(items, (self.options.seed, 2, self.epoch, number))
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
            if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
                self.notes.append(
                    f"stopped in epoch {self.epoch + 1}: the loss or its gradient is not finite; "
                    f"a learning rate below {self.rate:g} may help"
                )
                return True
            self.optimizer.step()
            self._hold()
            self.step += 1
            self.trained += len(items)
            self._average(done)
            losses.append(loss)
            if self.progress is not None:
                self.progress(self.step, self._total(done))
            if self._out_of_time():
                break
        self.epoch += 1
        self._judge(float(np.mean(losses)), rate)
        return False

    def _judge(self, loss: float, rate: float) -> None:
        """Evaluate the running mean, at the end also the weights themselves, and keep the best."""
        now = _copy(self.model)
        candidates = [self.mean, now] if self._finished_soon() else [self.mean]
        found = []
        for candidate in candidates:
            _load(self.model, candidate)
            self.team.share_buffers()
            value = self._evaluate()
            found.append(value)
            if value < self.best - max(LEAST_GAIN, LEAST_GAIN * self.best):
                self.best, self.best_epoch, self._best_done = value, self.epoch, self._done()
                self.best_state = {name: tensor.clone() for name, tensor in candidate.items()}
        _load(self.model, now)
        self.team.share_buffers()
        self.history.append(EpochStats(self.epoch, loss, min(found), rate, self.seconds))
        if self.status is not None:
            self.status(f"epoch {self.epoch}: {min(found):.4g} (start {self.start:.4g})")

    def _finished_soon(self) -> bool:
        if self.epochs is not None and self.epoch >= self.epochs:
            return True
        return self.step < 40 or (self.options.seconds is not None and self._done() >= 0.97)

    def _evaluate(self) -> float:
        before = time.monotonic()
        value = self.team.evaluate(self.pool.held, self.batch)
        self._evaluation = time.monotonic() - before
        return value if math.isfinite(value) else math.inf

    def _total(self, done: float) -> int | None:
        if self.options.seconds is None and self.epochs is not None:
            return self.epochs * self.pool.steps(self.batch)
        return max(self.step, round(self.step / done)) if done > 0.01 else None

    @torch.no_grad()
    def _average(self, done: float) -> None:
        """Move the running mean towards the weights; quickly at first, when they still change much."""
        total = self.step / done if done > 0 else math.inf
        horizon = min(max(1.0, self.options.average * total), 1 + self.step / 8)
        now = self.model.state_dict()
        for name, mean in self.mean.items():
            if mean.is_floating_point():
                mean.lerp_(now[name], 1 / horizon)
            else:
                mean.copy_(now[name])

    @torch.no_grad()
    def _hold(self) -> None:
        for weight, mask in self._masks:
            weight.mul_(mask)

    def _state(self) -> dict[str, Any]:
        return {
            "model": _copy(self.model),
            "mean": self.mean,
            "best_state": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(stats) for stats in self.history],
            "epoch": self.epoch,
            "step": self.step,
            "start": self.start,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_done": self._best_done,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        _load(self.model, state["model"])
        self.team.share_buffers()
        self.mean, self.best_state = state["mean"], state["best_state"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [EpochStats(**stats) for stats in state["history"]]
        self.epoch, self.step = state["epoch"], state["step"]
        self.start, self.best, self.best_epoch = state["start"], state["best"], state["best_epoch"]
        self._best_done = state["best_done"]
        self._spent, self._begin = state["seconds"], time.monotonic()
        torch.set_rng_state(state["torch_rng"])


def _optimizer(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Weights decay; biases, slopes and scales do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return RelativeAdamW([group for group in groups if group["params"]], rate)


def _copy(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """In place, so that the replicas, which share the memory, follow."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
