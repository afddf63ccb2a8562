"""Write HardSigmoid with the operators that TFLite has.

    HardSigmoid(x) = clip(alpha x + beta, 0, 1)
    1.  alpha = 1/6, beta = 1/2    = clip(x + 3, 0, 6) (1/6)      ADD with RELU6, MUL
    2.  otherwise                  = clip(x alpha + beta, 0, 1)   MUL, ADD with RELU_0_TO_1

Run ``fuse_hard_swish`` before it, which wants the operator whole.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph import Change, Graph
from edgekit.passes.edit import float_attribute
from edgekit.passes.subgraph import Builder, Rewriter


def decompose_hard_sigmoid(graph: Graph) -> Graph:
    """Replace every HardSigmoid; its output keeps its name."""
    result = graph.copy()
    rewriter = Rewriter(result.model)
    done: list[str] = []
    for node in [n for n in result.model.graph if n.op_type == "HardSigmoid" and not n.domain]:
        x, output = node.inputs[0], node.outputs[0]
        if x is None:
            raise ValueError(f"{node.name} has no input")
        done.append(str(output.name))
        build = rewriter.before(node, str(output.name))
        alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
        build.take(output, _sixth(build, x) if _is_sixth(alpha, beta) else _general(build, x, alpha, beta))
    summary = f"wrote {len(done)} HardSigmoids as sums, bounds and products"
    return result.with_change(Change("decompose_hard_sigmoid", summary, details={"decomposed": done}))


def _is_sixth(alpha: float, beta: float) -> bool:
    return abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6


def _sixth(build: Builder, x: ir.Value) -> ir.Value:
    raised = build.node("Add", "raised", x, build.constant("three", 3))
    bound = build.node("Clip", "bound", raised, build.constant("zero", 0), build.constant("six", 6))
    return build.node("Mul", "sixth", bound, build.constant("factor", 1 / 6))


def _general(build: Builder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    steep = build.node("Mul", "steep", x, build.constant("alpha", alpha))
    raised = build.node("Add", "raised", steep, build.constant("beta", beta))
    return build.node("Clip", "bound", raised, build.constant("zero", 0), build.constant("one", 1))
