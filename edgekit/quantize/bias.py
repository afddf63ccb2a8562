"""Analytic bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

A quantized node computes ``W' x'`` for the float network's ``W x``, which shifts the mean of its output by

    W' E[x'] - W E[x] = (W' - W) E[x'] + W (E[x'] - E[x]).

With the mean of every input channel measured on samples the shift is known and taken off the bias. ``x'`` is
what the quantized activations in front of the node make of the float output of the weights before them: each
node answers for its own input, so that nothing is corrected twice. Padding is not accounted for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import add_constant
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import MAC_OPS, Plan, name
from edgekit.quantize.probe import channel_means
from edgekit.quantize.qdq import all_weight_scales, weight_axis
from edgekit.quantize.qparams import weight_codes
from edgekit.quantize.scheme import Scheme

#: Marks the tensors of the quantized graph where two graphs run as one.
_SUFFIX = "@quantized"


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


def correct_biases(
    graph: Graph,
    plan: Plan,
    scheme: Scheme,
    means: Mapping[str, Array],
    quantized_means: Mapping[str, Array] | None = None,
    scales: Mapping[str, Array] | None = None,
) -> Graph:
    """``graph`` with biases that undo the mean shift of quantization.

    Args:
        graph: The float graph that will be quantized.
        plan: What is quantized.
        scheme: The target's number formats.
        means: Mean of every channel of the tensors that :func:`correctable` names, ``E[x]``.
        quantized_means: The same of their quantized form, ``E[x']``; when None, only the rounding of the
            weights is corrected.
        scales: What :func:`~edgekit.quantize.qdq.all_weight_scales` finds, where the caller has it already.
    """
    scales = scales or all_weight_scales(graph, scheme)
    reads = correctable(graph, plan)
    shifts = {}
    for node in graph.nodes:
        weight = array(node.inputs[1]) if name(node) in reads else None
        mean = means.get(reads.get(name(node), ""))
        if weight is None or mean is None:
            continue
        seen = mean if quantized_means is None else quantized_means.get(reads[name(node)], mean)
        axis = weight_axis(node, scheme, weight.ndim)
        rounding = _rounded(weight, scales[name(node)], axis, scheme) - weight
        shifts[name(node)] = -(_times(node, rounding, axis, seen) + _times(node, weight, axis, seen - mean))
    largest = max((float(np.abs(s).max()) for s in shifts.values()), default=0.0)
    cause = "weights" if quantized_means is None else "weights and activations"
    summary = f"{len(shifts)} biases corrected for the rounding of {cause}, by up to {largest:.3g}"
    return add_to_biases(graph, shifts).with_change(Change("correct_biases", summary))


def quantized_means(
    graph: Graph, quantized: Graph, plan: Plan, feeds: Iterable[Mapping[str, Array]], *, threads: int = 0
) -> dict[str, Array]:
    """``E[x']`` by the name of ``x``: channel means behind the quantized activations in front of each node.

    Both graphs run as one: the float graph, and the quantized one without its weights, fed with the float
    outputs of the nodes that multiply and accumulate.
    """
    import onnx

    joined, other = graph.to_proto(), quantized.to_proto()
    given = {i.name for i in other.graph.input}
    given.update(o for n in other.graph.node if n.op_type in MAC_OPS for o in n.output)

    def rename(tensor: str) -> str:
        return tensor.removesuffix("_raw") if tensor in given else f"{tensor}{_SUFFIX}" if tensor else ""

    reads: dict[str, str] = {}
    for node in other.graph.node:
        if node.op_type in MAC_OPS:
            reads[node.name] = rename(node.input[0])
            continue
        copy = joined.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{node.name}{_SUFFIX}"
        copy.input[:] = [rename(t) for t in node.input]
        copy.output[:] = [rename(t) for t in node.output]
    for tensor in other.graph.initializer:
        copied = joined.graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = f"{tensor.name}{_SUFFIX}"
    joined_graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(joined)))
    wanted = {tensor: reads[node] for node, tensor in correctable(graph, plan).items() if node in reads}
    found = channel_means(joined_graph, list(dict.fromkeys(wanted.values())), feeds, threads=threads)
    return {tensor: found[t] for tensor, t in wanted.items()}


def _rounded(weight: Array, scales: Array, axis: int | None, scheme: Scheme) -> Array:
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.asarray(weight_codes(weight, scales, axis, scheme.weight) * np.reshape(scales, shape))


def _times(node: ir.Node, weight: Array, axis: int | None, mean: Array) -> Array:
    """``W mean``, shape ``[C_out]``."""
    if node.op_type == "Gemm":
        return np.asarray(weight @ mean if axis == 0 else mean @ weight)
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    per_group = weight.shape[1]
    taps = weight.reshape(groups, weight.shape[0] // groups, per_group, -1).sum(-1)
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
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, add_constant(main, label, data))
    return result
