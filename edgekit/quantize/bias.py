"""Analytic bias correction for weights (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

Rounding a weight shifts the mean of its output channel by ``E[(W' - W) x] = (W' - W) E[x]``. With the mean of every
input channel measured on samples, the shift is known and taken off the bias. Padding is not accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, array
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import Plan, name
from edgekit.quantize.qdq import weight_axis
from edgekit.quantize.qparams import weight_codes, weight_scales
from edgekit.quantize.scheme import Scheme


def correctable(graph: Graph, plan: Plan) -> dict[str, str]:
    """Integer nodes with constant weights and a bias input, and the tensor that each reads."""
    return {
        name(node): str(node.inputs[0].name)
        for node in graph.nodes
        if name(node) in plan.integer_nodes
        and node.op_type in ("Conv", "Gemm")
        and node.inputs[0] is not None
        and array(node.inputs[1]) is not None
    }


def correct_biases(graph: Graph, plan: Plan, scheme: Scheme, means: Mapping[str, Array]) -> Graph:
    """``graph`` with biases that undo the mean shift of quantizing its weights.

    Args:
        graph: The float graph that will be quantized.
        plan: What is quantized.
        scheme: The target's number formats.
        means: Mean of every channel of the tensors that :func:`correctable` names.
    """
    reads = correctable(graph, plan)
    shifts = {}
    for node in graph.nodes:
        weight = array(node.inputs[1]) if name(node) in reads else None
        if weight is not None and reads[name(node)] in means:
            shifts[name(node)] = -_mean_shift(node, weight, scheme, means[reads[name(node)]])
    largest = max((float(np.abs(s).max()) for s in shifts.values()), default=0.0)
    summary = f"{len(shifts)} biases corrected for the rounding of weights, by up to {largest:.3g}"
    return add_to_biases(graph, shifts).with_change(Change("correct_biases", summary))


def _mean_shift(node: ir.Node, weight: Array, scheme: Scheme, mean: Array) -> Array:
    """``(W' - W) E[x]``, shape ``[C_out]``."""
    axis = weight_axis(node, scheme, weight.ndim)
    scales = weight_scales(weight, axis, scheme.weight)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    difference = weight_codes(weight, scales, axis, scheme.weight) * np.reshape(scales, shape) - weight
    if node.op_type == "Gemm":
        return np.asarray(difference @ mean if axis == 0 else mean @ difference)
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    per_group = weight.shape[1]
    taps = difference.reshape(groups, weight.shape[0] // groups, per_group, -1).sum(-1)
    return np.asarray((taps * mean.reshape(groups, 1, per_group)).sum(-1).reshape(-1))


def add_to_biases(graph: Graph, shifts: Mapping[str, Array]) -> Graph:
    """Add a vector to the bias of each named node; a node without a bias gets one."""
    result = graph.copy()
    main = result.model.graph
    for node in list(main):
        if name(node) not in shifts:
            continue
        old_value = node.inputs[2] if len(node.inputs) > 2 else None
        old = array(old_value)
        shift = shifts[name(node)].astype(np.float32)
        data = shift if old is None else (old.reshape(-1) + shift).astype(np.float32)
        if old_value is not None and len(old_value.uses()) == 1:
            main.initializers.pop(str(old_value.name), None)
        label = f"{name(node)}.bias_corrected"
        tensor = ir.tensor(data, name=label)
        value = ir.Value(name=label, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, value)
        main.register_initializer(value)
    return result
