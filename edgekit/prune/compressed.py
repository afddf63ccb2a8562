"""What zeros in the weights buy: bytes, measured, and latency, where a target has kernels for them."""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph, array
from edgekit.passes.edit import int_attribute
from edgekit.prune.packed import encode_bitmask, encode_blocks, fits_blocks
from edgekit.prune.sparsity import input_axis

if TYPE_CHECKING:
    from edgekit.target import Target

Array = np.ndarray[Any, Any]
#: Patterns that are looked for, the sparsest first.
PATTERNS = ((1, 4), (2, 4), (4, 8))
#: Weights above this size are compressed with a faster setting of lzma.
_LARGE = 32 * 2**20
_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def compressed_bytes(graph: Graph) -> dict[str, int]:
    """Bytes of a graph's weights, written down in several ways.

    The weights are those of Conv, ConvTranspose, Gemm and MatMul, with at least two dimensions; float ones as
    they are, quantized ones (behind a DequantizeLinear) as their integers.

    Returns:
        ``raw``: as in the file. ``zlib`` (level 9) and ``lzma`` (preset 6; 1 above 32 MiB): all of them
        compressed together. ``bitmask``: a bit for each weight and the non-zero values; a weight for
        which that is longer stays raw. ``packed``: the N:M form where a weight has one of :data:`PATTERNS`,
        else as for ``bitmask``; missing where not all sparse weights have the same pattern. ``file`` and
        ``file_zlib``: the whole serialized model.
    """
    weights = _weights(graph)
    raw = b"".join(values.tobytes() for values, _ in weights.values())
    masked = {name: min(len(encode_bitmask(v)), v.nbytes) for name, (v, _) in weights.items()}
    packed = {name: _packed(v, axis) for name, (v, axis) in weights.items()}
    sizes = {
        "raw": len(raw),
        "zlib": len(zlib.compress(raw, 9)),
        "lzma": len(lzma.compress(raw, preset=6 if len(raw) <= _LARGE else 1)),
        "bitmask": sum(masked.values()),
    }
    if _pattern(weights) != "unstructured":
        sizes["packed"] = sum(packed[name] or size for name, size in masked.items())
    whole = graph.to_bytes()
    return {**sizes, "file": len(whole), "file_zlib": len(zlib.compress(whole, 9))}


def benefit(graph: Graph, target: Target) -> dict[str, Any]:
    """What a sparse graph gains on a target.

    Dense kernels multiply zeros like other numbers. Few runtimes have others: sparse tensor cores have them
    for 2:4, XNNPACK for 1x1 convolutions with many zeros (arXiv:1911.09723). Reads the target's
    ``sparse_kernels``: the patterns (``2:4``, ``unstructured``) that it has kernels for; none where it does
    not say.

    Returns:
        ``target``, ``sparsity`` (share of zero weights), ``pattern`` (``1:4``, ``2:4``, ``4:8`` where all
        weights that are sparse have it, else ``unstructured``), ``kernels``, ``latency`` (whether the network
        runs faster) and ``text``, which says it in words.
    """
    kernels = tuple(str(k) for k in getattr(target, "sparse_kernels", ()))
    weights = _weights(graph)
    zeros = sum(int((v == 0).sum()) for v, _ in weights.values())
    total = sum(v.size for v, _ in weights.values())
    share = zeros / total if total else 0.0
    pattern = _pattern(weights)
    faster = zeros > 0 and (pattern in kernels or "unstructured" in kernels)
    if not zeros:
        text = "no weight is zero, so there is nothing to gain"
    elif faster:
        text = f"has kernels for {pattern} weights; measure the latency to see what they gain"
    elif kernels:
        text = (
            f"latency stays the same: its sparse kernels want {' or '.join(kernels)}, "
            f"the weights are {pattern}; only what is stored or sent compressed gets smaller"
        )
    else:
        text = (
            "latency stays the same: it has no kernels for sparse weights and multiplies the zeros; "
            "only what is stored or sent compressed gets smaller"
        )
    return {
        "target": target.name,
        "sparsity": share,
        "pattern": pattern,
        "kernels": list(kernels),
        "latency": faster,
        "text": text,
    }


def _weights(graph: Graph) -> dict[str, tuple[Array, int]]:
    """Weights by name with the axis of their input channels."""
    found: dict[str, tuple[Array, int]] = {}
    for node in graph.nodes:
        if node.op_type not in _OPS or node.domain or node.inputs[1] is None:
            continue
        value = node.inputs[1]
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
            value = producer.inputs[0]
        data = array(value)
        if data is None or data.ndim < 2 or data.dtype.kind not in "fiu":
            continue
        axis = input_axis(node, data.ndim)
        if node.op_type == "ConvTranspose" and int_attribute(node, "group", 1) > 1:
            # Blocks must not reach over from one group's inputs into the next; sizes are those of one group.
            groups = int_attribute(node, "group", 1)
            data, axis = data.reshape(groups, data.shape[0] // groups, *data.shape[1:]), 1
        found[str(value.name)] = (data, axis)
    return found


def _packed(values: Array, axis: int) -> int | None:
    """Bytes in the sparsest N:M form that a weight has; None where it has none."""
    for kept, block in PATTERNS:
        if fits_blocks(values, kept, block, axis):
            return len(encode_blocks(values, kept, block, axis))
    return None


def _pattern(weights: dict[str, tuple[Array, int]]) -> str:
    """The pattern of all weights that have more than a few zeros."""
    sparse = [(v, axis) for v, axis in weights.values() if (v == 0).mean() >= 0.2]
    for kept, block in PATTERNS:
        if sparse and all(fits_blocks(v, kept, block, axis) for v, axis in sparse):
            return f"{kept}:{block}"
    return "unstructured"
