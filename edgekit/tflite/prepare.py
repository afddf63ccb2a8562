"""The float form of a network that has only operators with integer kernels in TFLite."""

from __future__ import annotations

from functools import partial

from edgekit.graph import Graph
from edgekit.passes.bound_masks import bound_masks
from edgekit.passes.decompose_hard_sigmoid import decompose_hard_sigmoid
from edgekit.passes.decompose_layernorm import Squares, decompose_layernorm
from edgekit.passes.decompose_norms import decompose_norms
from edgekit.passes.fold_scales import fold_scales
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.fuse_layernorm import fuse_layernorm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.remove_expands import remove_expands
from edgekit.passes.simplify_powers import simplify_powers

#: In this order: what an exporter spread out is put together first, then taken apart in one way.
_PASSES = (
    bound_masks,
    remove_expands,
    fuse_gelu,
    fuse_hard_swish,
    fuse_layernorm,
    simplify_powers,
    fold_scales,
    # Squares as dot products never round to 8 bits on their way into the sum.
    partial(decompose_layernorm, squares=Squares.DOT),
    partial(decompose_norms, squares=Squares.DOT),
    decompose_hard_sigmoid,
)


def prepare(graph: Graph) -> Graph:
    """An equivalent float graph; itself, without new history, where nothing was to be done.

    Args:
        graph: A captured float graph.
    """
    result = graph
    for step in _PASSES:
        result = step(result)
    return graph if result.to_bytes() == graph.to_bytes() else infer_shapes(result)
