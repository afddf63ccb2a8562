"""Copies where LiteRT's memory planner would let a kernel overwrite a tensor that is still read.

LiteRT lets the result of some operators take the memory of an operand:

1. RESHAPE writes nothing; its result is its operand.
2. ADD, SUB, MUL, DIV and SOFTMAX overwrite an operand of the same size that nothing else reads. If that
   operand is itself in the memory of another tensor, the first tensor in that memory must have one reader.

The tensors between the first one and the operand are not looked at. In ``b = MUL(a); c = RESHAPE(b);
d = SOFTMAX(c); e = TANH(b)`` all of a, b, c and d are in one place, a and c have one reader each, and e is
computed from d (seen in LiteRT 2.3 with its own kernels, in float and int8; not where XNNPACK computes).
Here the SOFTMAX gets a copy of c.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgekit.tflite.lower.builder import Builder, Form, LayoutNote
from edgekit.tflite.model import Operator, Tensor

#: Operators whose kernels may overwrite their first or second operand.
IN_PLACE = frozenset({"ADD", "SUB", "MUL", "DIV", "SOFTMAX"})


def overwritten(
    operators: Sequence[Operator],
    tensors: Mapping[str, Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> tuple[int, str] | None:
    """The first operator, and its operand, that overwrites what a later one reads; None where none does.

    Args:
        operators: In execution order.
        tensors: All tensors by name.
        inputs: Tensors that are inputs of the model.
        outputs: Tensors that are outputs of the model.
    """
    reads = Counter(t for operator in operators for t in operator.inputs if t is not None)
    reads.update((*inputs, *outputs))
    last = {t: i for i, operator in enumerate(operators) for t in operator.inputs if t is not None}
    root: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    for index, operator in enumerate(operators):
        result = operator.outputs[0]
        changes = operator.op in IN_PLACE
        if not (changes or operator.op == "RESHAPE") or result in outputs:
            continue
        for operand in operator.inputs[: 2 if changes else 1]:
            if operand is None or operand in inputs or tensors[operand].data is not None:
                continue
            first = root.get(operand, operand)
            here = places.setdefault(first, [first])
            if changes:
                same_size = tensors[operand].size_bytes == tensors[result].size_bytes
                if not same_size or reads[operand] > 1 or reads[first] > 1:
                    continue
                if any(last.get(t, -1) > index for t in here if t != operand):
                    return index, operand
            root[result] = first
            here.append(result)
            break
    return None


def separate(ctx: Builder, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give operators that would overwrite what is still read a copy of their operand: a SLICE of all of it.

    Args:
        ctx: The finished model.
        inputs: Tensors that are inputs of the model.
        outputs: Tensors that are outputs of the model.
    """
    while (found := overwritten(ctx.operators, ctx.tensors, inputs, outputs)) is not None:
        index, operand = found
        operator, tensor = ctx.operators[index], ctx.tensors[operand]
        copy = ctx.new(f"{operand}_copy", tensor.shape, Form(tensor.dtype, tensor.quantization))
        whole = (operand, ctx.ints("begin", [0] * len(tensor.shape)), ctx.ints("size", tensor.shape))
        changed = tuple(copy if t == operand else t for t in operator.inputs)
        ctx.operators[index : index + 1] = [
            Operator("SLICE", whole, (copy,), {}, operator.source),
            replace(operator, inputs=changed),
        ]
        why = "its kernel in LiteRT would overwrite a tensor that is still read"
        ctx.notes.append((copy, LayoutNote("SLICE", operator.source, why)))
