"""A quantized graph that can be trained: its QDQ form with the weights still in float.

1. Activations carry the QuantizeLinear / DequantizeLinear pairs of the deployed graph, which this form is
   made from: scales, zero points and 16-bit islands are the same by construction.
2. A weight is its float initializer, under its own name, with a pair of its own: ``W -> QuantizeLinear ->
   DequantizeLinear``, clipped to ±127 as the exported codes are. The straight-through gradient reaches it.
3. So is a bias, with int32 codes of input scale x weight scale. They are as fine as the accumulator, but
   without them one value in some hundreds would be rounded to another code than in the exported graph.
4. A learned scale is ``base * exp(theta)`` with ``theta`` an initializer of zeros: steps are relative to the
   scale, and it stays above 0. Tensors that share a scale share ``theta``. Its gradient is that of LSQ (Esser
   et al. 2020, arXiv:1902.08153, eq. 3 and section 2.2). Zero points stay.

What is not trained: constant operands of integer arithmetic, which are exported by their range, and what
:mod:`edgekit.train.roles` takes for constants of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.passes.edit import Names, add_constant, set_constant, static_shape
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import MAC_OPS, absorbed_activation, moved_inputs, name
from edgekit.quantize.qdq import all_weight_scales
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.ranges import fixed_ranges
from edgekit.train.roles import Role, roles

#: Ops that state the end of their own range: a larger scale would let values through that they cut off.
_BOUNDED = frozenset({"Clip"})


@dataclass(frozen=True)
class Trainable:
    """A quantized graph in the form that is trained.

    Attributes:
        graph: The graph for :class:`~edgekit.train.executor.Executor`. Other runtimes do not know how its
            weights are clipped.
        start: What it was made from.
        weights: Names of the initializers that are trained behind a quantizer.
        thetas: Initializers that learned scales are made with: of a same-scale group by its name, of a
            node's weights by the node's name.
        frozen: Names of the integer nodes whose weights stay as they are.
    """

    graph: Graph
    start: Quantization
    weights: tuple[str, ...]
    thetas: Mapping[tuple[str, str], str]
    frozen: tuple[str, ...]

    def export(self, trained: Graph) -> Quantization:
        """What a trained ``graph`` stands for: new weights, biases and scales.

        Args:
            trained: ``graph`` with other values in its initializers.
        """
        found = trained.model.graph.initializers
        work = self.start.work.copy()
        for label, value in work.model.graph.initializers.items():
            before, after = array(value), array(found.get(label))
            if before is None or after is None or before.dtype.kind != "f" or before.shape != after.shape:
                continue
            if not np.array_equal(before, after):
                set_constant(value, after)
        params, scales = dict(self.start.params), dict(self.start.scales)
        for (kind, owner), theta in self.thetas.items():
            factor = array(found[theta])
            if factor is None:
                continue
            if kind == "weight":
                scales[owner] = _scaled(scales[owner], factor)
                continue
            for member in self.start.plan.members(owner):
                scale = float(_scaled(np.float32(params[member].scale), factor))
                params[member] = replace(params[member], scale=scale)
        return replace(self.start, work=work, params=params, scales=scales)


def make_trainable(start: Quantization, *, learn_scales: bool = False) -> Trainable:
    """Put a quantized graph into the form that is trained.

    Args:
        start: The quantization.
        learn_scales: Whether scales of activations and weights are learned too. Those stay that an op or the
            preprocessing fixes, and those of tensors that exist with more bits as well.

    Raises:
        ModelError: Nothing in it is quantized.
    """
    scales = dict(all_weight_scales(start.work, start.scheme)) | dict(start.scales)
    start = replace(start, scales=scales)
    builder = _Builder(start, start.deployed())
    builder.free_weights()
    if not builder.weights and not start.plan.tensors:
        reasons = list(dict.fromkeys(start.plan.float_nodes.values()))[:3]
        raise ModelError(
            "nothing in it runs on integers, so that there is nothing to train for",
            where="qat",
            hint=f"Its nodes stay in float: {'; '.join(reasons)}" if reasons else "Quantize it first",
        )
    if learn_scales:
        builder.learn()
    frozen = tuple(builder.frozen)
    return Trainable(builder.graph, builder.start, tuple(builder.weights), builder.thetas, frozen)


class _Builder:
    """Turns a deployed graph into its trainable form, in place."""

    def __init__(self, start: Quantization, graph: Graph) -> None:
        self.start, self.graph = start, graph
        self.main = graph.model.graph
        self.names = Names(self.main)
        self.weights: dict[str, None] = {}
        self.thetas: dict[tuple[str, str], str] = {}
        self.frozen: list[str] = []
        self.pairs: dict[str, ir.Node] = {}
        self.biases: dict[str, ir.Node] = {}

    def free_weights(self) -> None:
        """Rule 2 and 3 of the module."""
        kinds = roles(self.start.work)
        originals = {name(node): node for node in self.start.work.nodes}
        scales = dict(self.start.scales)
        for node in list(self.graph.nodes):
            original = originals.get(name(node))
            if original is None or node.op_type not in MAC_OPS or len(node.inputs) < 2:
                continue
            stored = _dequantizer(node, 1)
            if stored is None or name(node) not in self.start.plan.integer_nodes:
                continue
            given = original.inputs[1]
            if given is None or kinds.get(str(given.name)) is not Role.WEIGHT:
                self.frozen.append(name(node))
                continue
            # With room for the bias, as it was exported.
            found = array(stored.inputs[1])
            scales[name(node)] = scales[name(node)] if found is None else found
            self.pairs[name(node)] = self._free(node, given, stored, "weight")
            self.weights[str(given.name)] = None
            bias = original.inputs[2] if len(original.inputs) > 2 else None
            coded = _dequantizer(node, 2)
            if bias is not None and coded is not None:
                self.biases[name(node)] = self._free(node, bias, coded, "bias")
        self.start = replace(self.start, scales=scales)

    def _free(self, node: ir.Node, given: ir.Value, stored: ir.Node, what: str) -> ir.Node:
        """Put the float initializer ``given`` and a quantizer in front of a stored constant's dequantizer."""
        codes = stored.inputs[0]
        attributes: dict[str, int] = {"narrow_range": 1}
        if "axis" in stored.attributes:
            attributes["axis"] = stored.attributes["axis"].as_int()
        label = f"{name(node)}.{what}_codes"
        quantize = ir.node(
            "QuantizeLinear",
            [self._initializer(given), *stored.inputs[1:3]],
            attributes=attributes,
            name=label,
        )
        made = quantize.outputs[0]
        made.name = self.names.fresh(label)
        if codes is not None:
            made.shape, made.type = codes.shape, codes.type
        self.main.insert_before(stored, quantize)
        stored.replace_input_with(0, made)
        self._drop(codes)
        return quantize

    def _initializer(self, original: ir.Value) -> ir.Value:
        label, content = str(original.name), array(original)
        if label in self.main.initializers:
            return self.main.initializers[label]
        if content is None:
            raise ModelError("has no content", where=f"initializer '{label}'")
        return add_constant(self.main, label, content)

    def _drop(self, value: ir.Value | None) -> None:
        """Remove an initializer that nothing reads any more."""
        if value is not None and not value.uses():
            self.main.initializers.pop(str(value.name), None)

    def learn(self) -> None:
        """Rule 4 of the module."""
        quantizers: dict[str, list[ir.Node]] = {}
        for node in self.graph.nodes:
            tensor = name(node).removesuffix("_QuantizeLinear")
            if node.op_type == "QuantizeLinear" and tensor in self.start.plan.groups:
                quantizers.setdefault(self.start.plan.groups[tensor], []).append(node)
        for group in learnable_groups(self.start):
            found = quantizers.get(group, [])
            params = self.start.params[group]
            if found:
                self._learn(("activation", group), found, np.float32(params.scale), params.format.limits[1])
        for owner, quantize in self.pairs.items():
            base = self.start.scales[owner]
            self._learn(("weight", owner), [quantize], base, self.start.scheme.weight.limits[1])
        for owner, quantize in self.biases.items():
            self._follow(owner, quantize)

    def _follow(self, owner: str, quantize: ir.Node) -> None:
        """Let the steps of a bias follow the scales that they are the product of."""
        node = next(n for n in self.graph.nodes if name(n) == owner)
        factors = [v.producer() for v in node.inputs[:2] if v is not None]
        steps = [f.inputs[1] for f in factors if f is not None and f.op_type == "DequantizeLinear"]
        label = f"{owner}.bias_scale"
        product = ir.node("Mul", steps, name=label)
        made, old = product.outputs[0], quantize.inputs[1]
        made.name = self.names.fresh(label)
        made.shape, made.type = None if old is None else old.shape, ir.TensorType(ir.DataType.FLOAT)
        self.main.insert_before(quantize, product)
        for reader in (quantize, *(use.node for use in quantize.outputs[0].uses())):
            reader.replace_input_with(1, made)
        self._drop(old)

    def _learn(
        self, key: tuple[str, str], quantizers: list[ir.Node], base: Array | np.float32, top: int
    ) -> None:
        base = np.asarray(base, np.float32)
        label = f"{key[1]}.{key[0]}"
        theta = add_constant(self.main, self.names.fresh(f"{label}_theta"), np.zeros_like(base))
        fixed = ir.node("Constant", [], attributes={"value": ir.tensor(base)}, name=f"{label}_base")
        factor = ir.node("Exp", [theta], name=f"{label}_factor")
        scale = ir.node("Mul", [fixed.outputs[0], factor.outputs[0]], name=f"{label}_scale")
        for node in (fixed, factor, scale):
            made = node.outputs[0]
            made.name = self.names.fresh(str(node.name))
            made.shape, made.type = ir.Shape(base.shape), ir.TensorType(ir.DataType.FLOAT)
        self.main.insert_before(self.main[0], [fixed, factor, scale])
        for quantize in quantizers:
            old, shape = quantize.inputs[1], static_shape(quantize.inputs[0]) or ()
            share = max(1.0, np.prod(shape) / base.size)
            quantize.attributes["gradient_scale"] = ir.AttrFloat32(
                "gradient_scale", float(1 / np.sqrt(share * top))
            )
            for reader in (quantize, *(use.node for use in quantize.outputs[0].uses())):
                reader.replace_input_with(1, scale.outputs[0])
            self._drop(old)
        self.thetas[key] = str(theta.name)


