"""The int8 network that a standard converter makes: what is explained where only a float one is given.

Min-max ranges over the samples, nearest codes, nothing equalized, cut or raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.bound_masks import bound_masks
from edgekit.quantize.calibrators import Calibrator, Range
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.scheme import Scheme
from edgekit.session import Arrays

#: Stands for minus infinity where that has to have a range; the lowest that masks can be bounded at.
LOWEST = -999.0


def quantize_plainly(
    graph: Graph,
    scheme: Scheme,
    feeds: Sequence[Arrays],
    inputs: Mapping[str, Range],
    *,
    threads: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Graph:
    """The QDQ form of a float graph.

    Raises:
        DataError: There are no samples.
        ModelError: A tensor takes values that are not finite.
    """
    plan = make_plan(graph, scheme)
    if not plan.tensors:
        raise ModelError(
            "nothing in it can be quantized for this target", hint="See edgekit inspect MODEL --target T"
        )
    wanted = unknown_ranges(graph, scheme, plan, inputs)
    calibration = observe(graph, wanted, feeds, threads=threads, total=len(feeds), progress=progress)
    options = RangeOptions(Calibrator.MINMAX, tails=False, inputs=dict(inputs))
    return insert_qdq(graph, plan, choose_params(graph, plan, scheme, calibration, options), scheme)


def finite_masks(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """The graph with minus infinity in its masks at a value that has a range, and the tensors masked so."""
    bounded = bound_masks(graph, floor=LOWEST)
    found = tuple(bounded.history[-1].details["bounded"])
    return (bounded, found) if found else (graph, ())
