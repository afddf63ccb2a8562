"""What there is to learn in a block: its layers and the activation scales that are its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph import array
from edgekit.passes.edit import static_shape
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import name
from edgekit.quantize.reconstruct.blocks import Block
from edgekit.quantize.reconstruct.network import Network, bias_of, weight_of
from edgekit.quantize.reconstruct.options import ReconstructOptions
from edgekit.quantize.reconstruct.sections import Section, Sections
from edgekit.quantize.reconstruct.train import Layer, Scale, Task
from edgekit.quantize.scheme import Scheme

#: How far a learned scale may go above what it was.
_MOST_GROWTH = 2.0


@dataclass(frozen=True)
class Aim:
    """What a block is compared by.

    Attributes:
        result: Tensor of the QDQ graph.
        weights: What the error of each channel counts, in a shape that goes with the result.
        baseline: Weighted mean square of the error with nearest rounding.
    """

    result: str
    weights: Array
    baseline: float


def make_task(network: Network, number: int, aim: Aim, options: ReconstructOptions) -> Task:
    """A block of a network as a task."""
    block, sections = network.blocks[number], network.sections
    section = sections.sections[number]
    # 16 bits resolve all that was seen; 8 have to choose.
    ranges = options.scale_rate > 0 and network.scheme.activation.bits == 8
    scales = _scales(network, block, section) if ranges else ()
    learned = {tensor for scale in scales for tensor in scale.inputs}
    quantized = {name(n): n for n in section.nodes}
    skip: list[ir.Node] = []
    layers = tuple(_layer(network, label, quantized[label], learned, skip) for label in block.weighted)
    model = sections.model(number, [aim.result], learned, skip)
    fed = learned | {layer.weight_input for layer in layers} | {layer.bias_input for layer in layers}
    return Task(
        model=model,
        result=aim.result,
        layers=layers,
        scales=scales,
        inputs=tuple(i.name for i in model.graph.input if i.name not in fed),
        bytes=section.bytes,
        weights=aim.weights,
        baseline=aim.baseline,
        seed=(options.seed, number),
    )


def _layer(network: Network, label: str, quantized: ir.Node, learned: set[str], skip: list[ir.Node]) -> Layer:
    """A layer; what dequantizes its weight and bias is added to ``skip``."""
    node = network.nodes[label]
    source, weight = quantized.inputs[0], quantized.inputs[1]
    bias = quantized.inputs[2] if len(quantized.inputs) > 2 else None
    for value in (weight, bias):
        maker = value.producer() if value is not None else None
        if maker is not None:
            skip.append(maker)
    pair = source.producer() if source is not None else None
    scale = pair.inputs[1] if pair is not None else None
    if scale is None or weight is None:
        raise ValueError(f"node '{label}' does not run on integers")
    return Layer(
        node=label,
        weight=weight_of(node),
        grid=network.grid(label),
        weight_input=str(weight.name),
        bias=bias_of(node),
        bias_input="" if bias is None else str(bias.name),
        step=str(scale.name) if scale.name in learned else float(np.asarray(array(scale))),
    )


def _scales(network: Network, block: Block, section: Section) -> tuple[Scale, ...]:
    read = {str(n.inputs[1].name) for n in section.nodes if n.op_type == "QuantizeLinear" and n.inputs[1]}
    producers = {str(v.name): n for n in network.work.nodes for v in n.outputs}
    found = []
    for group in own_groups(network, block):
        members = network.plan.members(group)
        inputs = tuple(f"{t}_scale" for t in members if f"{t}_scale" in read)
        # A kernel leaves a Clip out because its codes end where the Clip does.
        clipped = any(producers[t].op_type == "Clip" for t in members if t in producers)
        if inputs:
            start = network.params[members[0]].scale
            found.append(Scale(group, start, start * (1.0 if clipped else _MOST_GROWTH), inputs))
    return tuple(found)


def own_groups(network: Network, block: Block) -> list[str]:
    """Same-scale groups whose scale a block may change.

    All that is computed into the group is computed in the block, in the scheme's activation format alone, and
    no operator's definition fixes its range.
    """
    plan, scheme, inside = network.plan, network.scheme, set(block.nodes)
    producers = {str(v.name): n for n in network.work.nodes for v in n.outputs}
    form = scheme.activation
    found = []
    for group in dict.fromkeys(plan.groups.values()):
        members = plan.members(group)
        makers = [producers.get(t) for t in members if t in plan.sources]
        if not makers or any(m is None or name(m) not in inside for m in makers):
            continue
        fixed = any(m is not None and _has_range(m, scheme) for m in makers)
        plain = all(
            network.params[t].format is form
            and network.params[t].wide is None
            and plan.formats.get(t, (form,)) == (form,)
            for t in members
        )
        if plain and not fixed:
            found.append(group)
    return found


def _has_range(node: ir.Node, scheme: Scheme) -> bool:
    rule = scheme.ops.get(node.op_type)
    return rule is not None and rule.range is not None


def has_batch_axis(sections: Sections, task: Task) -> bool:
    """Whether what a task reads and gives has a leading axis of one sample."""
    shapes = [static_shape(sections.values[t]) for t in (*task.inputs, task.result)]
    return all(shape is not None and len(shape) > 1 and shape[0] == 1 for shape in shapes)
