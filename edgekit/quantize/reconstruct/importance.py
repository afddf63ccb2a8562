"""How much the outputs depend on each channel of a tensor.

The expected square of the gradient of ``r . f`` for random signs ``r`` is the sum over the outputs of their
squared derivatives: the diagonal of the Gauss-Newton matrix, which BRECQ (arXiv:2102.05426, section 3.3)
takes from labels' losses. No labels are needed here. It is averaged over samples and positions, one number
for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.quantize.histogram import Array
from edgekit.quantize.judge import output_branches
from edgekit.train.executor import Executor
from edgekit.train.threads import one_thread

#: Random signs drawn for each sample.
PROBES = 2
#: A channel counts at least so much of what the mean channel counts.
_FLOOR = 0.05


def channel_axis(shape: tuple[int, ...]) -> int:
    """Axis of the channels: 1 of [N, C, H, W], the last of [N, T, C] and [N, C]."""
    return 1 if len(shape) >= 4 else len(shape) - 1


def channel_weights(
    graph: Graph, tensors: Sequence[str], feeds: Sequence[Mapping[str, Array]], seed: int
) -> dict[str, Array]:
    """Squared gradient of the outputs by channel, 1 in the mean, in a shape that goes with the tensor.

    The branches of the outputs (see :mod:`edgekit.quantize.judge`) count alike, each over its own power.
    Tensors that no gradient reaches are left out.

    Raises:
        ModelError: The executor has no kernel for a node.
    """
    branches = output_branches(graph)
    sums: dict[str, Array] = {}
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        executor = Executor(graph).eval().requires_grad_(False)
        for feed in feeds:
            tensors_in = {
                n: torch.from_numpy(np.array(v)).requires_grad_(v.dtype == np.float32)
                for n, v in feed.items()
            }
            found = executor(tensors_in, [*branches, *tensors])
            for number in range(PROBES):
                goal = torch.stack([_probe(found[b], generator) for b in branches]).sum()
                leaves = [found[t] for t in tensors]
                again = number + 1 < PROBES
                gradients = torch.autograd.grad(goal, leaves, retain_graph=again, allow_unused=True)
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    if gradient is not None:
                        sums[tensor] = sums.get(tensor, 0.0) + _by_channel(gradient)
    return {tensor: _normal(total) for tensor, total in sums.items() if total.any()}


def bytes_needed(graph: Graph) -> int:
    """About what the gradients of one sample take."""
    shapes = (static_shape(v) for n in graph.nodes for v in n.outputs)
    return sum(8 * int(np.prod(shape)) for shape in shapes if shape is not None)


def _probe(branch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    signs = torch.randint(0, 2, branch.shape, generator=generator) * 2.0 - 1.0
    power = branch.detach().square().sum().clamp(min=1e-12).sqrt()
    return (branch * signs).sum() / power


def _by_channel(gradient: torch.Tensor) -> Array:
    axis = channel_axis(tuple(gradient.shape))
    others = [i for i in range(gradient.ndim) if i != axis]
    return np.asarray(gradient.double().square().mean(others, keepdim=True).numpy())


def _normal(total: Array) -> Array:
    return np.asarray(np.maximum(total / total.mean(), _FLOOR), np.float32)
