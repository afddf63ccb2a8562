"""Splits a training step over threads: each takes a share of the batch on a copy of the network.

Threads inside an operation have to meet after every operation, hundreds of times a step; on a machine that
others use too, they mostly wait for each other. Copies of the network meet once a step.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .architecture import Detector
from .augment import Pool, Strength, batch
from .loss import losses

Indices = npt.NDArray[np.int64]


def _one_thread() -> None:
    torch.set_num_threads(1)


class Team:
    """Copies of a network that compute gradients side by side. The result depends on their number, not on
    timing.
    """

    def __init__(self, model: Detector, size: int) -> None:
        self.model = model
        self.copies = [copy.deepcopy(model).train() for _ in range(size)]
        self.threads = ThreadPoolExecutor(size, initializer=_one_thread)

    def _share(
        self, member: Detector, pool: Pool, rng: np.random.Generator, indices: Indices, how: Strength
    ) -> tuple[float, float, float]:
        member.zero_grad(set_to_none=True)
        images, truth = batch(rng, pool, indices, how)
        # bfloat16 makes a step about twice as fast on CPUs that have it; the loss itself is taken in float32.
        with torch.autocast("cpu", torch.bfloat16):
            raw = member.raw(images)
        parts = losses(member.head, raw, truth)
        parts.total.backward()  # type: ignore[no-untyped-call]
        return parts.boxes.item(), parts.classes.item(), parts.sides.item()

    @torch.no_grad()
    def _hand_out(self) -> None:
        for member in self.copies:
            torch._foreach_copy_(list(member.parameters()), list(self.model.parameters()))
            for mine, theirs in zip(member.buffers(), self.model.buffers(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def _collect(self) -> None:
        """Means of the gradients and of the running statistics go to the model."""
        gradients: list[list[Tensor]] = []
        for member in self.copies:
            gradients.append([_gradient(p) for p in member.parameters()])
        for parameter, *several in zip(self.model.parameters(), *gradients, strict=True):
            parameter.grad = torch.stack(several).mean(dim=0)
        for buffer, *theirs in zip(self.model.buffers(), *(m.buffers() for m in self.copies), strict=True):
            if buffer.is_floating_point():
                buffer.copy_(torch.stack(theirs).mean(dim=0))
            else:  # how many batches batch norm has seen
                buffer.copy_(theirs[0])

    def gradients(
        self, pool: Pool, rngs: list[np.random.Generator], shares: list[Indices], how: Strength
    ) -> tuple[float, float, float]:
        """Sets the model's gradients for a batch given in shares; returns the mean loss parts: boxes,
        classes, sides.
        """
        self._hand_out()
        work = [
            self.threads.submit(self._share, member, pool, rng, share, how)
            for member, rng, share in zip(self.copies, rngs, shares, strict=True)
        ]
        parts = np.mean([done.result() for done in work], axis=0)
        self._collect()
        return float(parts[0]), float(parts[1]), float(parts[2])


def _gradient(parameter: Tensor) -> Tensor:
    # A branch that no digit of the share reached has none.
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
