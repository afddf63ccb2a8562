"""Networks of one operator in the form that the quantizer writes, for trying what the HTP makes of it.

The graph takes and returns codes, so that what a runtime computes can be compared code by code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.graph import Graph, array
from edgekit.passes.edit import add_constant
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.plan import MAC_OPS, Plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.scheme import Format, OpRule, Scheme
from edgekit.session import Arrays, open_runner
from edgekit.targets.qnn_htp.cases import Case

#: The formats by name: that of activations. Weights are int8 and biases int32 in both.
FORMATS = {"a8w8": Format.UINT8, "a16w8": Format.UINT16}
#: Positions of the inputs that carry values, where that is neither the first alone nor all.
VALUES = {
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
#: Operators whose second input scales and whose third is added, for each channel.
NORMS = frozenset({"LayerNormalization", "InstanceNormalization"})
_ALL = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Mod", "Sum", "Mean", "Concat", "PRelu", "MatMul",
        "Gemm", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "GridSample", "Einsum",
    }
)  # fmt: skip
_SEED = 5


def float_graph(case: Case) -> Graph:
    """The operator alone, in float32, with random weights."""
    random = np.random.default_rng(_SEED)
    computed = [
        ir.Value(
            name=f"x{i}",
            shape=ir.Shape(shape),
            type=ir.TensorType(ir.DataType.from_numpy(np.dtype(case.kinds.get(i, "float32")))),
        )
        for i, shape in enumerate(case.shapes)
    ]
    main = ir.Graph(computed, [], nodes=[], opset_imports={"": 21}, name="single")
    values: list[ir.Value | None] = [
        *computed,
        *(_constant(main, c, i, random) for i, c in enumerate(case.constants)),
    ]
    if case.order:
        values = [values[case.order.index(i)] for i in range(len(values))]
    node = ir.node(case.op, values, attributes=case.attributes, num_outputs=case.outputs, name="op")
    main.append(node)
    outputs = list(node.outputs)
    for i, value in enumerate(outputs):
        value.name = f"y{i}"
    if case.between:
        before = ir.node("Abs", computed[:1], name="before")
        before.outputs[0].name = "before0"
        main.insert_before(node, before)
        node.replace_input_with(0, before.outputs[0])
        outputs = _behind(main, ir.node("Abs", outputs[:1], name="behind"))
    if case.then:
        rest = [_constant(main, c, f"then{i}", random) for i, c in enumerate(case.then[1:])]
        outputs = _behind(main, ir.node(case.then[0], [outputs[0], *rest], name="then"))
    main.outputs.extend(outputs)
    return infer_shapes(Graph(ir.Model(main, ir_version=10)))


def _behind(main: ir.Graph, node: ir.Node) -> list[ir.Value]:
    node.outputs[0].name = "z0"
    main.append(node)
    return list(node.outputs)


def _constant(main: ir.Graph, content: Any, index: Any, random: np.random.Generator) -> ir.Value | None:
    if content is None:
        return None
    if isinstance(content, tuple):
        content = (random.standard_normal(content) * 0.3).astype(np.float32)
    elif isinstance(content, float):
        content = np.float32(content)
    tensor = ir.tensor(np.asarray(content), name=f"c{index}")
    value = ir.Value(
        name=f"c{index}",
        shape=ir.Shape(np.shape(content)),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    main.register_initializer(value)
    return value


def samples(case: Case, count: int = 2) -> list[Arrays]:
    """Random float inputs by name."""
    random = np.random.default_rng(_SEED + 1)
    return [
        {
            f"x{i}": _random(random, shape, case, case.kinds.get(i, "float32"))
            for i, shape in enumerate(case.shapes)
        }
        for _ in range(count)
    ]


def _random(
    random: np.random.Generator, shape: tuple[int, ...], case: Case, kind: str
) -> np.ndarray[Any, Any]:
    if kind == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if kind == "int64":
        return random.integers(0, 4, shape)
    return random.uniform(case.low, case.high, shape).astype(np.float32)


def in_format(scheme: Scheme, fmt: str) -> Scheme:
    """The scheme with the activations of a format."""
    if FORMATS[fmt] is scheme.activation:
        return scheme
    ops = {
        op: rule.model_copy(update={"range": rule.wide_range or rule.range})
        for op, rule in scheme.ops.items()
    }
    return scheme.model_copy(update={"activation": FORMATS[fmt], "ops": ops})


def quantized(case: Case, scheme: Scheme, fmt: str) -> Graph:
    """The operator between codes.

    Args:
        case: The operator.
        scheme: The target's number formats; operators that it does not have get a rule without anything.
        fmt: ``a8w8`` or ``a16w8``.
    """
    graph = float_graph(case)
    missing = {n.op_type: OpRule() for n in graph.nodes if n.op_type not in scheme.ops}
    scheme = in_format(scheme.model_copy(update={"ops": {**scheme.ops, **missing}}), fmt)
    plan = whole_plan(graph, scheme, apart=case.apart)
    params = _params(case, graph, plan, scheme)
    result = insert_qdq(graph, plan, params, scheme)
    for node in list(result.nodes):
        if node.op_type in NORMS:
            _norm_weights(result, node)
        elif node.op_type == "Gather" and array(node.inputs[0]) is not None:
            _stored(result, node, 0, params[plan.tensors[-1]])
    return with_codes(result)


def whole_plan(graph: Graph, scheme: Scheme, *, apart: bool = False) -> Plan:
    """Everything on integers: also what lies behind the last layer with weights."""
    nodes = list(graph.nodes)
    absorbed = {"op": "then"} if nodes[-1].name == "then" and absorbs(nodes[0], nodes[1], scheme) else {}
    inner = {str(nodes[0].outputs[0].name)} if absorbed else set()
    tensors: dict[str, None] = {}
    constants: dict[str, None] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            if not value.is_initializer():
                tensors[str(value.name)] = None
            elif index in value_inputs(node) and node.op_type not in MAC_OPS and not _is_table(node, index):
                constants[str(value.name)] = None
        tensors.update({str(v.name): None for v in node.outputs if v.dtype == ir.DataType.FLOAT})
    names = tuple(t for t in tensors if t not in inner)
    op = next(node for node in nodes if node.name == "op")
    moved = [str(v.name) for v in (*op.inputs, *op.outputs) if v is not None and str(v.name) in names]
    together = scheme.ops[op.op_type].moves and not absorbed and not apart
    return Plan(
        integer_nodes=frozenset(str(n.name) for n in nodes),
        tensors=names,
        groups={t: moved[0] if together and t in moved else t for t in names},
        sources=names,
        constants=tuple(constants),
        absorbed=absorbed,
        float_nodes={},
    )


def absorbs(node: ir.Node, activation: ir.Node, scheme: Scheme) -> bool:
    """Whether a kernel takes an activation in.

    It does by the ends of its codes: the lower bound must be 0, which always has a code of its own. With
    another one ONNX Runtime leaves the Clip where it is, and HTP then refuses the node before it.
    """
    if activation.op_type not in scheme.ops[node.op_type].fuses:
        return False
    lower = array(activation.inputs[1]) if len(activation.inputs) > 1 else None
    return activation.op_type != "Clip" or (lower is not None and float(lower) == 0.0)


def _is_table(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0


def _norm_weights(graph: Graph, node: ir.Node) -> None:
    """The only form that HTP computes in integers: scale uint8 in every format, bias int32 with the scale of
    the input times that of the scale."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    gamma = array(node.inputs[1])
    if maker is None or gamma is None:
        return
    params = activation_params(float(gamma.min()), float(gamma.max()), Format.UINT8)
    _stored(graph, node, 1, params)
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    step = array(maker.inputs[1])
    if bias is not None and step is not None:
        scale = float(step) * params.scale
        _stored_codes(graph, node, 2, np.round(bias / scale).astype(np.int32), scale, 0)


