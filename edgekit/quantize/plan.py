"""Which tensors are quantized, which share a scale, and why the others stay in float.

A node runs on integers when

1. the scheme has a rule for its op type and it computes in float32;
2. it is not in the *tail*: the arithmetic between the last multiply-accumulate nodes and the graph's outputs.
   Its results leave the network in float anyway, so 8 bits there cost accuracy and win next to nothing. A
   node with at most ``FEW_WEIGHTS`` weights is arithmetic too: a detector's expected value over box bins is
   written as a Conv. Where the scheme has an integer tail, the tail's tensors are raised instead, up from
   what the last multiply-accumulate nodes write, and rules 4 and 5 do not hold;
3. none of its activations has been raised above the scheme's activation format, unless the scheme raises to
   an integer format that the op has a kernel for: then the node is *wide* and runs in that format. Nodes that
   only move values carry a raised tensor on as it is;
4. it is not elementwise arithmetic among float neighbours, where conversions would cost more than they win;
5. a node that only moves values (Reshape, MaxPool, …) follows its readers: integer when one of them is,
   unless what it moves is an input of the graph that arrives in float and is quantized behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.quantize.scheme import Format, Scheme

#: Ops that multiply and accumulate; they carry a network's cost.
MAC_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
#: Weights up to which a node that multiplies and accumulates can belong to the tail.
FEW_WEIGHTS = 32
#: Positions of the inputs that carry values; None is all. The first for every other op: what follows are
#: shapes, indices, bounds, or weights.
_VALUES: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Concat", "Max", "Min")),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "PRelu", "Pow", "GridSample"), (0, 1)),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"), (0, 1)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), (0, 2)),
    "Where": (1, 2),
}
_COMPARES = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"})
#: Their second input scales each channel, their third is added: stored weights of another kind.
NORMS = frozenset({"LayerNormalization", "InstanceNormalization"})


@dataclass(frozen=True)
class Plan:
    """Where quantization happens in one graph.

    Attributes:
        integer_nodes: Names of the nodes that run on integers.
        tensors: Quantized activations in graph order.
        groups: For every quantized activation the name of its same-scale group (its first member).
        sources: Quantized activations that are computed, not moved from another one; their ranges are needed.
        constants: Constant operands, other than weights and biases (also added ones), of integer nodes.
        absorbed: Nodes whose activation follows in the same kernel: node name to activation node name.
        float_nodes: Name of every node left in float, with the reason.
        wide_nodes: The integer nodes that run in the scheme's raised format.
        formats: The formats that each quantized activation is needed in, that of its producer first; the key
            is missing where the scheme's activation format is all.
    """

    integer_nodes: frozenset[str]
    tensors: tuple[str, ...]
    groups: dict[str, str]
    sources: tuple[str, ...]
    constants: tuple[str, ...]
    absorbed: dict[str, str]
    float_nodes: dict[str, str]
    wide_nodes: frozenset[str] = frozenset()
    formats: Mapping[str, tuple[Format, ...]] = field(default_factory=dict)

    def members(self, group: str) -> tuple[str, ...]:
        return tuple(t for t in self.tensors if self.groups[t] == group)


def make_plan(
    graph: Graph, scheme: Scheme, *, raised: Collection[str] = (), apart: Collection[str] = ()
) -> Plan:
    """Decide what is quantized.

    Args:
        graph: A captured float graph.
        scheme: The target's number formats.
        raised: Activations to keep above 8 bits.
        apart: Names of Concat nodes whose inputs keep scales of their own; those that join an absorbed
            activation with something else always do.
    """
    return _Planner(graph, scheme, frozenset(raised), frozenset(apart)).plan()


class _Planner:
    def __init__(self, graph: Graph, scheme: Scheme, raised: frozenset[str], apart: frozenset[str]) -> None:
        self.nodes = list(graph.nodes)
        self.scheme = scheme
        self.tail = tail_nodes(self.nodes)
        self.raised = self._carried(raised | self._raised_tail())
        self.apart = apart
        self.integer: set[str] = set()
        self.float_nodes: dict[str, str] = {}
        self.absorbed: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        for node in self.nodes:
            activation = absorbed_activation(node, scheme)
            if activation is not None and name(node) not in self.owners:  # what is absorbed absorbs nothing
                self.absorbed[name(node)] = name(activation)
                self.owners[name(activation)] = name(node)
        self.activations = set(self.owners)
        self.moved_inputs = moved_inputs(graph, scheme)

    def plan(self) -> Plan:
        for node in self.nodes:
            if name(node) in self.activations:
                continue
            reason = self._float_reason(node)
            if reason:
                self.float_nodes[name(node)] = reason
            else:
                self.integer.add(name(node))
        while self.scheme.tail == "float" and (self._leave_movers() or self._leave_lonely()):
            pass
        for node in self.nodes:
            if name(node) in self.activations:
                owner = self.owners[name(node)]
                if owner in self.integer:
                    self.integer.add(name(node))
                else:
                    self.float_nodes[name(node)] = self.float_nodes[owner]
        self.apart |= self._mixed_joins()
        tensors, constants = self._tensors()
        moved = {v for n in self.nodes if self._moves(n) and name(n) not in self.apart for v in outputs(n)}
        wide = self._wide()
        return Plan(
            integer_nodes=frozenset(self.integer),
            tensors=tensors,
            groups=self._groups(tensors),
            sources=tuple(t for t in tensors if t not in moved),
            constants=constants,
            absorbed={k: v for k, v in self.absorbed.items() if k in self.integer},
            float_nodes=self.float_nodes,
            wide_nodes=wide,
            formats=self._formats(tensors, wide),
        )

    def _raised_tail(self) -> frozenset[str]:
        """What an integer tail computes with. What it only moves keeps the codes that it has."""
        if self.scheme.tail == "float" or self.scheme.wide is None:
            return frozenset()
        found: set[str] = set()
        for node in self.nodes:
            rule = self.scheme.ops.get(node.op_type)
            if name(node) in self.tail and rule is not None and not rule.moves:
                found.update((*inputs(node), *outputs(node)))
        return frozenset(found)

    def _carried(self, raised: frozenset[str]) -> frozenset[str]:
        """Raised tensors with those that they share values with, where raised ones stay integer."""
        if self.scheme.wide is None or not raised:
            return raised
        found = set(raised)
        movers = [n for n in self.nodes if n.op_type in self.scheme.ops and self.scheme.ops[n.op_type].moves]
        before = 0
        while len(found) > before:
            before = len(found)
            for node in movers:
                touched = {*inputs(node), *outputs(node)}
                if touched & found:
                    found |= touched
        return frozenset(found)

    def _touched(self, node: ir.Node) -> list[str]:
        """The activations that a node's kernel reads and writes."""
        return [*inputs(node), *outputs(self._activation_of(node) or node)]

    def _wide(self) -> frozenset[str]:
        """The integer nodes that run in the raised format, with the activations that they absorb."""
        if self.scheme.wide is None:
            return frozenset()
        found = {
            name(node)
            for node in self.nodes
            if name(node) in self.integer - self.activations
            and self.scheme.ops[node.op_type].wide
            and any(t in self.raised for t in self._touched(node))
        }
        return frozenset(found | {self.absorbed[node] for node in found if node in self.absorbed})

    def _formats(self, tensors: tuple[str, ...], wide: frozenset[str]) -> dict[str, tuple[Format, ...]]:
        if self.scheme.wide is None or not wide:
            return {}
        needed: dict[str, dict[Format, None]] = {t: {} for t in tensors}
        for written in (True, False):
            for node in self.nodes:
                if name(node) not in self.integer:
                    continue
                for tensor in outputs(node) if written else inputs(node):
                    if tensor in needed:
                        form = self.scheme.wide if name(node) in wide else self.scheme.activation
                        needed[tensor][form] = None
        return {t: tuple(forms) for t, forms in needed.items() if self.scheme.wide in forms}

    def _float_reason(self, node: ir.Node) -> str:
        rule = self.scheme.ops.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            return f"the target has no integer kernel for {node.op_type}"
        if self._looks_up(node):
            return "" if node.outputs[0].dtype == ir.DataType.FLOAT else "it does not compute in float32"
        read = [v for v in data_inputs(node) if is_activation(v)]
        if any(v.dtype != ir.DataType.FLOAT for v in read[:1]) or not (
            node.outputs[0].dtype == ir.DataType.FLOAT or node.op_type in _COMPARES
        ):
            return "it does not compute in float32"
        if name(node) in self.tail and self.scheme.tail == "float":
            return "it lies between the last convolution and the output, which is float"
        for key, value in rule.only.items():
            if key in node.attributes and node.attributes[key].as_string() != value:
                given = node.attributes[key].as_string()
                return f"the target has no integer kernel for {node.op_type} with {key} '{given}'"
        if node.op_type in MAC_OPS and (form := uncommon_form(node)):
            return form
        high = [t for t in self._touched(node) if t in self.raised]
        if high and self.scheme.wide is None:
            return f"'{high[0]}' needs more than {self.scheme.activation.bits} bits"
        return ""

    def _activation_of(self, node: ir.Node) -> ir.Node | None:
        return absorbed_activation(node, self.scheme) if name(node) in self.absorbed else None

    def _moves(self, node: ir.Node) -> bool:
        return (
            name(node) in self.integer
            and node.op_type in self.scheme.ops
            and self.scheme.ops[node.op_type].moves
            and not self._looks_up(node)
        )

    def _looks_up(self, node: ir.Node) -> bool:
        """Whether it takes rows of a stored table, which can be stored as codes of its output."""
        return self.scheme.integer_inputs and is_table(node)

    def _leave_movers(self) -> bool:
        """Rule 5; True when something changed."""
        before = len(self.integer)
        for node in reversed(self.nodes):
            if not self._moves(node):
                continue
            if not self._read_by_integer(node):
                self._leave(node, "nothing that follows it runs on integers")
            elif str(node.outputs[0].name) in self.moved_inputs and not self.scheme.integer_inputs:
                self._leave(node, "it moves an input of the graph, which is float")
        return len(self.integer) < before

    def _leave_lonely(self) -> bool:
        """Rule 4; True when something changed."""
        before = len(self.integer)
        for node in self.nodes:
            if name(node) not in self.integer or node.op_type in MAC_OPS or self._moves(node):
                continue
            if not self._read_by_integer(self._activation_of(node) or node):
                self._leave(node, "nothing that follows it runs on integers")
            elif not self._looks_up(node) and not any(
                p is None or name(p) in self.integer or name(p) in self.activations
                for p in (v.producer() for v in node.inputs if v is not None and is_activation(v))
            ):
                self._leave(node, "nothing before it runs on integers")
        return len(self.integer) < before

    def _read_by_integer(self, node: ir.Node) -> bool:
        return any(name(user) in self.integer for value in node.outputs for user in value.consumers())

    def _leave(self, node: ir.Node, reason: str) -> None:
        self.integer.discard(name(node))
        self.float_nodes[name(node)] = reason

    def _tensors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        tensors: dict[str, None] = {}
        constants: dict[str, None] = {}
        inner = {outputs(n)[0] for n in self.nodes if name(n) in self.absorbed and name(n) in self.integer}
        for node in self.nodes:
            if name(node) not in self.integer:
                continue
            for value in data_inputs(node):
                if is_activation(value):
                    tensors[str(value.name)] = None
                elif not (node.op_type in MAC_OPS or name(node) in self.activations or self._looks_up(node)):
                    constants[str(value.name)] = None
            for value in node.outputs:
                if value.dtype != ir.DataType.FLOAT:
                    continue  # what a comparison finds, or indices
                if str(value.name) not in inner and not self._float_output(node, value):
                    tensors[str(value.name)] = None
        return tuple(t for t in tensors if t not in inner), tuple(constants)

    def _float_output(self, node: ir.Node, value: ir.Value) -> bool:
        rule = self.scheme.ops.get(node.op_type)
        readers = value.consumers()
        return bool(rule and rule.float_output) and not any(name(r) in self.integer for r in readers)

    def _mixed_joins(self) -> set[str]:
        """Concats that join an absorbed activation, or what keeps its range, with something else.

        A kernel absorbs an activation by the ends of its output's codes, which must then be the activation's
        own: with the range of another tensor in it, the activation would have to be computed, in float.
        """
        kinds: dict[str, str] = {}
        mixed = set()
        for node in self.nodes:
            kind = ""
            if name(node) in self.activations & self.integer and node.op_type != "Add":
                kind = " ".join([node.op_type, *(str(array(v)) for v in node.inputs[1:])])
            elif self._keeps_range(node):
                kind = node.op_type
            elif self._moves(node):
                found = {kinds.get(t, "") for t in inputs(node)}
                kind = found.pop() if len(found) == 1 else ""
                if found:
                    mixed.add(name(node))
            kinds.update(dict.fromkeys(outputs(node), kind))
        return mixed

    def _keeps_range(self, node: ir.Node) -> bool:
        rule = self.scheme.ops.get(node.op_type)
        return name(node) in self.integer and rule is not None and rule.keeps_range

    def _groups(self, tensors: tuple[str, ...]) -> dict[str, str]:
        parent = {t: t for t in tensors}

        def find(t: str) -> str:
            while parent[t] != t:
                t = parent[t]
            return t

        order = {t: i for i, t in enumerate(tensors)}
        for node in self.nodes:
            if not self._moves(node) or name(node) in self.apart:
                continue
            touched = [t for t in (*inputs(node), *outputs(node)) if t in parent]
            for other in touched[1:]:
                first, second = sorted((find(touched[0]), find(other)), key=order.__getitem__)
                parent[second] = first
        return {t: find(t) for t in tensors}


