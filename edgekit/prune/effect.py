"""How far a changed graph's outputs are from the original's, on a few samples and without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph
from edgekit.session import open_runner, run_all

if TYPE_CHECKING:
    import torch

    from edgekit.train.match import Match

Feeds = Mapping[str, np.ndarray[Any, Any]]


class Effect:
    """Compares changed graphs with one original; its outputs are computed once.

    Args:
        original: The graph to compare with.
        feeds: The samples.
        match: What the outputs are; by default guessed.
        threads: Samples that run at the same time; 0 is one per core.
    """

    def __init__(
        self, original: Graph, feeds: Sequence[Feeds], match: Match | None = None, *, threads: int = 0
    ) -> None:
        from edgekit.train.match import Match

        self.feeds = feeds
        self.match = match or Match(original)
        self.threads = threads
        self._wanted = self._outputs(original)

    def distance(self, changed: Graph) -> float:
        """Relative distance of the outputs (:meth:`edgekit.train.match.Match.distance`); 0 is the same.

        Outputs that are not finite are infinitely far.
        """
        found = self.match.distance(self._outputs(changed), self._wanted)
        return found if np.isfinite(found) else float("inf")

    def _outputs(self, graph: Graph) -> dict[str, torch.Tensor]:
        import torch

        runs = list(run_all(open_runner(graph, threads=1), self.feeds, workers=self.threads))
        return {name: torch.from_numpy(np.concatenate([run[name] for run in runs])) for name in runs[0]}
