"""Networks in and out: capturing a graph, training it elsewhere, cutting a module by a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekit.graph import Graph
    from edgekit.prune.plan import PruningPlan

Shapes = Mapping[str, tuple[int, ...]]


def load(source: str | Path, input_shapes: Shapes | None = None, *, fold: bool = True) -> Graph:
    """Capture a network: ``.onnx``, ``.pt2`` or ``package.module:callable`` returning an ``nn.Module``.

    Args:
        source: The network.
        input_shapes: Shapes of inputs that it leaves open, by name.
        fold: Fold batch normalizations into the layers before them; without it they stay and can train.

    Raises:
        UsageError: ``source`` or a shape has a wrong value.
        ModelError: The network cannot be used.
    """
    from edgekit.capture import capture

    return capture(str(source), input_shapes=input_shapes, fold=fold).graph


def torch_module(graph: Graph) -> torch.nn.Module:
    """The graph as a module to train in a loop of your own.

    It takes the inputs in the graph's order and returns the output, or a tuple of them; ``to_graph()`` gives
    the graph with the trained weights.

    Raises:
        ModelError: An operator cannot be trained through; the message lists them all.
    """
    from edgekit.train.executor import torch_module as make

    return make(graph)


def apply_plan(module: torch.nn.Module, plan: PruningPlan | str | Path) -> torch.nn.Module:
    """Cut a module by a plan that was made on the graph exported from it.

    Args:
        module: The module; stays as it is.
        plan: From :func:`prune`, or its file.

    Returns:
        A smaller copy, by parameter name.

    Raises:
        ModelError: The plan and the module do not belong together.
    """
    from edgekit.prune.module import apply_plan as cut

    read = read_plan(plan)
    assert read is not None  # only None reads as None
    return cut(module, read)


def read_plan(given: PruningPlan | str | Path | None) -> PruningPlan | None:
    """A plan from its file, or as it was given."""
    from edgekit.prune.plan import PruningPlan

    return PruningPlan.load(Path(given)) if isinstance(given, (str, Path)) else given
