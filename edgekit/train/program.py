"""A graph as a list of kernel calls, with the dead ones left out and the tensors freed in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgekit.train.ops.base import Array, Call, Kernel


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Attributes:
        kernel: What computes it.
        call: The node in evaluation mode, at the batch that the graph was captured with.
        inputs: Tensor names; None where an optional input is left out.
        outputs: Tensor names; "" where an optional output is left out.
        free: Tensors that nobody reads after this step.
    """

    kernel: Kernel
    call: Call
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    free: tuple[str, ...] = ()


def attributes(node: ir.Node) -> dict[str, Any]:
    """Attributes as Python values, tensors as NumPy arrays; subgraphs are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attributes.values():
        kind = attribute.type
        if kind == ir.AttributeType.TENSOR:
            found[attribute.name] = attribute.as_tensor().numpy()
        elif kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            found[attribute.name] = list(attribute.value)
        elif kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            found[attribute.name] = attribute.value
    return found


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape that the graph states, or None where a dimension is open."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape.numpy())


def _type_of(value: ir.Value | None) -> int | None:
    return None if value is None or value.dtype is None else int(value.dtype)


def step_for(node: ir.Node, kernel: Kernel, opset: int, constants: Mapping[str, Array]) -> Step:
    """The call that a node stands for; ``constants`` are the values known by tensor name."""
    inputs = tuple(None if v is None or not v.name else v.name for v in node.inputs)
    known = {i: constants[name] for i, name in enumerate(inputs) if name is not None and name in constants}
    call = Call(
        name=node.name or str(node.outputs[0].name),
        op=node.op_type,
        attributes=attributes(node),
        opset=opset,
        constants=known,
        outputs=len(node.outputs),
        input_shapes=tuple(shape_of(v) for v in node.inputs),
        output_shapes=tuple(shape_of(v) for v in node.outputs),
        input_types=tuple(_type_of(v) for v in node.inputs),
        output_types=tuple(_type_of(v) for v in node.outputs),
    )
    return Step(kernel, call, inputs, tuple(v.name or "" for v in node.outputs))


def needed(steps: Iterable[Step], wanted: Collection[str]) -> list[Step]:
    """The steps that ``wanted`` depends on, each told how many outputs to compute and what to free after."""
    live, later, kept = set(wanted), set(wanted), []
    for step in reversed(list(steps)):
        used = [i for i, name in enumerate(step.outputs) if name and name in live]
        if not used:
            continue
        reads = {name for name in step.inputs if name is not None}
        last = used[-1] + 1
        dead = (reads | set(step.outputs[:last])) - later
        later |= reads | set(step.outputs[:last])
        live |= reads
        kept.append(
            replace(
                step,
                call=replace(step.call, outputs=last),
                outputs=step.outputs[:last],
                free=tuple(sorted(dead - {""})),
            )
        )
    return kept[::-1]


def readers(steps: Iterable[Step], wanted: Iterable[str]) -> Counter[str]:
    """How often each tensor is read, counting those that are handed out."""
    count = Counter(wanted)
    for step in steps:
        count.update(name for name in step.inputs if name is not None)
    return count
