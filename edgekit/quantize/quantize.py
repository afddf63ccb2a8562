"""Static quantization of a float graph: from samples to a QDQ graph, and what was found on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Range
from edgekit.quantize.ladder import Ladder
from edgekit.quantize.observe import Progress
from edgekit.quantize.options import AUTO as AUTO
from edgekit.quantize.options import TRIED as TRIED
from edgekit.quantize.options import Feeds, Options, QuantizeResult
from edgekit.quantize.options import Rung as Rung
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.spread import Spread as Spread

__all__ = ["AUTO", "TRIED", "Feeds", "Options", "QuantizeResult", "Rung", "Spread", "quantize"]


def quantize(
    graph: Graph,
    scheme: Scheme,
    feeds: Feeds,
    options: Options | None = None,
    *,
    input_ranges: Mapping[str, Range] | None = None,
    threads: int = 0,
    total: int | None = None,
    progress: Progress | None = None,
    status: Callable[[str], None] | None = None,
    checkpoint: Path | None = None,
) -> QuantizeResult:
    """Quantize a captured float graph.

    Args:
        graph: The graph.
        scheme: The target's number formats.
        feeds: Called for every pass over the samples.
        options: What the user chose.
        input_ranges: Ranges of graph inputs that are known.
        threads: Samples that run at the same time; 0 is one per core.
        total: Number of samples where it is known.
        progress: Called while calibrating.
        status: Called with a line on every candidate that has been measured.
        checkpoint: A file that blocks are kept in as they are learned, so that an interrupted run goes on.

    Raises:
        DataError: There are no samples.
        ModelError: A tensor takes values that are not finite.
    """
    line = Ladder(graph, scheme, feeds, options or Options(), dict(input_ranges or {}), threads, status)
    line.progress, line.checkpoint = progress, checkpoint
    return line.run(total)
