"""What the compress steps work with and what they all report."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data.preprocess import Preprocess
from edgekit.graph import Graph
from edgekit.stats import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.data.base import Samples
    from edgekit.progress import Reporter
    from edgekit.prune.effect import Effect
    from edgekit.prune.plan import PruningPlan
    from edgekit.prune.refit import RefitResult
    from edgekit.target import Target

Feeds = dict[str, np.ndarray[Any, Any]]
Json = dict[str, Any]

#: Samples that a step's effect on the outputs is measured on.
JUDGED = 16


@dataclass(frozen=True)
class Material:
    """What every step works with.

    Attributes:
        original: The network before compression: what is recovered towards.
        samples: Samples to rank, fit and train on; no labels are needed.
        judged: A few inputs that the effect on the outputs is measured on.
        target: Alignment and latency are its own; None where nothing depends on them.
        reporter: Tells the user.
        preprocess: How images become inputs.
        folder: What modules that a section names start from; None is the working folder.
    """

    original: Graph
    samples: Samples
    judged: list[Feeds]
    target: Target | None
    reporter: Reporter
    preprocess: Preprocess = field(default_factory=Preprocess)
    folder: Path | None = None

    def feeds(self, limit: int) -> list[Feeds]:
        """Inputs of so many samples, spread over the source."""
        total = self.samples.count
        stride = max(1, total // limit) if total is not None else 1
        return [sample.feeds for sample in islice(self.samples, 0, stride * limit, stride)]

    @cached_property
    def _effect(self) -> Effect:
        from edgekit.prune.effect import Effect

        return Effect(self.original, self.judged)

    def distance(self, graph: Graph) -> float:
        """How far a graph's outputs are from the original's, as their kind measures it; 0 is the same."""
        return self._effect.distance(graph)


@dataclass(frozen=True)
class Held:
    """What a training has to respect.

    Attributes:
        plan: How the graph was cut from the original; None where it was not.
        sparse: Initializers whose zeros stay zero.
    """

    plan: PruningPlan | None = None
    sparse: tuple[str, ...] = ()


def sizes(before: Graph, after: Graph) -> Json:
    """The ``before`` and ``after`` of a step."""
    return {"before": size_json(before), "after": size_json(after)}


def size_json(graph: Graph) -> dict[str, int]:
    """Parameters, multiply-accumulates and bytes of weights."""
    stats = count(graph)
    return {"parameters": stats.parameters, "macs": stats.macs, "size_bytes": stats.size_bytes}


def refit_json(refits: Sequence[RefitResult]) -> Json:
    """The ``refit`` part of a step: seconds of all rounds, layers of the last."""
    last = refits[-1]
    layers = [
        {
            "name": layer.node,
            "before": layer.before,
            "after": layer.after,
            "kept": layer.blend > 0,
            "note": "" if layer.blend > 0 else "the fit was no better on held-out rows: left as it was",
        }
        for layer in last.layers
    ]
    skipped = [{"where": r.where, "reason": r.reason} for r in last.skipped]
    return {"seconds": sum(r.seconds for r in refits), "layers": layers, "skipped": skipped}