def absorbed_activation(node: ir.Node, scheme: Scheme) -> ir.Node | None:
    """The activation (or bias) that ``node``'s kernel absorbs: its only reader, if the rule fuses it."""
    rule = scheme.ops.get(node.op_type)
    if rule is None or not rule.fuses or node.outputs[0].is_graph_output():
        return None
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or readers[0].node.op_type not in rule.fuses:
        return None
    activation = readers[0].node
    if activation.op_type == "Add":
        return activation if _adds_bias(node, activation, 1 - readers[0].idx) else None
    if readers[0].idx != 0:
        return None
    bounds = [array(v) for v in activation.inputs[1:] if v is not None]
    if scheme.clips_at_zero and activation.op_type == "Clip" and not _starts_at_zero(activation):
        return None
    return activation if all(b is not None for b in bounds) else None


def _starts_at_zero(clip: ir.Node) -> bool:
    lower = array(clip.inputs[1]) if len(clip.inputs) > 1 else None
    return lower is not None and float(lower) == 0.0


def _adds_bias(node: ir.Node, add: ir.Node, index: int) -> bool:
    """Whether an Add behind stored weights adds a stored vector to their outputs: a MatMul's bias."""
    bias, weight = array(add.inputs[index]), array(node.inputs[1])
    return bias is not None and weight is not None and bias.shape == (weight.shape[-1],)


