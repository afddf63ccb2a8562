"""What LiteRT's planner overwrites: the prediction against LiteRT itself, and the copies that prevent it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.lower.builder import Builder
from edgekit.tflite.lower.memory import IN_PLACE, overwritten, separate
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.write import write_model

pytest.importorskip("ai_edge_litert")

SHAPE: tuple[int, ...] = (6, 12)
ROWS: tuple[int, ...] = (72, 1)
#: Steps of (operator, operand, result); outputs; whether LiteRT overwrites what is read later.
CASES: dict[str, tuple[list[tuple[str, str, str]], list[str], bool]] = {
    "read later": ([("{op}", "b", "d"), ("TANH", "d", "o1"), ("TANH", "a", "o2")], ["o1", "o2"], True),
    "reshaped later": ([("{op}", "b", "d"), ("TANH", "d", "o1"), ("RESHAPE", "a", "o2")], ["o1", "o2"], True),
    "reshaped before": (
        [("RESHAPE", "a", "c"), ("{op}", "b", "d"), ("TANH", "d", "o1"), ("TANH", "c", "o2")],
        ["o1", "o2"],
        True,
    ),
    "read before": ([("TANH", "a", "o2"), ("{op}", "b", "d"), ("TANH", "d", "o1")], ["o1", "o2"], False),
    "read again itself": (
        [("{op}", "b", "d"), ("TANH", "d", "o1"), ("TANH", "b", "o2")],
        ["o1", "o2"],
        False,
    ),
    "an output": ([("{op}", "b", "d"), ("TANH", "d", "o1")], ["o1", "a"], False),
    "nothing else": ([("{op}", "b", "d"), ("TANH", "d", "o1")], ["o1"], False),
}


def model_of(case: str, op: str, dtype: DType, first: str = "MUL") -> tuple[TfliteModel, bool]:
    """``x -> TANH -> r -> first -> a -> RESHAPE -> b``, then the steps of a case."""
    steps, outputs, harmed = CASES[case]
    steps = [("TANH", "x", "r"), (first, "r", "a"), ("RESHAPE", "a", "b"), *steps]
    integers = dtype is DType.INT8
    tensors: dict[str, Tensor] = {}

    def add(name: str, shape: Sequence[int], data: Any = None, *, soft: bool = False) -> str:
        # SOFTMAX fixes the scale of its result.
        step = Quantization.single(1 / 256, -128) if soft else Quantization.single(1 / 128, 0)
        tensors[name] = Tensor(name, tuple(shape), dtype, step if integers else None, data)
        return name

    add("x", SHAPE)
    add("factor", (1,), np.array([3], dtype.numpy))
    for label, shape in (("rows", ROWS), ("plain", SHAPE)):
        tensors[label] = Tensor(label, (2,), DType.INT32, None, np.array(shape, np.int32))
    operators = []
    for kind, operand, result in steps:
        kind = kind.format(op=op)
        shape = tensors[operand].shape
        inputs = [operand]
        options: dict[str, Any] = {}
        if kind == "RESHAPE":
            shape = ROWS if shape == SHAPE else SHAPE
            inputs.append("rows" if shape == ROWS else "plain")
            options = {"newShape": list(shape)}
        elif kind == "SOFTMAX":
            options = {"beta": 1.0}
        elif kind in IN_PLACE:
            inputs.append("factor")
        add(result, shape, soft=kind == "SOFTMAX")
        operators.append(Operator(kind, tuple(inputs), (result,), options))
    model = TfliteModel(tensors, tuple(operators), {"x": "x"}, {o: o for o in outputs})
    return model, harmed


def harmed_outputs(model: TfliteModel) -> list[str]:
    """Outputs that LiteRT computes wrongly, told by what it computes where no memory is shared."""
    data, random = write_model(model), np.random.default_rng(0)
    dtype = model.tensors["x"].dtype.numpy
    values = {"x": (random.normal(0, 1, SHAPE) * (50 if dtype == np.int8 else 1)).astype(dtype)}
    kept = LiteRt(data, Kernels.REFERENCE, keep_all=True).run(values)
    found = LiteRt(data, Kernels.REFERENCE).run(values)
    return [name for name in kept if not np.array_equal(kept[name], found[name])]


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.INT8])
@pytest.mark.parametrize("case", CASES)
def test_what_litert_overwrites_is_foreseen(case: str, dtype: DType) -> None:
    kinds = sorted(IN_PLACE) if dtype is DType.FLOAT32 else ["ADD", "MUL", "SUB", "SOFTMAX"]
    for op in kinds:
        model, harmed = model_of(case, op, dtype)
        found = overwritten(model.operators, model.tensors, ["x"], list(model.outputs.values()))
        assert (found is not None) is harmed
        assert bool(harmed_outputs(model)) is harmed
        # A kernel with memory of its own in front, and nothing is in danger.
        calm, _ = model_of(case, op, dtype, first="TANH")
        assert overwritten(calm.operators, calm.tensors, ["x"], list(calm.outputs.values())) is None
        assert not harmed_outputs(calm)


@pytest.mark.parametrize("op", ["TANH", "LOGISTIC", "HARD_SWISH", "RELU", "GELU"])
def test_other_kernels_have_memory_of_their_own(op: str) -> None:
    model, _ = model_of("read later", op, DType.FLOAT32)
    assert overwritten(model.operators, model.tensors, ["x"], ["o1", "o2"]) is None
    assert not harmed_outputs(model)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.INT8])
@pytest.mark.parametrize("case", [name for name, (_, _, harmed) in CASES.items() if harmed])
def test_a_copy_keeps_what_is_read_later(case: str, dtype: DType) -> None:
    model, _ = model_of(case, "SOFTMAX", dtype)
    ctx = Builder(quantized=dtype is DType.INT8)
    ctx.tensors, ctx.operators = dict(model.tensors), list(model.operators)
    separate(ctx, ["x"], list(model.outputs.values()))
    repaired = TfliteModel(ctx.tensors, tuple(ctx.operators), model.inputs, model.outputs)
    assert repaired.counts()["SLICE"] == 1
    assert [note.op for _, note in ctx.notes] == ["SLICE"]
    assert not harmed_outputs(repaired)


def test_lowered_networks_hold_no_danger(net: Any, agree: Any) -> None:
    n = net(789)
    x = n.op("ReduceMean", n.conv(n.input(1, 6, 4, 6), 6, 12, (1, 1)), n.ints(1))
    x = n.op("Mul", x, n.const(n.rng.normal(0, 1, (1, 1, 4, 6))))
    soft = n.op("Softmax", n.op("Reshape", x, n.ints(3, 8)), axis=-1)
    found = agree(n.graph(n.op("Tanh", soft), n.op("Reshape", x, n.ints(1, 12, 2))))
    assert found.counts["SLICE"] == 1
    assert found.steps < 1e-5