def learnable_groups(start: Quantization) -> list[str]:
    """The same-scale groups whose scale may be learned.

    Left out are tensors whose range an op fixes or states itself, inputs of the graph and what is moved from
    them, and tensors that there are with more bits, which resolve all as it is.
    """
    plan, scheme = start.plan, start.scheme
    producers = {str(v.name): node for node in start.work.nodes for v in node.outputs}
    absorbing = {
        name(activation): activation.op_type
        for activation in (absorbed_activation(node, scheme) for node in start.work.nodes)
        if activation is not None
    }
    kept = set(fixed_ranges(start.work, scheme, plan)) | set(moved_inputs(start.work, scheme))
    kept |= set(plan.formats)
    for tensor in plan.tensors:
        producer = producers.get(tensor)
        if producer is not None and (producer.op_type in _BOUNDED or absorbing.get(name(producer)) == "Clip"):
            kept.add(tensor)
        if start.params[tensor].wide is not None:
            kept.add(tensor)
    barred = {plan.groups[t] for t in kept if t in plan.groups}
    groups = dict.fromkeys(plan.groups[t] for t in plan.tensors)
    alike = {g for g in groups if len({start.params[t].scale for t in plan.members(g)}) == 1}
    return [g for g in groups if g not in barred and g in alike]


def _dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear over stored codes that an input comes from."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return producer if array(producer.inputs[0]) is not None else None


def _scaled(base: Array | np.float32, theta: Array) -> Array:
    """As the executor computes it, so that the exported scale is the trained one to the last bit."""
    return np.asarray((torch.from_numpy(np.array(base)) * torch.from_numpy(np.array(theta)).exp()).numpy())
