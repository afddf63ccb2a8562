"""Write the arithmetic of a GELU as one ``Gelu`` node (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    1.  approximate = "none":  x/2 (1 + erf(x / sqrt 2))
    2.  approximate = "tanh":  x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    3.  com.microsoft  Gelu(x)         = Gelu(x)
                       BiasGelu(x, b)  = Gelu(x + b)
                       FastGelu(x, b)  = Gelu(x + b), approximate = "tanh"
                       QuickGelu(x)    = x sigmoid(alpha x), which stays in this form

in whatever order a framework multiplies and adds. Integer targets run a GELU from a table of 256 results.
They have no erf and no power, and where they had them, eight roundings in a row would cost accuracy.

The result keeps its name. A group whose inner tensors something else reads is left alone.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal
from edgekit.passes.edit import float_attribute
from edgekit.passes.fuse_gate import find_gate
from edgekit.passes.polynomial import Terms
from edgekit.passes.subgraph import Rewriter

_ERF: Terms = {(1,): math.sqrt(0.5)}
_TANH: Terms = {(1,): math.sqrt(2 / math.pi), (3,): 0.044715 * math.sqrt(2 / math.pi)}
_PRODUCT: Terms = {(1, 0): 0.5, (1, 1): 0.5}
_MICROSOFT = ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")


def fuse_gelu(graph: Graph) -> Graph:
    """Replace every GELU written with Erf or Tanh, and those of ONNX Runtime, by the standard operator."""
    result = graph.copy()
    rewriter = Rewriter(result.model)
    fused: list[str] = []
    refused: list[Refusal] = []
    for node in list(result.model.graph):
        if node.domain == "com.microsoft" and node.op_type in _MICROSOFT:
            fused.append(str(node.outputs[0].name))
            _standard(rewriter, node)
        elif not node.domain and node.op_type in ("Erf", "Tanh"):
            reason = _fuse(rewriter, node, fused)
            # A Tanh alone is an activation of its own; an Erf that stays is what few targets run.
            if reason and (node.op_type == "Erf" or "read" in reason):
                refused.append(Refusal(str(node.name), reason))
    if all(node.domain != "com.microsoft" for node in result.model.graph):
        result.model.opset_imports.pop("com.microsoft", None)
    summary = f"wrote {len(fused)} GELUs as one node each"
    return result.with_change(Change("fuse_gelu", summary, tuple(refused), {"fused": fused}))


def _fuse(rewriter: Rewriter, node: ir.Node, fused: list[str]) -> str:
    """Replace the GELU around an Erf or Tanh; returns why not."""
    exact = node.op_type == "Erf"
    gate = find_gate(node, _ERF if exact else _TANH, _PRODUCT)
    if gate is None:
        return "what surrounds it is no GELU"
    if gate.outside:
        return f"'{gate.outside}' inside the GELU is also read elsewhere"
    last = gate.result.producer()
    if last is None:
        raise ValueError("a result without a node")
    build = rewriter.before(last, str(gate.result.name))
    attributes = {} if exact else {"approximate": "tanh"}
    fused.append(str(gate.result.name))
    build.take(gate.result, build.node("Gelu", "gelu", gate.source, **attributes))
    return ""


def _standard(rewriter: Rewriter, node: ir.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        raise ValueError(f"{node.name} has no input")
    build = rewriter.before(node, str(result.name))
    if node.op_type == "QuickGelu":
        alpha = build.constant("alpha", float_attribute(node, "alpha", 1.702))
        gate = build.node("Sigmoid", "gate", build.node("Mul", "scaled", source, alpha))
        build.take(result, build.node("Mul", "gelu", source, gate))
        return
    bias = node.inputs[1] if len(node.inputs) > 1 else None
    if bias is not None:
        source = build.node("Add", "biased", source, bias)
    attributes = {"approximate": "tanh"} if node.op_type == "FastGelu" else {}
    build.take(result, build.node("Gelu", "gelu", source, **attributes))
