"""AdamW whose steps are relative to the size of what they change.

Where batch normalization is folded into the weights, their sizes differ by hundreds from channel to channel.
Adam's steps are as large for all: they leave large channels where they are and destroy small ones. Here a
step is multiplied by the root mean square of its channel (of the whole tensor, for biases and other vectors),
taken once at the start, as if every channel were trained as a direction of size 1 (compare LAMB,
arXiv:1904.00962).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: A channel counts as at least this share of its tensor's size; one of zeros could not move.
LEAST_SHARE = 0.1


class RelativeAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with steps and decay relative to the channels' sizes.

    Args:
        params: Parameters, or groups of them with a ``weight_decay`` of their own.
        lr: Step of an average element, relative to the size of its channel.
        betas: Horizons of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Share of a weight that is taken off each step, per unit of ``lr``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
            state["size"] = size_of(parameter)
        state["step"] += 1
        first, second = group["betas"]
        # Adam does not care how large a gradient is, but eps does.
        gradient = gradient * state["size"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(mean.div_(root).mul_(state["size"]), alpha=group["lr"])


def size_of(parameter: Tensor) -> Tensor:
    """Root mean square of each channel (first axis) of a weight, of all of a vector; never 0."""
    whole = parameter.square().mean().sqrt()
    if not float(whole):
        return torch.ones_like(whole)
    if parameter.ndim < 2:
        return whole
    channels = parameter.square().mean(dim=tuple(range(1, parameter.ndim)), keepdim=True).sqrt()
    return channels.clamp_min(LEAST_SHARE * float(whole))
