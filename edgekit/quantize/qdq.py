"""Writing quantization into the graph as QuantizeLinear / DequantizeLinear pairs.

1. A quantized activation ``X`` gets ``X -> X_quantized -> X_dequantized``. Integer nodes read
   ``X_dequantized``; so do float nodes when an integer kernel writes ``X``, since no float ``X`` exists then.
   Where nodes need it in a second format, another pair follows: ``X_int16_quantized -> X_int16_dequantized``.
2. A weight becomes codes and DequantizeLinear with one scale per channel; the codes keep the weight's name.
3. A bias becomes int32 codes whose scale is input scale x weight scale.
4. The scale of a normalization becomes 8-bit codes, what it adds int32 codes as a bias does.
5. A table that rows are taken from becomes codes of its output, where the scheme leaves nothing in float.
6. A graph output that is quantized keeps its name on the dequantized tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, array
from edgekit.passes.edit import add_constant
from edgekit.passes.rewrite import given
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import MAC_OPS, NORMS, Plan, data_inputs, is_activation, is_table, name
from edgekit.quantize.qparams import (
    QParams,
    activation_params,
    weight_codes,
    weight_scales,
    with_room_for_bias,
)
from edgekit.quantize.scheme import Format, Scheme


def insert_qdq(
    graph: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    scheme: Scheme,
    scales: Mapping[str, Array] | None = None,
    codes: Mapping[str, Array] | None = None,
) -> Graph:
    """The QDQ form of ``graph``.

    Args:
        graph: A captured float graph.
        plan: What is quantized.
        params: Parameters of every tensor in ``plan.tensors``.
        scheme: The target's number formats.
        scales: What :func:`all_weight_scales` finds, where the caller has it already.
        codes: Codes of weights by node name, in place of the nearest ones; they go with ``scales``.

    Raises:
        ModelError: Codes do not fit their node: its weight has another shape, or its bias needs larger scales
            than those that the codes were found for.
    """
    result = graph.copy()
    given = scales or all_weight_scales(graph, scheme)
    writer = _Writer(result, plan, params, scheme, given, codes or {})
    writer.write()
    summary = (
        f"{len(plan.tensors)} activations to {scheme.activation.value}, {writer.weights} weights to "
        f"{scheme.weight.value}, {len(plan.float_nodes)} nodes stay in float"
    )
    return result.with_change(Change("insert_qdq", summary))


def all_weight_scales(graph: Graph, scheme: Scheme) -> dict[str, Array]:
    """Scales of the weights of every node that the scheme could compute in integers, by node name."""
    found = {}
    for node in graph.nodes:
        weight = array(node.inputs[1]) if node.op_type in MAC_OPS and node.op_type in scheme.ops else None
        if weight is not None:
            found[name(node)] = weight_scales(weight, weight_axis(node, scheme, weight.ndim), scheme.weight)
    return found


def insert_pairs(graph: Graph, params: Mapping[str, QParams]) -> Graph:
    """``graph`` with single activations quantized and dequantized at once, everything else in float."""
    result = graph.copy()
    nowhere = Plan(frozenset(), tuple(params), {t: t for t in params}, tuple(params), (), {}, {})
    writer = _Writer(result, nowhere, params, Scheme(ops={}), {})
    values = result.values()
    for tensor in params:
        writer.pair(values[tensor], all_readers=True)
    return result


@dataclass
class _Writer:
    graph: Graph
    plan: Plan
    params: Mapping[str, QParams]
    scheme: Scheme
    scales: Mapping[str, Array]
    codes: Mapping[str, Array] = field(default_factory=dict)
    weights: int = 0

    def __post_init__(self) -> None:
        self.main = self.graph.model.graph

    def write(self) -> None:
        values = self.graph.values()
        nodes = [n for n in self.graph.nodes if name(n) in self.plan.integer_nodes]
        for node in nodes:
            if node.op_type in MAC_OPS and len(node.inputs) > 1 and not is_activation(given(node, 1)):
                self._weight_and_bias(node)
            elif node.op_type in NORMS:
                self._norm(node)
            elif is_table(node) and self.scheme.tail == "integer":
                self._table(node)
            elif node.op_type not in MAC_OPS:
                self._constants(node)
        for tensor in self.plan.tensors:
            producer = values[tensor].producer()
            self.pair(values[tensor], all_readers=name(producer) in self.plan.integer_nodes)

    def pair(self, value: ir.Value, *, all_readers: bool) -> None:
        """Quantize and dequantize one activation, for all of its readers or only the integer nodes.

        Args:
            value: The activation.
            all_readers: Whether an integer kernel writes it, so that it exists as codes alone.
        """
        tensor, producer = str(value.name), value.producer()
        uses = [u for u in value.uses() if all_readers or name(u.node) in self.plan.integer_nodes]
        forms = self.plan.formats.get(tensor, (self.params[tensor].format,))
        source, after, native = value, producer, value
        for number, form in enumerate(forms):
            readers = [u for u in uses if self._form(u.node, forms) is form]
            suffix = "" if number == 0 else f"_{form.value}"
            nodes = self._pair_nodes(source, tensor, suffix, _in_format(self.params[tensor], form))
            if after is None:
                first = min((u.node for u in uses), key=self.main.index)
                self.main.insert_before(first, nodes)
            else:
                self.main.insert_after(after, nodes)
            for use in readers:
                use.node.replace_input_with(use.idx, nodes[1].outputs[0])
            if number == 0:
                native = nodes[1].outputs[0]
                if all_readers:
                    source, after = native, nodes[1]
        if value.is_graph_output() and all_readers:
            position = next(i for i, v in enumerate(self.main.outputs) if v is value)
            value.name, native.name = f"{tensor}_raw", tensor
            self.main.outputs[position] = native

    def _form(self, node: ir.Node, forms: tuple[Format, ...]) -> Format:
        """The format in which a node reads a tensor that there is in ``forms``."""
        if len(forms) == 1 or name(node) not in self.plan.integer_nodes or self.scheme.wide is None:
            return forms[0]
        return self.scheme.wide if name(node) in self.plan.wide_nodes else self.scheme.activation

    def _pair_nodes(
        self, source: ir.Value, tensor: str, suffix: str, params: QParams
    ) -> tuple[ir.Node, ir.Node]:
        scale = self._constant(f"{tensor}{suffix}_scale", np.array(params.scale, np.float32))
        zero = self._constant(
            f"{tensor}{suffix}_zero_point", np.array(params.zero_point, params.format.value)
        )
        label = f"{tensor}{suffix}"
        quantize = ir.node("QuantizeLinear", [source, scale, zero], name=f"{label}_QuantizeLinear")
        codes = quantize.outputs[0]
        dequantize = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{label}_DequantizeLinear")
        real = dequantize.outputs[0]
        codes.name, codes.shape = f"{label}_quantized", source.shape
        codes.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(params.format.value)))
        real.name, real.shape, real.type = f"{label}_dequantized", source.shape, source.type
        return quantize, dequantize

    def _weight_and_bias(self, node: ir.Node) -> None:
        weight_value = given(node, 1)
        weight = array(weight_value)
        if weight is None:
            return
        axis = weight_axis(node, self.scheme, weight.ndim)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = array(bias_value)
        step = _in_format(self.params[str(given(node, 0).name)], self._format_of(node)).scale
        scales = self.scales[name(node)]
        if bias is not None:
            scales = with_room_for_bias(scales, bias, step)
        codes = self._weight_codes(node, weight, scales, axis)
        node.replace_input_with(1, self._dequantized(weight_value, codes, scales, axis, node))
        self.weights += 1
        if bias_value is not None and bias is not None:
            bias_scale = (scales * np.float32(step)).astype(np.float32)
            limit = 2.0 ** (self.scheme.bias_bits - 1) - 1
            bias_codes = np.clip(np.round(bias.ravel() / bias_scale), -limit, limit).astype(np.int32)
            node.replace_input_with(2, self._dequantized(bias_value, bias_codes, bias_scale, 0, node))

    def _weight_codes(self, node: ir.Node, weight: Array, scales: Array, axis: int | None) -> Array:
        given = self.codes.get(name(node))
        if given is None:
            return weight_codes(weight, scales, axis, self.scheme.weight)
        if given.shape != weight.shape:
            raise ModelError(
                f"codes of shape {list(given.shape)} for a weight of shape {list(weight.shape)}",
                where=f"node '{node.name}'",
            )
        if not np.array_equal(scales, self.scales[name(node)]):
            raise ModelError(
                "its bias needs larger weight scales than its codes were found for",
                where=f"node '{node.name}'",
                hint="Raise the scales by with_room_for_bias before the codes are found",
            )
        return given.astype(self.scheme.weight.value)

    def _norm(self, node: ir.Node) -> None:
        """Case 4."""
        gamma, beta = array(node.inputs[1]), array(node.inputs[2] if len(node.inputs) > 2 else None)
        if gamma is None:
            return
        signed = self.scheme.activation in (Format.INT8, Format.INT16)
        params = activation_params(
            float(gamma.min()), float(gamma.max()), Format.INT8 if signed else Format.UINT8
        )
        self._store(node, 1, params)
        if beta is None:
            return
        step = _in_format(self.params[str(given(node, 0).name)], self._format_of(node)).scale
        scale = np.float32(step * params.scale)
        codes = np.clip(np.round(beta / scale), -(2.0**30), 2.0**30).astype(np.int32)
        node.replace_input_with(2, self._dequantized(given(node, 2), codes, scale, None, node))

    def _table(self, node: ir.Node) -> None:
        """Case 5."""
        self._store(node, 0, _in_format(self.params[str(node.outputs[0].name)], self._format_of(node)))

    def _store(self, node: ir.Node, index: int, params: QParams) -> None:
        value = given(node, index)
        data = array(value)
        if data is None:
            return
        codes = params.codes(data)
        zero = np.array(params.zero_point, codes.dtype)
        real = self._dequantized(value, codes, np.float32(params.scale), None, node, zero)
        node.replace_input_with(index, real)

    def _constants(self, node: ir.Node) -> None:
        carried = set(data_inputs(node))
        for index, value in enumerate(node.inputs):
            if (
                value is None
                or value not in carried
                or is_activation(value)
                or str(value.name) not in self.plan.constants
            ):
                continue
            data = array(value)
            if data is None:
                continue
            params = activation_params(float(data.min()), float(data.max()), self._format_of(node))
            self._store(node, index, params)

    def _dequantized(
        self,
        value: ir.Value,
        codes: Array,
        scales: Array | np.float32,
        axis: int | None,
        node: ir.Node,
        zero: Array | None = None,
    ) -> ir.Value:
        # A weight that two nodes share may get different codes in each; only a sole reader keeps the plain
        # name.
        label = str(value.name) if len(value.uses()) == 1 else f"{value.name}.{name(node)}"
        scales = np.asarray(scales)
        axis = axis if scales.ndim else None
        zero = np.zeros(scales.shape, codes.dtype) if zero is None else zero
        parts = [
            self._constant(f"{label}_{part}", data)
            for part, data in (("quantized", codes), ("scale", scales), ("zero_point", zero))
        ]
        attributes = {"axis": axis} if axis is not None else None
        real = ir.node("DequantizeLinear", parts, attributes=attributes, name=f"{label}_DequantizeLinear")
        real.outputs[0].name = f"{label}_dequantized"
        real.outputs[0].shape, real.outputs[0].type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
        self.main.insert_before(node, real)
        if len(value.uses()) == 1 and not value.is_graph_output():
            # The node still reads it; it goes once the caller has replaced the input.
            self.main.initializers.pop(str(value.name), None)
        return real.outputs[0]

    def _format_of(self, node: ir.Node) -> Format:
        wide = self.scheme.wide if name(node) in self.plan.wide_nodes else None
        return wide or self.scheme.activation

    def _constant(self, label: str, data: Array) -> ir.Value:
        return self.main.initializers.get(label) or add_constant(self.main, label, data)


def _in_format(params: QParams, form: Format) -> QParams:
    return params.wide if params.wide is not None and params.wide.format is form else params


def weight_axis(node: ir.Node, scheme: Scheme, rank: int) -> int | None:
    """Axis of the weight's output channels, as the rule states it for the plain form of the op."""
    axis = scheme.ops[node.op_type].weight_axis
    if axis is None or rank < 2:
        return None
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return axis % rank
