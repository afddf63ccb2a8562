"""Fold BatchNormalization into the linear layer before it.

    y = gamma (x - mean) / sqrt(var + eps) + beta = s x + (beta - s mean)
                                                    with s = gamma / sqrt(var + eps), per channel

    Conv, ConvTranspose  x = W * a + b              →  W' = s W,  b' = s b + beta - s mean
    Gemm                 x = alpha a W + omega b    →  W' = s W,  b' = s omega b + beta - s mean,  omega' = 1

``s`` scales the output channels of W: axis 0 of a Conv; within each group axis 1 of a ConvTranspose, whose
weight is (C_in, C_out / groups, …); axis 0 or 1 of a Gemm with and without ``transB``. Computed in float64,
stored in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import (
    Names,
    add_constant,
    bypass,
    float_attribute,
    int_attribute,
    is_constant,
    set_constant,
)

_LINEAR = ("Conv", "ConvTranspose", "Gemm")
_Array = np.ndarray[Any, Any]


def fold_batchnorm(graph: Graph) -> Graph:
    """Fold each BatchNormalization right behind a Conv, ConvTranspose or Gemm with constant weights."""
    result = graph.copy()
    names = Names(result.model.graph)
    folded, refused = [], []
    for node in list(result.model.graph):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        reason = _obstacle(node)
        if reason:
            refused.append(Refusal(str(node.name), reason))
            continue
        folded.append(str(node.name))
        _fold(result.model.graph, node, names)
    summary = f"folded {len(folded)} of {len(folded) + len(refused)} batch normalizations"
    return result.with_change(Change("fold_batchnorm", summary, tuple(refused), {"folded": folded}))


def _obstacle(node: ir.Node) -> str:
    """Why this BatchNormalization has to stay; empty if it need not."""
    source = node.inputs[0]
    linear = source.producer() if source is not None else None
    if source is None or linear is None or linear.domain or linear.op_type not in _LINEAR:
        what = "an input" if linear is None else linear.op_type
        return f"it follows {what}, not a Conv, ConvTranspose or Gemm"
    if len(source.uses()) > 1:
        return f"'{source.name}' is also used by {len(source.uses()) - 1} other node(s)"
    if source.is_graph_output():
        return f"'{source.name}' is an output of the model"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]) or int_attribute(
        node, "training_mode", 0
    ):
        return "it is in training mode"
    if not all(is_constant(v) for v in node.inputs[1:]):
        return "its statistics are computed, not constant"
    weight, bias = linear.inputs[1], _bias(linear)
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        return f"the weights of '{linear.name}' are computed, not constant"
    variance = array(node.inputs[4])
    if variance is None or (variance + float_attribute(node, "epsilon", 1e-5) <= 0).any():
        return "a variance is not above zero"
    return ""


def _fold(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    linear = node.inputs[0].producer()  # type: ignore[union-attr]  # _obstacle has seen it
    if linear is None:
        raise ValueError("no layer to fold into")
    gamma, beta, mean, variance = (_exact(v) for v in node.inputs[1:5])
    scale = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    weight, bias = linear.inputs[1], _bias(linear)
    if bias is not None and not _exact(bias).any():
        # The zeros that exporters put in for a missing bias; the real one is named after its layer.
        linear.replace_input_with(2, None)
        bias = None
    shift = np.zeros_like(scale) if bias is None else _exact(bias)
    if linear.op_type == "Gemm":
        shift = shift * float_attribute(linear, "beta", 1.0)
        linear.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    shift = scale * shift + beta - scale * mean
    name = str(weight.name) if weight is not None else ""
    stem = name.removesuffix(".weight") + ".bias"
    _store(graph, linear, 1, _scaled(linear, _exact(weight), scale), names, name)
    _store(graph, linear, 2, shift, names, str(bias.name) if bias is not None else stem)
    # The layer now makes what the normalization made, so it takes that name, by which layers are compared.
    bypass(linear.outputs[0], node.outputs[0], take_name=True)


def _scaled(linear: ir.Node, weight: _Array, scale: _Array) -> _Array:
    if linear.op_type == "Conv" or (linear.op_type == "Gemm" and int_attribute(linear, "transB", 0)):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if linear.op_type == "Gemm":
        return weight * scale
    groups = int_attribute(linear, "group", 1)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (split * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _store(graph: ir.Graph, node: ir.Node, index: int, values: _Array, names: Names, name: str) -> None:
    """Put a constant at an input of a node; one that other nodes share is left to them."""
    present = node.inputs[index] if len(node.inputs) > index else None
    values = values.astype(np.float32)
    if present is not None and len(present.uses()) == 1 and not present.is_graph_output():
        set_constant(present, values)
        return
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_constant(graph, names.fresh(name), values))


def _bias(linear: ir.Node) -> ir.Value | None:
    return linear.inputs[2] if len(linear.inputs) > 2 else None


def _exact(value: ir.Value | None) -> _Array:
    found = array(value)
    if found is None:
        raise ValueError("not a constant")
    return found.astype(np.float64)
