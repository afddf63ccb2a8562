"""Learning one block: rounding of its weights, its biases, and the ranges inside of it.

The block's section of the QDQ graph runs in the torch executor, with its weights, biases and activation
scales fed. Its input is what the network quantized up to there gives (optionally mixed with the float one, as
QDrop does, arXiv:2203.05740), its aim the float network's output (Li et al. 2021, BRECQ, arXiv:2102.05426).
Scales are learned as LSQ does (arXiv:1902.08153), here by their logarithm; zero points stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.quantize.histogram import Array
from edgekit.quantize.reconstruct.options import ReconstructOptions
from edgekit.quantize.reconstruct.rounding import Grid, SoftWeight, on_grid
from edgekit.train.executor import Executor
from edgekit.train.threads import one_thread

if TYPE_CHECKING:
    import onnx

Fetch = Callable[[Sequence[int]], dict[str, Array]]
#: What a training step is given besides the block's inputs: the float network's output, and its inputs.
AIM, FROM_FLOAT = "aim", "float:"
#: How many times the bytes of its tensors a step of a section takes, gradients and what they need included.
_STEP_COST = 4
#: Share of the steps at whose end the rates have come down to nothing.
_COOL = 0.1


@dataclass(frozen=True)
class Layer:
    """A node whose weights are quantized.

    Attributes:
        node: Its name.
        weight: The float weight.
        grid: Where its codes lie.
        weight_input: The tensor of the section that is fed with the weight.
        bias: The float bias, flat; None for a node without one.
        bias_input: The tensor that is fed with it.
        step: Name of the scale of the node's input, or its value where it is not learned.
    """

    node: str
    weight: Array
    grid: Grid
    weight_input: str
    bias: Array | None
    bias_input: str
    step: str | float

    @property
    def unit(self) -> Array:
        """About the noise that rounding the weights puts on each channel; float32, like ``grid.scales``."""
        fan_in = self.weight.size / max(self.grid.scales.size, 1)
        return np.asarray(self.grid.scales * np.float32(math.sqrt(max(fan_in, 1.0))))


@dataclass(frozen=True)
class Scale:
    """An activation scale that is learned.

    Attributes:
        group: The same-scale group.
        start: What it is.
        most: What it may be at most.
        inputs: Tensors of the section that are fed with it.
    """

    group: str
    start: float
    most: float
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A block to learn.

    Attributes:
        model: Its section; weights, biases and learned scales are inputs.
        result: The tensor to compare.
        layers: Its layers.
        scales: Its learned scales.
        inputs: Names of the activations that it reads.
        bytes: Of all of its tensors for one sample.
        weights: What the error of each channel counts, in a shape that goes with the result.
        baseline: Weighted mean square of the error with nearest rounding.
        seed: Of this block.
    """

    model: onnx.ModelProto
    result: str
    layers: tuple[Layer, ...]
    scales: tuple[Scale, ...]
    inputs: tuple[str, ...]
    bytes: int
    weights: Array
    baseline: float
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Learned:
    """What a block has learned.

    Attributes:
        codes: By node.
        biases: By node.
        scales: By same-scale group.
        steps: Steps that were made.
        loss: Error over the baseline in the last steps, before rounding is decided.
        undecided: Share of the roundings that were still open (between 0.1 and 0.9).
    """

    codes: dict[str, Array]
    biases: dict[str, Array]
    scales: dict[str, float]
    steps: int
    loss: float
    undecided: float


