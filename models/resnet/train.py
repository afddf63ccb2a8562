"""Trains the classifier on a CIFAR-10 file, and scores the committed weights.

    python -m edgekit.models.resnet.train --data cifar10.npz --out build/resnet    trains
    python -m edgekit.models.resnet.train --data cifar10.npz --evaluate            scores the weights

The file holds ``train_x`` and ``test_x`` (uint8 [N, 32, 32, 3], RGB) and ``train_y`` and ``test_y``. An
epoch's order and augmentation follow from (seed, epoch): a resumed run goes on as the uninterrupted one would
have.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekit.train.weights import save_weights

from . import MEAN, STD, build
from .architecture import ResNet

PROGRAM = "python -m edgekit.models.resnet.train"


@dataclass(frozen=True)
class Plan:
    """A training run; all that its result depends on, with the data file.

    depth: of the network. epochs: passes over the images. batch: images per step. rate: peak learning rate of
    SGD with Nesterov momentum 0.9. decay: of weights. warmup: share of the steps until the peak.
    """

    depth: int = 56
    epochs: int = 24
    batch: int = 128
    rate: float = 0.2
    decay: float = 5e-4
    warmup: float = 0.2
    seed: int = 0


def load(path: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8 [N, 32, 32, 3] and classes [N] of ``train`` or ``test``."""
    with np.load(path) as arrays:
        return arrays[f"{part}_x"], arrays[f"{part}_y"].astype(np.int64)


def to_input(images: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 32, 32, 3] to the network's float32 [N, 3, 32, 32]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The paper's: shifted by up to 4 pixels over a black border, mirrored every other time."""
    count = len(images)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    rows = rng.integers(0, 9, count)[:, None] + np.arange(32)
    columns = rng.integers(0, 9, count)[:, None] + np.arange(32)
    columns = np.where(rng.random(count)[:, None] < 0.5, columns, columns[:, ::-1])
    cut: npt.NDArray[np.uint8] = padded[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return cut


def learning_rate(plan: Plan, done: float) -> float:
    """Up in a line, then down half a cosine; ``done`` is the share of the steps that lie behind."""
    if done < plan.warmup:
        return plan.rate * (0.05 + 0.95 * done / plan.warmup)
    return plan.rate * 0.5 * (1 + math.cos(math.pi * (done - plan.warmup) / (1 - plan.warmup)))


def accuracy(model: nn.Module, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> float:
    """Share of the images whose largest logit is their class's."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 250):
            found = model(to_input(images[start : start + 250])).argmax(1).numpy()
            right += int((found == classes[start : start + 250]).sum())
    return right / len(images)


class Run:
    """Network, optimizer, epochs done."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.model = ResNet(plan.depth).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=plan.rate, momentum=0.9, nesterov=True)
        self.epoch, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint whole or not at all."""
        state = {
            "plan": asdict(self.plan), "model": self.model.state_dict(), "epoch": self.epoch,
            "optimizer": self.optimizer.state_dict(), "seconds": self.seconds,
        }  # fmt: skip
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint; the plan must be the one it was made with."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise ValueError(f"{path} was made with other settings: {state['plan']}, now {asdict(self.plan)}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])

    def train_epoch(self, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> float:
        """One pass over the images; returns the mean loss."""
        start, plan = time.monotonic(), self.plan
        rng = np.random.default_rng([plan.seed, self.epoch])
        order, steps, total = rng.permutation(len(images)), len(images) // plan.batch, 0.0
        self.model.train()
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(plan, (self.epoch + step / steps) / plan.epochs)
            chosen = np.sort(order[step * plan.batch : (step + 1) * plan.batch])
            # bfloat16 makes a step about twice as fast on CPUs that have it; the loss is taken in float32.
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(to_input(augment(images[chosen], rng)))
            loss = nn.functional.cross_entropy(logits.float(), torch.from_numpy(classes[chosen]))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item()
        self.epoch += 1
        self.seconds += time.monotonic() - start
        return total / steps


def train(plan: Plan, data: Path, out: Path, resume: bool) -> Run:
    """Trains to the end of the plan, with a checkpoint after every epoch."""
    out.mkdir(parents=True, exist_ok=True)
    run, checkpoint = Run(plan), out / "checkpoint.pt"
    if resume and checkpoint.exists():
        run.load(checkpoint)
    images, classes = load(data, "train")
    while run.epoch < plan.epochs:
        loss = run.train_epoch(images, classes)
        run.save(checkpoint)
        print(f"epoch {run.epoch} of {plan.epochs}  loss {loss:.3f}  {run.seconds:.0f} s", flush=True)
    return run


def write_score(run: Run, data: Path, folder: Path) -> None:
    """Writes score.json: what the weights in the folder score, and how they were made."""
    images, classes = load(data, "test")
    plan = run.plan
    record = {
        "accuracy": round(accuracy(build(folder / "weights.safetensors"), images, classes), 5),
        "images": len(images),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "training": {
            **asdict(plan),
            "seconds": round(run.seconds),
            "command": f"{PROGRAM} --data cifar10.npz --depth {plan.depth} --epochs {plan.epochs}"
            f" --batch {plan.batch} --rate {plan.rate:g} --seed {plan.seed}",
        },
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }
    (folder / "score.json").write_text(json.dumps(record, indent=2) + "\n")


def _arguments(words: list[str]) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Trains or scores the classifier.")
    parser.add_argument("--data", type=Path, required=True, help="the .npz file")
    parser.add_argument("--evaluate", action="store_true", help="score the committed weights and stop")
    parser.add_argument("--depth", type=int, default=plan.depth)
    parser.add_argument("--epochs", type=int, default=plan.epochs)
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--rate", type=float, default=plan.rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=1, help="of an operation")
    parser.add_argument(
        "--out", type=Path, default=Path("build/resnet"), help="for checkpoint, weights, score"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """The command line."""
    chosen = _arguments(sys.argv[1:] if words is None else words)
    torch.set_num_threads(chosen.threads)
    if chosen.evaluate:
        images, classes = load(chosen.data, "test")
        print(json.dumps({"accuracy": accuracy(build(), images, classes), "images": len(images)}))
        return
    plan = Plan(chosen.depth, chosen.epochs, chosen.batch, chosen.rate, seed=chosen.seed)
    run = train(plan, chosen.data, chosen.out, chosen.resume)
    save_weights(run.model, chosen.out / "weights.safetensors")
    write_score(run, chosen.data, chosen.out)
    print((chosen.out / "score.json").read_text())


if __name__ == "__main__":
    main()
