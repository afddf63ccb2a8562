"""Groups of nodes that one torch function computes faster and with less memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from edgekit.train.ops.base import Call, Kernel
from edgekit.train.ops.quant import RANGES, code_type, fake_quantize
from edgekit.train.program import Step, readers

#: Operators whose result is a new tensor that their own gradient does not need: it may be overwritten.
_OVERWRITABLE = frozenset({"Conv", "ConvTranspose", "BatchNormalization", "Add", "Sub", "Gemm"})
_FLOATING = frozenset({1, 10, 11, 16})


@dataclass(frozen=True)
class _Program:
    """What a rule may look at.

    Attributes:
        made: By tensor name, the step that makes it.
        count: By tensor name, how often it is read or handed out.
    """

    made: dict[str, Step]
    count: Counter[str]

    def only(self, name: str | None, *ops: str) -> Step | None:
        """The step that makes ``name``, if it is one of ``ops`` and nobody else reads the tensor."""
        step = self.made.get(name or "")
        if step is None or self.count[name or ""] != 1 or step.call.op not in ops:
            return None
        return step


def fuse(steps: Sequence[Step], wanted: Collection[str]) -> list[Step]:
    """The steps with a fused one in place of the last of each group; the others may lose their readers.

    1. ``x * sigmoid(x)`` is SiLU and ``x * hardsigmoid(x)`` HardSwish.
    2. ``x * (1 + erf(x / sqrt(2))) * 0.5`` in any order is GELU.
    3. Relu, LeakyRelu and Clip overwrite what a convolution, an addition or a normalization made for them
       alone.
    4. QuantizeLinear and DequantizeLinear with the same parameters are fake quantization; others can still
       read the codes.

    A tensor in ``wanted`` counts as read, so what is handed out is always computed and never overwritten.
    """
    made = {name: step for step in steps for name in step.outputs if name}
    program = _Program(made, readers(steps, wanted))
    fused = []
    for step in steps:
        rules = _RULES.get(step.call.op, ())
        fused.append(next((new for rule in rules if (new := rule(step, program)) is not None), step))
    return fused


def _gated(step: Step, program: _Program) -> Step | None:
    """Rule 1."""
    for x, gate in (step.inputs[:2], step.inputs[1::-1]):
        inner = program.only(gate, "Sigmoid", "HardSigmoid")
        if inner is None or inner.inputs[0] != x:
            continue
        if inner.call.op == "Sigmoid":
            return replace(step, kernel=silu, inputs=(x,))
        slope, offset = inner.call.get("alpha", 0.2), inner.call.get("beta", 0.5)
        if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5:
            return replace(step, kernel=hard_swish, inputs=(x,))
    return None


def _gelu(step: Step, program: _Program) -> Step | None:
    """Rule 2."""
    factors, half = _factors(step, program)
    if len(factors) != 2 or not math.isclose(half, 0.5, rel_tol=1e-5):
        return None
    for x, gate in (factors, factors[::-1]):
        plus = program.only(gate, "Add")
        erf = program.only(_other(plus, 1.0), "Erf")
        scaled = program.only(erf.inputs[0], "Mul", "Div") if erf else None
        if scaled is None:
            continue
        factor = math.sqrt(0.5) if scaled.call.op == "Mul" else math.sqrt(2)
        if _other(scaled, factor) == x and (scaled.call.op == "Mul" or scaled.inputs[0] == x):
            return replace(step, kernel=gelu, inputs=(x,))
    return None


def _factors(step: Step, program: _Program) -> tuple[list[str | None], float]:
    """The tensors that a chain of products multiplies, and the product of the numbers among them."""
    tensors: list[str | None] = []
    number = 1.0
    for i, name in enumerate(step.inputs):
        inner = program.only(name, "Mul")
        if _number(step, i) is not None:
            number *= _number(step, i) or 0.0
        elif inner is not None and len(step.inputs) == 2:
            more, factor = _factors(inner, program)
            tensors += more
            number *= factor
        else:
            tensors.append(name)
    return tensors, number


def _number(step: Step, position: int) -> float | None:
    value = step.call.constants.get(position)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _other(step: Step | None, number: float) -> str | None:
    """The operand beside a constant that is about ``number``."""
    if step is None:
        return None
    for i in range(len(step.inputs)):
        found = _number(step, i)
        if found is not None and math.isclose(found, number, rel_tol=1e-5):
            return step.inputs[1 - i]
    return None


def _overwriting(step: Step, program: _Program) -> Step | None:
    """Rule 3."""
    if step.call.input_types[:1] and step.call.input_types[0] not in _FLOATING:
        return None
    alone = program.only(step.inputs[0], *_OVERWRITABLE) is not None
    if step.call.op == "Clip":
        low, high = (_number(step, i) for i in (1, 2))
        if low is None or high is None or low >= high:
            return None
        return replace(step, kernel=clip_in_place if alone else clip, inputs=step.inputs[:1])
    if not alone:
        return None
    return replace(step, kernel=relu_in_place if step.call.op == "Relu" else leaky_relu_in_place)


def _pair(step: Step, program: _Program) -> Step | None:
    """Rule 4."""
    quantize = program.made.get(step.inputs[0] or "")
    if quantize is None or quantize.call.op != "QuantizeLinear":
        return None
    same = quantize.inputs[1:3] == step.inputs[1:3] and all(
        quantize.call.get(name, default) == step.call.get(name, default)
        for name, default in (("axis", 1), ("block_size", 0))
    )
    plain = code_type(quantize.call) in RANGES and not quantize.call.get("precision", 0)
    if not same or not plain or step.call.get("output_dtype", 0) not in (0, 1):
        return None
    return replace(step, kernel=fake_quantize, call=quantize.call, inputs=quantize.inputs)


_RULES: dict[str, tuple[Callable[[Step, _Program], Step | None], ...]] = {
    "Mul": (_gated, _gelu),
    "Relu": (_overwriting,),
    "LeakyRelu": (_overwriting,),
    "Clip": (_overwriting,),
    "DequantizeLinear": (_pair,),
}


def silu(call: Call, x: Tensor) -> Tensor:
    return functional.silu(x)


def hard_swish(call: Call, x: Tensor) -> Tensor:
    return functional.hardswish(x)


def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x)


def relu_in_place(call: Call, x: Tensor) -> Tensor:
    return functional.relu_(x)


def leaky_relu_in_place(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu_(x, call.get("alpha", 0.01))


def _bounds(call: Call) -> tuple[float, float]:
    return float(call.constants[1].reshape(-1)[0]), float(call.constants[2].reshape(-1)[0])


def clip(call: Call, x: Tensor) -> Tensor:
    """One kernel forward and one backward, where clamp has five."""
    return functional.hardtanh(x, *_bounds(call))


def clip_in_place(call: Call, x: Tensor) -> Tensor:
    return functional.hardtanh_(x, *_bounds(call))


#: Kernels that stand for several nodes.
FUSED: tuple[Kernel, ...] = (silu, hard_swish, gelu, relu_in_place, leaky_relu_in_place, clip, clip_in_place)
