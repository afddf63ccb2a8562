"""Trains the detector, and scores the committed weights.

    python -m edgekit.models.yolo.train --epochs 12 --out build/yolo     trains, resumes with --resume
    python -m edgekit.models.yolo.train --evaluate                       scores the committed weights

Everything is seeded: an epoch's order and augmentation follow from (seed, epoch), so a resumed run continues
as the uninterrupted one would have.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.train.weights import save_weights

from . import build
from .architecture import Architecture, Detector
from .augment import Pool, Strength, generator_hash, open_pool
from .data import MONITOR_SEED, TRAINING_SEED, VALIDATION_IMAGES, VALIDATION_SEED
from .evaluate import Score, evaluate, torch_runner
from .team import Team

PACKAGES = ("torch", "numpy", "pillow", "scikit-learn", "faster-coco-eval")
PROGRAM = "python -m edgekit.models.yolo.train"


@dataclass(frozen=True)
class Plan:
    """A training run; all that its result depends on.

    epochs: passes over the pool. images: scenes in the pool. batch: images per step. rate: peak learning
    rate. decay: of weights (not of biases and norms). warmup: steps until the peak. average: horizon of the
    running mean of the weights, steps. calm: share of the epochs, at the end, without mosaics and strong
    augmentation. shards: threads that each take a share of a batch; batch norm sees a share at a time.
    """

    epochs: int = 8
    images: int = 10000
    batch: int = 16
    rate: float = 2e-3
    decay: float = 0.02
    warmup: int = 300
    average: int = 800
    calm: float = 0.25
    shards: int = 2
    seed: int = 0
    strength: Strength = field(default_factory=Strength)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.images // self.batch


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.epochs * plan.steps - plan.warmup)
    return plan.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def strength(plan: Plan, epoch: int) -> Strength:
    """The augmentation of an epoch: gentle at the end, so that the last steps see scenes as they come."""
    if epoch >= plan.epochs - round(plan.calm * plan.epochs):
        full = plan.strength
        return replace(full, mosaic=0.0, scale=1 + (full.scale - 1) / 3, shift=full.shift / 2)
    return plan.strength


class Run:
    """The state of a training run: network, running mean of its weights, optimizer, epochs done."""

    def __init__(self, plan: Plan, spec: Architecture | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.model = Detector(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.model).eval()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
        self.team = Team(self.model, plan.shards)
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99))
        self.epoch = 0
        self.seconds = 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint whole or not at all."""
        state = {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint; the plan must be the one it was made with."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise ValueError(f"{path} was made with other settings: {state['plan']}, now {asdict(self.plan)}")
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])

    def _average(self, step: int) -> None:
        """Moves the running mean towards the weights; quickly at first, when they still change much."""
        keep = 1 - 1 / min(self.plan.average, 1 + step / 8)
        with torch.no_grad():
            now_state = self.model.state_dict()
            for name, mean in self.mean.state_dict().items():
                now = now_state[name]
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - keep)
                else:
                    mean.copy_(now)

    def step(
        self, pool: Pool, rng: np.random.Generator, indices: Any, how: Strength, step: int
    ) -> tuple[float, ...]:
        """One batch; returns the loss parts: boxes, classes, sides."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.plan, step)
        rngs = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=self.plan.shards)]
        parts = self.team.gradients(pool, rngs, np.array_split(indices, self.plan.shards), how)
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self._average(step)
        return parts

    def train_epoch(self, pool: Pool) -> list[float]:
        """One pass over the pool; returns the mean loss parts."""
        start, total = time.monotonic(), np.zeros(3)
        rng = np.random.default_rng([self.plan.seed, self.epoch])
        order = rng.permutation(len(pool))
        how = strength(self.plan, self.epoch)
        self.model.train()
        for i in range(self.plan.steps):
            indices = order[i * self.plan.batch : (i + 1) * self.plan.batch]
            total += self.step(pool, rng, indices, how, self.epoch * self.plan.steps + i)
            if (i + 1) % 100 == 0:
                rate = (i + 1) * self.plan.batch / (time.monotonic() - start)
                loss = total.sum() / (i + 1)
                print(f"  step {i + 1}/{self.plan.steps}  loss {loss:.3f}  {rate:.0f} images/s", flush=True)
        self.epoch += 1
        self.seconds += time.monotonic() - start
        return [float(v) for v in total / self.plan.steps]


def train(plan: Plan, out: Path, cache: Path, resume: bool, workers: int) -> Run:
    """Trains to the end of the plan, with a checkpoint after every epoch."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the team's threads are the parallel ones
    run, checkpoint = Run(plan), out / "checkpoint.pt"
    if resume and checkpoint.exists():
        run.load(checkpoint)
    pool = open_pool(cache, plan.images, TRAINING_SEED, workers)
    while run.epoch < plan.epochs:
        parts = run.train_epoch(pool)
        run.save(checkpoint)
        score = evaluate(torch_runner(run.mean), 48, MONITOR_SEED)
        line = {
            "epoch": run.epoch,
            "boxes": parts[0],
            "classes": parts[1],
            "sides": parts[2],
            **asdict(score),
        }
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps({**line, "seconds": run.seconds}) + "\n")
        print(
            "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
            flush=True,
        )
    return run


def score_committed(weights: Path | None = None) -> Score:
    """The score on the validation set of weights as they lie on the disk."""
    return evaluate(torch_runner(build(weights)), VALIDATION_IMAGES, VALIDATION_SEED)


def command(plan: Plan) -> str:
    """The command that repeats a run."""
    return (
        f"{PROGRAM} --epochs {plan.epochs} --images {plan.images} --batch {plan.batch} "
        f"--rate {plan.rate:g} --seed {plan.seed}"
    )


def write_score(run: Run, folder: Path) -> None:
    """Writes score.json: what the weights in the folder score, and how they were made."""
    score = score_committed(folder / "weights.safetensors")
    record = {
        "map50": round(score.map50, 5),
        "map50_95": round(score.map50_95, 5),
        "images": VALIDATION_IMAGES,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seeds": {"training": TRAINING_SEED, "validation": VALIDATION_SEED, "network": run.plan.seed},
        "training": {**asdict(run.plan), "seconds": round(run.seconds), "command": command(run.plan)},
        "generator": generator_hash(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }
    (folder / "score.json").write_text(json.dumps(record, indent=2) + "\n")


def _arguments(words: list[str]) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Trains or scores the detector.")
    parser.add_argument("--evaluate", action="store_true", help="score the committed weights and stop")
    parser.add_argument("--epochs", type=int, default=plan.epochs)
    parser.add_argument("--images", type=int, default=plan.images, help="scenes in the training pool")
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--rate", type=float, default=plan.rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--out", type=Path, default=Path("build/yolo"), help="for checkpoint, weights, score")
    cache = Path.home() / ".cache/edgekit/yolo"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for the pool")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that draw the pool"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """The command line."""
    chosen = _arguments(sys.argv[1:] if words is None else words)
    if chosen.evaluate:
        print(json.dumps({**asdict(score_committed()), "images": VALIDATION_IMAGES}))
        return
    plan = Plan(chosen.epochs, chosen.images, chosen.batch, chosen.rate, seed=chosen.seed)
    run = train(plan, chosen.out, chosen.cache, chosen.resume, chosen.workers)
    save_weights(run.mean, chosen.out / "weights.safetensors")
    write_score(run, chosen.out)
    print((chosen.out / "score.json").read_text())


if __name__ == "__main__":
    main()
