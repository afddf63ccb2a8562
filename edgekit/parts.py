"""Cutting a QDQ graph into what an integer runtime runs and the float arithmetic around it.

1. The *decoder* holds the nodes from which no QuantizeLinear can be reached: arithmetic on the network's
   results that stays in float on purpose. It reads what the body dequantizes.
2. The *front* holds the nodes that nothing quantized feeds: casts and masks made from the graph's inputs. Its
   inputs are those of the graph; what the decoder needs of it, the decoder computes again.
3. The *body* is the rest. Its edges are QuantizeLinear and DequantizeLinear nodes.
4. A node of the body that computes in float, or that the runtime has no kernel for, moves out with all that
   is behind it, or all that is before it, where no stored weights move along; otherwise it is refused.

    x ──► front ──► [Q ─ codes ─ DQ] ──► decoder ──► y
                          body
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.quantize.plan import MAC_OPS
from edgekit.target import LeftNode

#: Tells whether a node can do what the question is about.
Test = Callable[[ir.Node], bool]
#: The node whose kernel computes an activation too, or None.
Absorber = Callable[[ir.Node], ir.Node | None]

_REMEDY = "give its operator a rule in the scheme, or replace it"
_NO_KERNEL = "what runs the integer body has no kernel for it"


@dataclass(frozen=True)
class Parts:
    """A graph in up to three parts.

    Attributes:
        body: What the integer runtime runs.
        front: Nodes before it, which take all inputs of the graph; None where there are none.
        decoder: Nodes behind it; its inputs are outputs of the body or inputs of the graph, its outputs those
            of the graph that the body does not have. None where there are none.
    """

    body: Graph
    front: Graph | None
    decoder: Graph | None


class CutError(ModelError):
    """Nodes that cannot run in the body stand between nodes that hold weights.

    Attributes:
        nodes: All of them, in graph order.
    """

    def __init__(self, nodes: tuple[LeftNode, ...]) -> None:
        self.nodes = nodes
        listed = (f"{n.op} '{n.node}': {n.reason} ({n.remedy})" for n in nodes)
        super().__init__("float nodes stand between integer ones: " + "; ".join(listed))


def cut(graph: Graph, *, runs: Test | None = None, absorbed: Absorber | None = None) -> Parts:
    """Cut a QDQ graph at its float parts.

    Args:
        graph: A QDQ graph.
        runs: Whether the runtime of the body has a kernel for a node other than QuantizeLinear and
            DequantizeLinear. Without it the body holds every node that computes on codes. With it the body
            also takes nodes at its end that turn codes into integers (ArgMax).
        absorbed: The node whose kernel computes an activation too; by default a Relu or Clip belongs to the
            node before it where nothing is quantized between them.

    Raises:
        ModelError: Nothing in the graph is quantized.
        CutError: Nodes that the body may not hold stand between nodes with weights; all of them are named.
    """
    nodes = list(graph.model.graph)
    if not any(is_op(node, "QuantizeLinear") for node in nodes):
        raise ModelError("the network is not quantized", hint="Quantize it first: edgekit quantize")
    tail = behind_codes(nodes)
    front = before_codes(nodes, tail)
    absorbed = absorbed or clipped
    if runs is not None:
        for node in nodes:
            if node in tail and runs(node) and _ends_codes(node, tail):
                tail.discard(node)
    _move_out(nodes, front, tail, runs, absorbed)
    return divide(graph, front, tail)


def divide(graph: Graph, front: AbstractSet[ir.Node], tail: AbstractSet[ir.Node]) -> Parts:
    """The parts of a graph whose nodes have been told apart.

    Args:
        graph: The graph.
        front: Nodes before the body; what they read is made by others of them, or an input of the graph.
        tail: Nodes behind it; who reads what they make is one of them.
    """
    whole = graph.model.graph
    body = [node for node in whole if node not in tail and node not in front]
    ends, starts = _ends(body, tail), _starts(whole, body)
    computed = [value for value in starts if not value.is_graph_input()]
    results = [value for value in whole.outputs if value not in set(ends)]
    return Parts(
        _part(graph, starts, ends),
        _part(graph, whole.inputs, computed) if computed else None,
        _part(graph, _sources(results, frozenset(ends)), results) if results else None,
    )


def behind_codes(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes, other than DequantizeLinear, from which no QuantizeLinear can be reached."""
    reaching: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [u for v in node.outputs for u in v.consumers()]
        if is_op(node, "QuantizeLinear") or any(r in reaching for r in readers):
            reaching.add(node)
    return {n for n in nodes if n not in reaching and not is_op(n, "DequantizeLinear")}