def _has_shared_scales(node: ir.Node) -> bool:
    """Whether one scale of the weights belongs to several biases: in a grouped ConvTranspose."""
    grouped = "group" in node.attributes and node.attributes["group"].as_int() > 1
    return node.op_type == "ConvTranspose" and grouped and len(node.inputs) > 2


def uncommon_form(node: ir.Node) -> str:
    """Why a node that multiplies and accumulates has no integer kernel in this form; empty when it has."""
    if node.op_type == "MatMul":
        return "its stored weights are the first factor" if array(node.inputs[0]) is not None else ""
    if array(node.inputs[1]) is None:
        return "its weights are computed, not stored"
    if _has_shared_scales(node):
        return "its bias differs between groups that share the scales of their weights"
    if node.op_type == "Gemm":
        scaled = [
            k for k in ("alpha", "beta") if k in node.attributes and node.attributes[k].as_float() != 1.0
        ]
        if scaled:
            return f"its {scaled[0]} is not 1"
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            return "it transposes its input"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        stored = array(bias)
        if stored is None:
            return "its bias is computed, not stored"
        if stored.size > 1 and stored.size != stored.shape[-1]:
            return "its bias differs from row to row"
    return ""


def tail_nodes(nodes: list[ir.Node]) -> frozenset[str]:
    """Names of the nodes whose results reach the graph's outputs through arithmetic alone."""
    tail: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in MAC_OPS:
            weight = array(node.inputs[1])
            if weight is None or weight.size > FEW_WEIGHTS:
                continue
        if all(name(user) in tail for value in node.outputs for user in value.consumers()):
            tail.add(name(node))
    return frozenset(tail)


