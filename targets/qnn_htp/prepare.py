"""The float form of a network that Qualcomm's HTP has kernels for.

What HTP refuses, runs in float or computes wrongly is written in another way, equal in float:

============================================  ==========================================
GELU, LayerNorm, HardSwish, L2 and RMS norm   one operator each: kernels of their own
LayerNorm over several axes, GroupNorm        LayerNorm over one; InstanceNorm
Mish, Softsign, Celu, Selu, ThresholdedRelu   simpler ones; PRelu in ``a16w8``, Reciprocal in ``a8w8``
MatMul and Gemm with stored weights           Gemm with rows of weights, 32-bit bias
Einsum, CumSum                                Transpose, MatMul, Mul
MaxPool with dilations or over volumes        Max of slices
AveragePool, ConvTranspose                    without the attributes that go wrong
nearest Resize                                ``asymmetric`` and ``floor``, or slices
learned bins of box distances                 a product and a sum, in 16 bits
Pow, rare reductions, Sum, Mean, n-ary Max    products, roots, sums of two
attention masks                               a choice between 0 and -20
more than five axes                           at most five
============================================  ==========================================

What has no integer form stays: NonMaxSuppression, DeformConv, NonZero, ScatterElements, GridSample and the
like, and what only they feed. They run behind the network, as ordinary nodes on the CPU: cutting them off
here would change what the network returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.bound_masks import bound_masks
from edgekit.passes.decompose_activations import decompose_activations
from edgekit.passes.decompose_cumsum import decompose_cumsum
from edgekit.passes.decompose_einsum import decompose_einsum
from edgekit.passes.decompose_max_pool import decompose_max_pool
from edgekit.passes.decompose_reductions import decompose_reductions
from edgekit.passes.expectations_to_sums import expectations_to_sums
from edgekit.passes.fold_scales import fold_scales
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.fuse_l2norm import fuse_l2norm
from edgekit.passes.fuse_layernorm import fuse_layernorm
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.lower_rank import lower_rank
from edgekit.passes.masks_to_where import masks_to_where
from edgekit.passes.matmul_to_gemm import matmul_to_gemm
from edgekit.passes.remove_expands import remove_expands
from edgekit.passes.reshape_norms import reshape_norms
from edgekit.passes.settle_pools import settle_pools
from edgekit.passes.settle_resizes import settle_resizes
from edgekit.passes.settle_transposed import settle_transposed
from edgekit.passes.split_variadic import split_variadic
from edgekit.passes.unroll_powers import unroll_powers

FORMATS = ("a8w8", "a16w8")

#: Activations without a kernel, or with one that is not exact, in each format.
_ACTIVATIONS = {
    "a8w8": ("Mish", "Softsign", "Celu", "Selu", "ThresholdedRelu", "Reciprocal"),
    "a16w8": ("Mish", "Softsign", "Celu", "Selu", "ThresholdedRelu", "PRelu"),
}


def prepare(graph: Graph, *, fmt: str = "a8w8") -> Graph:
    """An equivalent float graph; itself, without new history, where nothing was to be done.

    Args:
        graph: A captured float graph.
        fmt: The format it will be quantized to, ``a8w8`` or ``a16w8``.

    Raises:
        UsageError: There is no such format.
    """
    if fmt not in FORMATS:
        raise UsageError(f"no format called '{fmt}'", valid=list(FORMATS))
    result = graph
    for step in _passes(fmt):
        result = step(result)
    return graph if result.to_bytes() == graph.to_bytes() else infer_shapes(result)


def _passes(fmt: str) -> tuple[Callable[[Graph], Graph], ...]:
    """In this order: what an exporter spread out is put together first, then taken apart in one way."""
    return (
        bound_masks,
        masks_to_where,
        remove_expands,
        fuse_gelu,
        fuse_hard_swish,
        fuse_layernorm,
        fuse_l2norm,
        expectations_to_sums,
        reshape_norms,
        decompose_reductions,
        unroll_powers,
        split_variadic,
        partial(decompose_activations, ops=_ACTIVATIONS[fmt]),
        decompose_einsum,
        decompose_cumsum,
        decompose_max_pool,
        settle_pools,
        settle_resizes,
        settle_transposed,
        fold_scales,
        matmul_to_gemm,
        lower_rank,
    )