def learn(
    task: Task,
    samples: Sequence[int],
    fetch: Fetch,
    options: ReconstructOptions,
    *,
    seconds: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Learned:
    """Train a block.

    Args:
        task: The block.
        samples: Numbers of the samples to train on.
        fetch: The block's inputs, those of the float network (under :data:`FROM_FLOAT` and their name, with
            ``drop``) and :data:`AIM` for some samples, along the first axis.
        options: How.
        seconds: Most seconds; None sets no limit.
        progress: Called with the number of steps made.

    Raises:
        ModelError: The executor has no kernel for a node.
    """
    with one_thread(), ThreadPoolExecutor(options.threads) as pool:
        trainer = _Trainer(task, options, pool)
        return trainer.run(samples, fetch, seconds, progress)


class _Trainer:
    def __init__(self, task: Task, options: ReconstructOptions, pool: ThreadPoolExecutor) -> None:
        self.task, self.options, self.pool = task, options, pool
        self.executor = Executor(Graph(ir.from_proto(task.model))).eval().requires_grad_(False)
        self.soft = {layer.node: SoftWeight(layer.weight, layer.grid) for layer in task.layers}
        self.moves = {
            layer.node: torch.zeros(layer.bias.size, requires_grad=True)
            for layer in task.layers
            if layer.bias is not None and options.bias_rate > 0
        }
        self.logs = {scale.group: torch.zeros((), requires_grad=True) for scale in task.scales}
        self.count = sum(layer.weight.size for layer in task.layers)
        self.weights = torch.from_numpy(np.array(task.weights, np.float32))
        self.random = torch.Generator().manual_seed(int(np.random.default_rng(task.seed).integers(2**62)))
        self.batched: bool | None = None

    def run(
        self,
        samples: Sequence[int],
        fetch: Fetch,
        seconds: float | None,
        progress: Callable[[int], None] | None,
    ) -> Learned:
        options = self.options
        order = _Batches(
            list(samples), min(options.batch, len(samples)), np.random.default_rng(self.task.seed)
        )
        optimizer = self._optimizer()
        rates = [group["lr"] for group in optimizer.param_groups]
        start, made, recent = time.perf_counter(), 0, 0.0
        while True:
            done = made / options.iterations
            if seconds is not None:
                # A share can be used up before the block's turn comes.
                done = max(done, (time.perf_counter() - start) / max(seconds, 1e-9))
            if done >= 1:
                break
            # Roundings must still be able to move when the pressure on them is highest.
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                cooled = max(_COOL, 0.5 * (1 + math.cos(math.pi * done)))
                group["lr"] = rate * (1.0 if group["rounding"] else cooled)
            optimizer.zero_grad()
            error = self._gradients(fetch(next(order)), done)
            optimizer.step()
            made += 1
            recent = error if made == 1 else 0.9 * recent + 0.1 * error
            if progress is not None:
                progress(made)
        return self._learned(made, recent)

    def fed(self) -> dict[str, Tensor]:
        """Weights, biases and scales as the variables stand."""
        found: dict[str, Tensor] = {}
        now: dict[str, Tensor] = {}
        for scale in self.task.scales:
            value = (self.logs[scale.group].exp() * scale.start).clamp(max=scale.most)
            now |= dict.fromkeys(scale.inputs, value)
        found |= now
        for layer in self.task.layers:
            found[layer.weight_input] = self.soft[layer.node].value()
            if layer.bias is None:
                continue
            bias = torch.from_numpy(np.array(layer.bias))
            scales = torch.from_numpy(np.array(layer.grid.scales, np.float32))
            step = now[layer.step] if isinstance(layer.step, str) else layer.step
            if layer.node in self.moves:
                bias = bias + self.moves[layer.node] * torch.from_numpy(np.array(layer.unit)) * self._size(
                    layer
                )
            found[layer.bias_input] = on_grid(bias, (scales * step).detach())
        return found

    def _size(self, layer: Layer) -> float:
        """Magnitude of the layer's input that its bias' unit goes with."""
        if not isinstance(layer.step, str):
            return 16 * layer.step
        return 16 * next(s.start for s in self.task.scales if layer.step in s.inputs)

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [
            (True, [s.variable for s in self.soft.values()], self.options.rounding_rate),
            (False, list(self.moves.values()), self.options.bias_rate),
            (False, list(self.logs.values()), self.options.scale_rate),
        ]
        return torch.optim.Adam(
            [{"params": params, "lr": rate, "rounding": kind} for kind, params, rate in groups if params]
        )

    def _gradients(self, data: Mapping[str, Array], done: float) -> float:
        """Add up the gradients of a step; returns the error over the baseline."""
        feeds, aim = self._inputs(data)
        fed = self.fed()
        inner = {name: value.detach().requires_grad_(value.requires_grad) for name, value in fed.items()}
        wanted = [name for name, value in inner.items() if value.requires_grad]

        def share(part: tuple[int, int]) -> tuple[float, Sequence[Tensor | None]]:
            torch.set_num_threads(1)
            chosen = {name: value[part[0] : part[1]] for name, value in feeds.items()}
            with torch.enable_grad():
                found = self._forward(chosen | inner)
                loss = ((found - aim[part[0] : part[1]]) ** 2 * self.weights).sum()
                loss = loss / (aim.numel() * self.task.baseline)
            leaves = [inner[name] for name in wanted]
            return float(loss.detach()), torch.autograd.grad(loss, leaves, allow_unused=True)

        error = 0.0
        total: dict[str, Tensor] = {}
        for loss, gradients in self.pool.map(share, self._parts(len(aim))):
            error += loss
            for name, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    total[name] = gradient if name not in total else total[name] + gradient
        found = [fed[name] for name in total]
        torch.autograd.backward(found, [total[name] for name in total])
        self._press(done)
        return error

    def _press(self, done: float) -> None:
        """Add the regularizer's gradient."""
        warmup, (first, last) = self.options.warmup, self.options.beta
        if done < warmup or not self.soft or not self.options.pressure:
            return
        # Cosine from the first to the last exponent, over the time behind the warm-up.
        beta = last + (first - last) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
        open_ = torch.stack([s.undecided(beta) for s in self.soft.values()]).sum()
        (open_ * (self.options.pressure / self.count)).backward()  # type: ignore[no-untyped-call]

    def _inputs(self, data: Mapping[str, Array]) -> tuple[dict[str, Tensor], Tensor]:
        feeds = {}
        for tensor in self.task.inputs:
            value = torch.from_numpy(data[tensor])
            if self.options.drop > 0 and FROM_FLOAT + tensor in data:
                keep = torch.rand(value.shape, generator=self.random) >= self.options.drop
                value = torch.where(keep, value, torch.from_numpy(data[FROM_FLOAT + tensor]))
            feeds[tensor] = value
        return feeds, torch.from_numpy(data[AIM])

    def _parts(self, size: int) -> list[tuple[int, int]]:
        """Shares of a batch, as many for each thread as memory asks for."""
        threads = self.options.threads
        fits = self.options.memory_bytes // max(1, self.task.bytes * _STEP_COST * threads)
        most = max(1, min(int(fits), -(-size // threads)))
        return [(i, min(i + most, size)) for i in range(0, size, most)]

    def _forward(self, feeds: dict[str, Tensor]) -> Tensor:
        if self.batched is None:
            self.batched = self._can_batch(feeds)
        count = len(feeds[self.task.inputs[0]])
        if self.batched or count == 1:
            return self._run(feeds)
        return torch.cat([self._one(feeds, i) for i in range(count)])

    def _one(self, feeds: dict[str, Tensor], index: int) -> Tensor:
        single = {n: v[index : index + 1] if n in self.task.inputs else v for n, v in feeds.items()}
        return self._run(single)

    def _run(self, feeds: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.executor(feeds, [self.task.result])[self.task.result]
        return found

    @torch.no_grad()
    def _can_batch(self, feeds: dict[str, Tensor]) -> bool | None:
        """Whether two samples at once give what they give one by one; None where there is one sample."""
        if len(feeds[self.task.inputs[0]]) < 2:
            return None
        single = torch.cat([self._one(feeds, 0), self._one(feeds, 1)])
        two = {n: v[:2] if n in self.task.inputs else v for n, v in feeds.items()}
        try:
            both = self._run(two)
        except (RuntimeError, IndexError, ModelError):
            # Shapes that fix the batch fail inside torch in as many ways as there are operators.
            return False
        # Codes may flip where sums are added in another order.
        near = both.shape == single.shape and float((both - single).square().mean())
        return near is not False and near <= 1e-4 * float(single.square().mean()) + 1e-12

    @torch.no_grad()
    def _learned(self, steps: int, loss: float) -> Learned:
        open_ = sum(float(((s.rounded_up() - 0.5).abs() < 0.4).sum()) for s in self.soft.values())
        fed = self.fed()
        return Learned(
            codes={node: soft.codes() for node, soft in self.soft.items()},
            biases={
                layer.node: fed[layer.bias_input].numpy().copy()
                for layer in self.task.layers
                if layer.node in self.moves
            },
            scales={s.group: float(np.float32(fed[s.inputs[0]])) for s in self.task.scales},
            steps=steps,
            loss=loss,
            undecided=open_ / max(1, self.count),
        )


class _Batches:
    """Batches without end, each sample once in every pass."""

    def __init__(self, samples: list[int], batch: int, random: np.random.Generator) -> None:
        self.samples, self.batch, self.random = samples, batch, random
        self.waiting: list[int] = []

    def __next__(self) -> list[int]:
        while len(self.waiting) < self.batch:
            self.waiting += [self.samples[i] for i in self.random.permutation(len(self.samples))]
        chosen, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
        return sorted(chosen)
