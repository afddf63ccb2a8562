"""Write the expected value of a softmax with learned places as a product and a sum.

Conv(p, w, b) = ReduceSum(p w, channels) + b          p = Softmax over the channels, w of 1x1 with one output

A detector's box distances are such expectations (Li et al. 2020, arXiv:2006.04388, eq. 6). As weights of a
layer the places get 8 bits, half a step of which moves the edge of a box by pixels; as a stored operand of a
multiplication they have the format of the activations. Places that int8 holds exactly (0, 1, 2, …) stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import int_attribute, static_shape
from edgekit.passes.rewrite import Verdict, given, rewrite_nodes
from edgekit.passes.subgraph import Builder

#: Largest code of an int8 weight.
_TOP = 127


def expectations_to_sums(graph: Graph) -> Graph:
    """Replace every such convolution whose weights int8 rounds; outputs keep their names."""
    words = "wrote {} expected values of a softmax as products and sums"
    return rewrite_nodes(graph, "expectations_to_sums", words, ("Conv",), _judge, _rewrite)


def _judge(node: ir.Node) -> Verdict:
    places, shares = array(node.inputs[1]), node.inputs[0]
    made = None if shares is None else shares.producer()
    if places is None or places.shape[0] != 1 or made is None or made.op_type != "Softmax":
        return None
    axes = len(static_shape(shares) or ())
    single = places.size == places.shape[1] and int_attribute(node, "group", 1) == 1
    plain = all(set(node.attributes[k].as_ints()) <= {v} for k, v in _PLAIN.items() if k in node.attributes)
    if not single or not plain or not axes or int_attribute(made, "axis", -1) % axes != 1:
        return None
    return None if _whole(places) else ""


_PLAIN = {"strides": 1, "pads": 0, "dilations": 1}


def _whole(places: np.ndarray[Any, Any]) -> bool:
    """Whether some scale gives each weight a code of its own."""
    largest = np.abs(places).max(initial=1e-10)
    codes = places.ravel() / largest * np.arange(1, _TOP + 1)[:, None]
    return bool((np.abs(codes - np.round(codes)) < 1e-4).all(1).any())


def _rewrite(build: Builder, node: ir.Node) -> None:
    places = array(node.inputs[1])
    assert places is not None  # the judge has seen it
    parts = build.node("Mul", "parts", given(node, 0), build.constant("places", places))
    result = build.node("ReduceSum", "sum", parts, build.constant("axes", [1], np.int64), keepdims=1)
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.any():
        result = build.node("Add", "raised", result, build.constant("bias", bias.reshape(())))
    build.take(node.outputs[0], result)