def before_codes(
    nodes: Sequence[ir.Node], tail: AbstractSet[ir.Node], *, but: Test | None = None
) -> set[ir.Node]:
    """Nodes that nothing quantized feeds, without those that read stored codes.

    Args:
        nodes: All nodes, in execution order.
        tail: Those behind the body.
        but: Which of them the body takes all the same.
    """
    fed: set[ir.Node] = set()
    found = set()
    for node in nodes:
        makers = [v.producer() for v in node.inputs if v is not None]
        if is_op(node, "DequantizeLinear") and is_stored(node.outputs[0]):
            continue
        if is_op(node, "QuantizeLinear", "DequantizeLinear") or any(m in fed for m in makers):
            fed.add(node)
        elif node not in tail and not (but is not None and but(node)):
            found.add(node)
    # What reads a stored tensor through DequantizeLinear and is not fed is integer work on an input.
    return {n for n in found if not any(v is not None and is_coded(v) for v in n.inputs)}


def float_rule(node: ir.Node, absorbed: Absorber) -> str:
    """Why a node does not compute on codes alone; empty where it does.

    Its float inputs have to come out of DequantizeLinear or be stored, its float outputs have to go into
    QuantizeLinear, by way of the activation that it absorbs where there is one.
    """
    if absorbed(node) is not None:
        return ""
    for value in node.outputs:
        if value.dtype != ir.DataType.FLOAT or not (value.uses() or value.is_graph_output()):
            continue
        activation = next((u for u in value.consumers() if absorbed(u) is node), None)
        written = activation.outputs[0] if activation is not None and quantizer(value) is None else value
        if quantizer(written) is None:
            return f"its output '{value.name}' is not quantized"
    for read in node.inputs:
        if read is None or read.dtype != ir.DataType.FLOAT or is_stored(read):
            continue
        if not is_coded(read) and quantizer(read) is None:
            return f"its input '{read.name}' is not quantized"
    return ""


def _read_in_float(node: ir.Node, absorbed: Absorber) -> str:
    """Why a node makes floats besides its codes; empty where it makes none."""
    for value in node.outputs:
        if value.dtype != ir.DataType.FLOAT or is_coded(value):
            continue
        others = [u for u in value.consumers() if not is_op(u, "QuantizeLinear") and absorbed(u) is not node]
        if others:
            return f"{others[0].op_type} '{others[0].name}' reads its output '{value.name}' in float"
        if value.is_graph_output():
            return f"its output '{value.name}' leaves the network in float"
    return ""


def clipped(node: ir.Node) -> ir.Node | None:
    """The node whose output a Relu, or a Clip with stored bounds, alone reads, not quantized before it."""
    if not is_op(node, "Relu", "Clip") or not all(v is None or is_stored(v) for v in node.inputs[1:]):
        return None
    value = node.inputs[0]
    if value is None or value.is_graph_output() or len(value.uses()) != 1 or is_coded(value):
        return None
    return value.producer()


