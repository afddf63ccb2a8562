"""Write normalizations in the one form that an NPU has of them.

    1.  LayerNormalization over the last axes     = over one, of their size      RESHAPE before and behind it
    2.  GroupNormalization(x, groups)             = InstanceNormalization of [batch, groups, rest] without
                                                    parameters, then gamma and beta for each channel
    3.  MeanVarianceNormalization over all pixels = InstanceNormalization without parameters

(Ba et al. 2016, arXiv:1607.06450; Wu and He 2018, arXiv:1803.08494.) An NPU with these kernels rounds once
where a mean, squares and a root round five times.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.decompose_layernorm import scale, shift
from edgekit.passes.edit import float_attribute, int_attribute, is_constant, static_shape
from edgekit.passes.rewrite import Verdict, given, is_float, rewrite_nodes
from edgekit.passes.subgraph import Builder

_OPS = ("LayerNormalization", "GroupNormalization", "MeanVarianceNormalization")
#: What ONNX adds to the deviation in MeanVarianceNormalization.
_TINY = 1e-9


def reshape_norms(graph: Graph) -> Graph:
    """Rewrite every such normalization; results keep their names."""
    words = "wrote {} normalizations over one axis or one group of pixels"
    return rewrite_nodes(graph, "reshape_norms", words, _OPS, _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    shape = static_shape(node.inputs[0])
    if shape is None or not is_float(node.inputs[0]):
        return "it does not compute in float32, or its shape is not known"
    if node.op_type == "MeanVarianceNormalization":
        axes = node.attributes.get("axes")
        chosen = sorted(a % len(shape) for a in (axes.as_ints() if axes is not None else (0, 2, 3)))
        whole = chosen == list(range(2, len(shape))) or (
            shape[0] == 1 and chosen == [0, *range(2, len(shape))]
        )
        return "" if whole and len(shape) > 2 else "it does not normalize over all pixels of a channel"
    if not all(is_constant(v) for v in node.inputs[1:] if v is not None):
        return "its parameters are computed, not constant"
    if node.op_type == "GroupNormalization":
        return ""
    if int_attribute(node, "axis", -1) % len(shape) == len(shape) - 1:
        return None
    read = [o for o in node.outputs[1:] if o.uses() or o.is_graph_output()]
    return f"its statistics '{read[0].name}' are read" if read else ""


def _rewrite(build: Builder, node: ir.Node) -> None:
    x, shape = given(node, 0), static_shape(node.inputs[0]) or ()
    if node.op_type == "LayerNormalization":
        first = int_attribute(node, "axis", -1) % len(shape)
        rows = (*shape[:first], math.prod(shape[first:]))
        constants = [_flat(build, v, rows[-1]) for v in node.inputs[1:] if v is not None]
        flat = _reshape(build, "flat", x, rows)
        epsilon = float_attribute(node, "epsilon", 1e-5)
        y = build.node("LayerNormalization", "norm", flat, *constants, axis=len(rows) - 1, epsilon=epsilon)
        y = _reshape(build, "result", y, shape)
    elif node.op_type == "GroupNormalization":
        groups = int_attribute(node, "num_groups", 1)
        rows = (shape[0], groups, math.prod(shape[1:]) // groups)
        flat = _reshape(build, "groups", x, rows)
        y = _reshape(build, "channels", _instance(build, flat, float_attribute(node, "epsilon", 1e-5)), shape)
        tail = [1] * (len(shape) - 2)
        gamma, beta = (np.asarray(array(node.inputs[i])).ravel() for i in (1, 2))
        # Before opset 21 a group norm has one element for each group.
        gamma, beta = (np.repeat(v, shape[1] // v.size).reshape(-1, *tail) for v in (gamma, beta))
        if (gamma != 1).any():
            y = scale(build, y, build.constant("gamma", gamma))
        if beta.any():
            y = shift(build, y, build.constant("beta", beta))
    else:
        y = _instance(build, x, _TINY)
    build.take(node.outputs[0], y)


def _instance(build: Builder, x: ir.Value, epsilon: float) -> ir.Value:
    channels = (static_shape(x) or ())[1]
    ones, zeros = (
        build.constant("ones", np.ones(channels)),
        build.constant("zeros", np.zeros(channels)),
    )
    return build.node("InstanceNormalization", "norm", x, ones, zeros, epsilon=epsilon)


def _flat(build: Builder, value: ir.Value, size: int) -> ir.Value:
    return build.constant("parameter", np.broadcast_to(np.asarray(array(value)).ravel(), (size,)).copy())


def _reshape(build: Builder, label: str, x: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    if static_shape(x) == shape:
        return x
    return build.node("Reshape", label, x, build.constant(f"{label}_shape", shape, np.int64))
