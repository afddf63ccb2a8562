"""Put a cheaper activation in the place of another. This changes what the network computes.

An NPU runs a Relu for free within the convolution before it, a HardSwish from a table, and a SiLU or a GELU
as several operators or not at all. The network has to be trained for the new activation: distill it from the
original afterwards.

    silu        x sigmoid(x)                 hard_swish  x clip(x/6 + 1/2, 0, 1)
    gelu        x Phi(x)                     gelu_tanh   its form with tanh (arXiv:1606.08415)
    mish        x tanh(log(1 + e^x))         relu6       clip(x, 0, 6)
    elu, leaky_relu, sigmoid                 relu, hard_sigmoid (alpha 1/6, beta 1/2)
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import Change, Graph, Refusal
from edgekit.passes.edit import float_attribute
from edgekit.passes.subgraph import Builder, Rewriter, maker, scalar

_SMOOTH = ("hard_swish", "relu6", "relu")

#: What may stand in for each activation: a function of much the same shape.
REPLACEMENTS: dict[str, tuple[str, ...]] = {
    "silu": (*_SMOOTH, "gelu", "gelu_tanh"),
    "gelu": (*_SMOOTH, "silu", "gelu_tanh"),
    "gelu_tanh": (*_SMOOTH, "silu", "gelu"),
    "mish": (*_SMOOTH, "silu"),
    "hard_swish": ("relu6", "relu", "silu"),
    "elu": ("relu", "relu6", "leaky_relu"),
    "leaky_relu": ("relu", "relu6"),
    "relu6": ("relu",),
    "relu": ("relu6",),
    "sigmoid": ("hard_sigmoid",),
}


def replace_activations(graph: Graph, from_: str, to: str, nodes: Collection[str] | None = None) -> Graph:
    """Replace activations of one kind by those of another; each result keeps its name.

    A SiLU is one activation, named by its Sigmoid or its Mul; its Sigmoid is none on its own.

    Args:
        graph: The graph; GELUs and HardSwishes as single nodes (``fuse_gelu``, ``fuse_hard_swish``).
        from_: The kind to replace, a key of :data:`REPLACEMENTS`.
        to: The kind to put there, one of the values of that key.
        nodes: Names of the nodes to replace; None for all of the kind.

    Raises:
        UsageError: There is no such pair, or a name in ``nodes`` is not that of such an activation.
    """
    if from_ not in REPLACEMENTS:
        raise UsageError(f"no activation called '{from_}' can be replaced", valid=REPLACEMENTS)
    if to not in REPLACEMENTS[from_]:
        raise UsageError(f"'{to}' does not stand in for '{from_}'", valid=REPLACEMENTS[from_])
    result = graph.copy()
    found = [node for node in result.model.graph if _kind(node) == from_]
    _check_names(found, nodes)
    rewriter = Rewriter(result.model)
    replaced: list[dict[str, str]] = []
    refused: list[Refusal] = []
    for node in found:
        if nodes is not None and not _names(node) & set(nodes):
            refused.append(Refusal(str(node.name), "it is not among the named nodes"))
            continue
        replaced.append({"node": str(node.name), "output": str(node.outputs[0].name)})
        source, output = _source(node), node.outputs[0]
        build = rewriter.before(node, str(output.name))
        build.take(output, _BUILD[to](build, source))
    summary = f"replaced {len(replaced)} of {len(found)} {from_} by {to}; the network needs training for it"
    details = {"from": from_, "to": to, "replaced": replaced}
    return result.with_change(Change("replace_activations", summary, tuple(refused), details))


def activations(graph: Graph, kind: str) -> list[frozenset[str]]:
    """The names by which each activation of a kind can be called, in execution order."""
    return [frozenset(_names(node)) for node in graph.nodes if _kind(node) == kind]


def _check_names(found: Collection[ir.Node], nodes: Collection[str] | None) -> None:
    known = {name for node in found for name in _names(node)}
    for name in sorted(nodes or ()):
        if name not in known:
            raise UsageError(
                "is no node with this activation",
                where=f"node '{name}'",
                valid=sorted(str(node.name) for node in found) or ["none in this network"],
            )


def _kind(node: ir.Node) -> str:
    """The activation that a node ends; empty for another operator."""
    if node.domain:
        return ""
    op = node.op_type
    if op == "Mul":
        return "silu" if _gate(node) is not None else ""
    if op == "Sigmoid":
        gates = any(use.node.op_type == "Mul" and _gate(use.node) is node for use in node.outputs[0].uses())
        return "" if gates else "sigmoid"
    if op == "Gelu":
        approximate = node.attributes.get("approximate")
        return "gelu_tanh" if approximate is not None and approximate.as_string() == "tanh" else "gelu"
    if op == "Clip":
        bounds = [scalar(v) for v in node.inputs[1:]]
        return "relu6" if bounds == [0.0, 6.0] else ""
    simple = {
        "Mish": "mish",
        "HardSwish": "hard_swish",
        "Elu": "elu",
        "LeakyRelu": "leaky_relu",
        "Relu": "relu",
    }
    if op == "Elu" and float_attribute(node, "alpha", 1.0) != 1.0:
        return ""
    return simple.get(op, "")


def _gate(product: ir.Node) -> ir.Node | None:
    """The Sigmoid in ``x * Sigmoid(x)``."""
    for index in (0, 1):
        sigmoid = maker(product.inputs[index], "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is product.inputs[1 - index]:
            return sigmoid
    return None


def _names(node: ir.Node) -> set[str]:
    gate = _gate(node) if node.op_type == "Mul" else None
    return {str(node.name)} | ({str(gate.name)} if gate is not None else set())


def _source(node: ir.Node) -> ir.Value:
    gate = _gate(node) if node.op_type == "Mul" else None
    source = (gate or node).inputs[0]
    if source is None:
        raise ValueError(f"{node.name} has no input")
    return source


def _silu(build: Builder, x: ir.Value) -> ir.Value:
    return build.node("Mul", "silu", x, build.node("Sigmoid", "gate", x))


def _relu6(build: Builder, x: ir.Value) -> ir.Value:
    return build.node("Clip", "relu6", x, build.constant("zero", 0), build.constant("six", 6))


_BUILD: dict[str, Callable[[Builder, ir.Value], ir.Value]] = {
    "silu": _silu,
    "relu6": _relu6,
    "relu": lambda build, x: build.node("Relu", "relu", x),
    "hard_swish": lambda build, x: build.node("HardSwish", "hard_swish", x),
    "gelu": lambda build, x: build.node("Gelu", "gelu", x),
    "gelu_tanh": lambda build, x: build.node("Gelu", "gelu", x, approximate="tanh"),
    "leaky_relu": lambda build, x: build.node("LeakyRelu", "leaky_relu", x),
    "hard_sigmoid": lambda build, x: build.node("HardSigmoid", "hard_sigmoid", x, alpha=1 / 6, beta=0.5),
}