def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Whether a node is one of ``ops`` of the standard domain."""
    return node is not None and node.op_type in ops and node.domain in ("", "ai.onnx")


def is_coded(value: ir.Value) -> bool:
    """Whether a tensor comes out of DequantizeLinear."""
    return is_op(value.producer(), "DequantizeLinear")


def is_stored(value: ir.Value) -> bool:
    """Whether a tensor is a constant, or stored codes behind DequantizeLinear."""
    if array(value) is not None:
        return True
    node = value.producer()
    return node is not None and is_op(node, "DequantizeLinear") and array(node.inputs[0]) is not None


def quantizer(value: ir.Value) -> ir.Node | None:
    """The first QuantizeLinear that reads a tensor."""
    return next((u for u in value.consumers() if is_op(u, "QuantizeLinear")), None)


def _ends_codes(node: ir.Node, tail: AbstractSet[ir.Node]) -> bool:
    """Whether a node of the tail reads nothing but codes of the body and makes no floats of them."""
    computed = [v for v in node.inputs if v is not None and not is_stored(v)]
    return (
        bool(computed)
        and all(is_coded(v) and v.producer() not in tail for v in computed)
        and all(v.dtype is not None and not v.dtype.is_floating_point() for v in node.outputs)
    )


def _move_out(
    nodes: Sequence[ir.Node],
    front: set[ir.Node],
    tail: set[ir.Node],
    runs: Test | None,
    absorbed: Absorber,
) -> None:
    """Case 4: add to ``front`` and ``tail`` what the body may not hold.

    A tie goes to the tail; only what has weights behind it goes to the front, so what is before it does too.
    """
    before = {n: _holds_weights(_closure(n, _makers)) for n in nodes}
    between = []
    for node in nodes:
        if node in front or node in tail or is_op(node, "QuantizeLinear", "DequantizeLinear"):
            continue
        rule = float_rule(node, absorbed) or _read_in_float(node, absorbed)
        lacks = runs is not None and not runs(node)
        if not rule and not lacks:
            continue
        behind = _closure(node, _readers)
        if not _holds_weights(behind):
            tail |= behind
        elif not before[node]:
            front |= {n for n in _closure(node, _makers) if not is_op(n, "DequantizeLinear")}
        else:
            between.append(LeftNode(str(node.name), node.op_type, rule or _NO_KERNEL, _REMEDY))
    if between:
        raise CutError(tuple(between))
    # Codes that the body needs of the front it takes as codes, and dequantizes them again.
    front |= {
        n
        for n in nodes
        if is_op(n, "DequantizeLinear") and (readers := _readers(n)) and front.issuperset(readers)
    }


def _closure(node: ir.Node, step: Callable[[ir.Node], Iterable[ir.Node]]) -> set[ir.Node]:
    """A node and all that ``step`` leads to from it."""
    found, waiting = {node}, [node]
    while waiting:
        for other in step(waiting.pop()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _makers(node: ir.Node) -> list[ir.Node]:
    made = (v.producer() for v in node.inputs if v is not None)
    return [m for m in made if m is not None]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [u for v in node.outputs for u in v.consumers()]


def _holds_weights(nodes: Iterable[ir.Node]) -> bool:
    return any(
        is_op(n, *MAC_OPS) and len(n.inputs) > 1 and (w := n.inputs[1]) is not None and is_stored(w)
        for n in nodes
    )


def _ends(body: Sequence[ir.Node], tail: AbstractSet[ir.Node]) -> list[ir.Value]:
    """Outputs of the body: what the tail reads and what leaves the graph, in graph order."""
    return [
        v
        for node in body
        for v in node.outputs
        if v.is_graph_output() or (any(r in tail for r in v.consumers()) and not is_stored(v))
    ]


def _starts(whole: ir.Graph, body: Sequence[ir.Node]) -> list[ir.Value]:
    inside = set(body)
    found = {
        v
        for node in body
        for v in node.inputs
        if v is not None and not v.is_initializer() and v.producer() not in inside
    }
    inputs = [v for v in whole.inputs if v in found]
    return inputs + [v for node in whole for v in node.outputs if v in found]


def _sources(values: Iterable[ir.Value], known: frozenset[ir.Value]) -> list[ir.Value]:
    """What ``values`` are computed from: ``known`` tensors and inputs of the graph."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    waiting: list[ir.Value] = list(values)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in known or value.is_graph_input():
            found[value] = None
        elif (node := value.producer()) is not None:
            waiting.extend(source for source in reversed(node.inputs) if source is not None)
    return list(found)


def _part(graph: Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Graph:
    """The nodes between tensors of ``graph``, as a graph of their own."""
    from onnx_ir import convenience

    part = convenience.extract(graph.model.graph, list(inputs), list(outputs))
    model = ir.Model(part, ir_version=graph.model.ir_version)
    return Graph(model, graph.history)