def moved_inputs(graph: Graph, scheme: Scheme) -> dict[str, str]:
    """Tensors whose values are those of a graph input, moved, and the input's name."""
    found = {str(v.name): str(v.name) for v in graph.model.graph.inputs}
    for node in graph.nodes:
        rule = scheme.ops.get(node.op_type)
        origins = {found.get(t) for t in inputs(node)}
        if rule is not None and rule.moves and len(origins) == 1 and None not in origins:
            found.update({t: str(next(iter(origins))) for t in outputs(node)})
    return found


def name(node: ir.Node | None) -> str:
    return str(node.name) if node is not None else ""


def is_activation(value: ir.Value) -> bool:
    """True for a tensor that is computed or fed, not stored."""
    return not value.is_initializer()


def data_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that carry values: all of an arithmetic node's, the first of a node with shapes or
    indices."""
    positions = _VALUES.get(node.op_type, (0,))
    for index in range(len(node.inputs)) if positions is None else positions:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            yield value


def inputs(node: ir.Node) -> list[str]:
    """Names of the activations a node reads."""
    return [str(v.name) for v in data_inputs(node) if is_activation(v)]


def outputs(node: ir.Node) -> list[str]:
    return [str(v.name) for v in node.outputs]


def is_table(node: ir.Node) -> bool:
    """Whether a node takes rows of a stored table."""
    return node.op_type == "Gather" and array(node.inputs[0]) is not None
