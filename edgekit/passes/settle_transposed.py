"""Write ConvTranspose without the attributes that kernels refuse or get wrong.

1.  dilations   the kernel with zeros between its elements
2.  groups      one ConvTranspose for each group of channels, joined; a depthwise one stays
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import int_attribute, is_constant, static_shape
from edgekit.passes.pick import pick
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder

#: More layers than this cost more than a network that is left as it is.
_MOST_GROUPS = 16


def settle_transposed(graph: Graph) -> Graph:
    """Rewrite every such ConvTranspose; results keep their names."""
    words = "wrote {} transposed convolutions without groups and dilations"
    return rewrite_nodes(graph, "settle_transposed", words, ("ConvTranspose",), _judge, _rewrite)


def _dilations(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("dilations")
    return tuple(attribute.as_ints()) if attribute is not None else ()


def _is_grouped(node: ir.Node) -> bool:
    group = int_attribute(node, "group", 1)
    return group > 1 and (static_shape(node.inputs[1]) or (0, 0))[:2] != (group, 1)


def _judge(node: ir.Node) -> Verdict:
    dilated = any(d != 1 for d in _dilations(node))
    if not dilated and not _is_grouped(node):
        return None
    if static_shape(node.inputs[0]) is None or not is_float(node.inputs[0]):
        return "it does not compute in float32, or its shape is not known"
    if not all(is_constant(v) for v in node.inputs[1:] if v is not None):
        return "its weights are computed, not stored"
    if _is_grouped(node) and int_attribute(node, "group", 1) > _MOST_GROUPS:
        return f"it has more than {_MOST_GROUPS} groups"
    return ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x, group = given(node, 0), int_attribute(node, "group", 1)
    weights = spread(np.asarray(array(node.inputs[1])), _dilations(node))
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    kept: dict[str, Any] = {
        name: a.value for name, a in node.attributes.items() if name not in ("dilations", "kernel_shape")
    }
    kept["kernel_shape"] = list(weights.shape[2:])
    if not _is_grouped(node):
        constants = [build.constant("weights", weights)]
        constants += [build.constant("bias", bias)] if bias is not None else []
        build.take(node.outputs[0], build.node("ConvTranspose", "layer", x, *constants, **kept))
        return
    kept["group"] = 1
    channels, width = weights.shape[0] // group, weights.shape[1]
    parts = []
    for index in range(group):
        rows = range(index * channels, (index + 1) * channels)
        constants = [build.constant("weights", weights[rows.start : rows.stop])]
        if bias is not None:
            constants.append(build.constant("bias", bias[index * width : (index + 1) * width]))
        parts.append(build.node("ConvTranspose", "layer", pick(build, x, 1, rows), *constants, **kept))
    build.take(node.outputs[0], build.node("Concat", "joined", *parts, axis=1))


def spread(weights: np.ndarray[Any, Any], dilations: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """``weights``, whose kernel has its elements ``dilations`` apart, with zeros between them."""
    if all(d == 1 for d in dilations):
        return weights
    sizes = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilations, strict=True)]
    result = np.zeros((*weights.shape[:2], *sizes), weights.dtype)
    result[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weights
    return result