def _stored(graph: Graph, node: ir.Node, index: int, params: QParams) -> None:
    data = array(node.inputs[index])
    if data is not None:
        _stored_codes(graph, node, index, params.codes(data), params.scale, params.zero_point)


def _stored_codes(
    graph: Graph, node: ir.Node, index: int, codes: np.ndarray[Any, Any], scale: float, zero: int
) -> None:
    main = graph.model.graph
    parts = (("codes", codes), ("scale", np.float32(scale)), ("zero", np.array(zero, codes.dtype)))
    inputs = [add_constant(main, f"{node.name}_{index}_{part}", np.asarray(data)) for part, data in parts]
    real = ir.node("DequantizeLinear", inputs, name=f"{node.name}_{index}_DequantizeLinear")
    real.outputs[0].name = f"{node.name}_{index}_dequantized"
    real.outputs[0].shape, real.outputs[0].type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    main.insert_before(node, real)
    node.replace_input_with(index, real.outputs[0])


def value_inputs(node: ir.Node) -> tuple[int, ...]:
    """Positions of the inputs that carry values, not shapes, indices or bounds."""
    if node.op_type in _ALL:
        return tuple(range(len(node.inputs)))
    return VALUES.get(node.op_type, (0,))


def _params(case: Case, graph: Graph, plan: Plan, scheme: Scheme) -> dict[str, QParams]:
    """Parameters from the ranges that random samples give."""
    runner = open_runner(
        graph, threads=1, optimize=False, extra_outputs=[t for t in plan.tensors if t[0] != "x"]
    )
    ranges: dict[str, tuple[float, float]] = {}
    fixed = {str(n.outputs[0].name): scheme.ops[n.op_type].range for n in graph.nodes}
    for feeds in samples(case):
        seen = {**feeds, **runner.run(feeds)}
        for tensor in plan.tensors:
            low, high = fixed.get(tensor) or (float(seen[tensor].min()), float(seen[tensor].max()))
            group = plan.groups[tensor]
            before = ranges.get(group, (low, high))
            ranges[group] = min(low, before[0]), max(high, before[1])
    return {t: activation_params(*ranges[plan.groups[t]], scheme.activation) for t in plan.tensors}


def with_codes(graph: Graph) -> Graph:
    """The graph without the first QuantizeLinear and the last DequantizeLinear of its ends."""
    result = graph.copy()
    main = result.model.graph
    for value in list(main.inputs):
        for reader in list(value.consumers()):
            codes = reader.outputs[0]
            if reader.op_type == "QuantizeLinear" and codes.dtype is not None:
                value.type = ir.TensorType(codes.dtype)
                codes.replace_all_uses_with(value)
                main.remove(reader, safe=True)
    for index, value in enumerate(list(main.outputs)):
        maker = value.producer()
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
            main.outputs[index] = maker.inputs[0]
            main.remove(maker, safe=True)
    return result


def code_feeds(case: Case, graph: Graph) -> list[Arrays]:
    """Random codes for a quantized graph; all of them within the range that was calibrated."""
    known: Mapping[str, ir.Value] = {str(v.name): v for v in graph.model.graph.inputs}
    found = []
    for feeds in samples(case, 1):
        codes = {}
        for name, data in feeds.items():
            readers = [n for n in known[name].consumers() if n.op_type == "DequantizeLinear"]
            codes[name] = data
            if readers:
                scale, zero = (array(v) for v in readers[0].inputs[1:3])
                if scale is not None and zero is not None:
                    params = QParams(float(scale), int(zero), Format(str(zero.dtype)))
                    codes[name] = params.codes(data)
        found.append(codes)
    return found
