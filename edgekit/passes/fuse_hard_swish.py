"""Write the arithmetic of a HardSwish as one node (Howard et al. 2019, MobileNetV3, arXiv:1905.02244).

    1.  HardSwish(x) = x/6 clip(x + 3, 0, 6)
    2.               = x/s clip(s x/6 + s/2, 0, s)    for any s; s = 1 is x HardSigmoid(x) written out
    3.               = x HardSigmoid(x),              alpha = 1/6, beta = 1/2

in whatever order a framework multiplies and adds. TFLite has an integer kernel of its own for it, with one
rounding instead of three. The result keeps its name. A group whose inner tensors something else reads is left
alone.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Change, Graph, Refusal
from edgekit.passes.edit import float_attribute
from edgekit.passes.fuse_gate import Gate, find_gate
from edgekit.passes.subgraph import Rewriter, scalar


def fuse_hard_swish(graph: Graph) -> Graph:
    """Replace every HardSwish written with Clip or HardSigmoid by the operator."""
    result = graph.copy()
    rewriter = Rewriter(result.model)
    fused: list[str] = []
    refused: list[Refusal] = []
    for node in [n for n in result.model.graph if not n.domain and n.op_type in ("Clip", "HardSigmoid")]:
        gate = _gate(node)
        if gate is None:
            continue
        if gate.outside:
            reason = f"'{gate.outside}' inside the HardSwish is also read elsewhere"
            refused.append(Refusal(str(node.name), reason))
            continue
        last = gate.result.producer()
        if last is None:
            raise ValueError("a result without a node")
        build = rewriter.before(last, str(gate.result.name))
        fused.append(str(gate.result.name))
        build.take(gate.result, build.node("HardSwish", "hard_swish", gate.source))
    summary = f"wrote {len(fused)} HardSwishes as one node each"
    return result.with_change(Change("fuse_hard_swish", summary, tuple(refused), {"fused": fused}))


def _gate(node: ir.Node) -> Gate | None:
    if node.op_type == "HardSigmoid":
        alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
        if abs(alpha - 1 / 6) > 1e-4 or abs(beta - 0.5) > 1e-4:
            return None
        return find_gate(node, {(1,): 1.0}, {(1, 1): 1.0})
    low, high = (scalar(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    if low != 0 or high is None or high <= 0:
        return None
    return find_gate(node, {(0,): high / 2, (1,): high / 6}, {(1, 1): 1 / high})
