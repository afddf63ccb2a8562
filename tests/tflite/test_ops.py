"""The table of operators against what LiteRT accepts, what XNNPACK takes, and the reference's kernels."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.lower.registry import LOWERINGS
from edgekit.tflite.model import DType, Tensor, TfliteModel
from edgekit.tflite.ops import OPS, ops_page
from edgekit.tflite.reference.base import supported_ops
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.write import write_model

ROOT = Path(__file__).parents[2]
IMAGE = (1, 4, 6, 8)

#: Output scale and zero point that the kernels insist on, for int8 and for int16.
FIXED: dict[str, dict[DType, tuple[float, int]]] = {
    "LOGISTIC": {DType.INT8: (1 / 256, -128), DType.INT16: (1 / 32768, 0)},
    "TANH": {DType.INT8: (1 / 128, 0), DType.INT16: (1 / 32768, 0)},
    "SOFTMAX": {DType.INT8: (1 / 256, -128), DType.INT16: (1 / 32768, 0)},
    "LOG_SOFTMAX": {DType.INT8: (1 / 16, 127), DType.INT16: (1 / 2048, 0)},
    "L2_NORMALIZATION": {DType.INT8: (1 / 128, 0), DType.INT16: (1 / 32768, 0)},
}

#: Shapes of data inputs, of outputs, the constants behind the data, and options.
Form = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]], Sequence[Any], dict[str, Any]]
POOL: dict[str, Any] = {"padding": "VALID", "strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2}
BOTH: Form = ([IMAGE, IMAGE], [IMAGE], (), {})
FORMS: dict[str, Form] = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"), BOTH),
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), ([IMAGE], [(1, 1, 1, 8)], [[1, 2]], {"keepDims": True})
    ),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), ([IMAGE], [(1, 2, 3, 8)], (), POOL)),
    "LEAKY_RELU": ([IMAGE], [IMAGE], (), {"alpha": 0.1}),
    "SOFTMAX": ([IMAGE], [IMAGE], (), {"beta": 1.0}),
    "BATCH_MATMUL": ([(1, 4, 6), (1, 6, 5)], [(1, 4, 5)], (), {}),
    "CONCATENATION": ([IMAGE, IMAGE], [(1, 4, 6, 16)], (), {"axis": 3}),
    "RESHAPE": ([IMAGE], [(1, 24, 8)], [[1, 24, 8]], {"newShape": (1, 24, 8)}),
    "TRANSPOSE": ([IMAGE], [(1, 8, 4, 6)], [[0, 3, 1, 2]], {}),
    "SLICE": ([IMAGE], [(1, 2, 6, 8)], [[0, 1, 0, 0], [1, 2, 6, 8]], {}),
    "STRIDED_SLICE": ([IMAGE], [(1, 2, 3, 8)], [[0, 0, 0, 0], [1, 4, 6, 8], [1, 2, 2, 1]], {}),
    "SPLIT_V": ([IMAGE], [(1, 4, 6, 3), (1, 4, 6, 5)], [[3, 5], 3], {"numSplits": 2}),
    "TILE": ([IMAGE], [(1, 8, 6, 8)], [[1, 2, 1, 1]], {}),
    "BROADCAST_TO": ([(1, 1, 1, 8)], [IMAGE], [list(IMAGE)], {}),
    "PACK": ([IMAGE, IMAGE], [(2, *IMAGE)], (), {"axis": 0, "valuesCount": 2}),
    "UNPACK": ([(2, 3, 4)], [(3, 4), (3, 4)], (), {"axis": 0, "num": 2}),
    "SPACE_TO_DEPTH": ([IMAGE], [(1, 2, 3, 32)], (), {"blockSize": 2}),
    "DEPTH_TO_SPACE": ([IMAGE], [(1, 8, 12, 2)], (), {"blockSize": 2}),
    "PAD": ([IMAGE], [(1, 6, 8, 8)], [[[0, 0], [1, 1], [1, 1], [0, 0]]], {}),
    "MIRROR_PAD": ([IMAGE], [(1, 6, 8, 8)], [[[0, 0], [1, 1], [1, 1], [0, 0]]], {"mode": "REFLECT"}),
    "GATHER": ([IMAGE], [(1, 4, 2, 8)], [[3, 1]], {"axis": 2}),
    "RESIZE_BILINEAR": ([IMAGE], [(1, 8, 12, 8)], [[8, 12]], {"halfPixelCenters": True}),
    "RESIZE_NEAREST_NEIGHBOR": ([IMAGE], [(1, 8, 12, 8)], [[8, 12]], {"halfPixelCenters": True}),
}


def weights(make: Any, dtype: DType, shape: Sequence[int], channels: int, axis: int) -> list[Tensor]:
    """int8 weights with a scale for each channel, and the bias of the activations' type."""
    rng = np.random.default_rng(0)
    weight = make.tensor("w", shape, [0.01] * channels, axis=axis, data=rng.integers(-127, 127, shape))
    wide = DType.INT64 if dtype is DType.INT16 else DType.INT32
    bias = make.tensor("b", (channels,), [0.05 * 0.01] * channels, dtype=wide, data=np.zeros(channels))
    return [weight, bias]


def special(make: Any, op: str, dtype: DType) -> tuple[list[Tensor], list[Tensor], dict[str, Any]] | None:
    """Operators whose constants are not plain integers behind the data."""
    x, y = make.tensor("x", IMAGE, 0.05, dtype=dtype), make.tensor("y", IMAGE, 0.05, dtype=dtype)
    same: dict[str, Any] = {"padding": "SAME", "strideW": 1, "strideH": 1}
    if op == "CONV_2D":
        return [x, *weights(make, dtype, (8, 3, 3, 8), 8, 0)], [y], same
    if op == "DEPTHWISE_CONV_2D":
        return [x, *weights(make, dtype, (1, 3, 3, 8), 8, 3)], [y], same | {"depthMultiplier": 1}
    if op == "TRANSPOSE_CONV":
        weight, bias = weights(make, dtype, (8, 2, 2, 8), 8, 0)
        big = make.tensor("y", (1, 8, 12, 8), 0.05, dtype=dtype)
        options = {"padding": "VALID", "strideW": 2, "strideH": 2}
        return [make.constant("s", [1, 8, 12, 8]), weight, x, bias], [big], options
    if op == "FULLY_CONNECTED":
        flat, wide = make.tensor("x", (1, 8), 0.05, dtype=dtype), make.tensor("y", (1, 5), 0.05, dtype=dtype)
        weight, bias = weights(make, dtype, (5, 8), 5, 0)
        return [flat, weight, bias], [wide], {"keepNumDims": True}
    if op == "PRELU":
        return [x, make.tensor("a", (1, 1, 8), 0.01, data=np.arange(8), dtype=DType.INT8)], [y], {}
    if op == "PADV2":
        fill = make.tensor("v", (1,), 0.05, dtype=dtype, data=[-7])
        return (
            [x, make.constant("p", [[0, 0], [1, 1], [1, 1], [0, 0]]), fill],
            [make.tensor("y", (1, 6, 8, 8), 0.05, dtype=dtype)],
            {},
        )
    if op == "SPLIT":
        halves = [make.tensor(name, (1, 4, 6, 4), 0.05, dtype=dtype) for name in ("y", "z")]
        return [make.constant("axis", 3), x], halves, {"numSplits": 2}
    if op == "ARG_MAX":
        return (
            [x, make.constant("axis", [3])],
            [make.tensor("y", IMAGE[:3], dtype=DType.INT32)],
            {"outputType": "INT32"},
        )
    if op in ("CAST", "DEQUANTIZE"):
        return [x], [make.tensor("y", IMAGE, dtype=DType.FLOAT32)], {}
    if op == "QUANTIZE":
        return [make.tensor("x", IMAGE, dtype=DType.FLOAT32)], [y], {}
    return None


def example(make: Any, op: str, dtype: DType) -> TfliteModel:
    """A small model of one operator with quantized activations."""
    found = special(make, op, dtype)
    if found is not None:
        return make.model(op, found[0], found[1], **found[2])  # type: ignore[no-any-return]
    inputs, outputs, constants, options = FORMS.get(op, ([IMAGE], [IMAGE], (), {}))
    data = [make.tensor(f"x{i}", shape, 0.05, dtype=dtype) for i, shape in enumerate(inputs)]
    behind = [make.constant(f"c{i}", values) for i, values in enumerate(constants)]
    scale, zero_point = FIXED.get(op, {}).get(dtype, (0.05, 0))
    results = [make.tensor(f"y{i}", shape, scale, zero_point, dtype=dtype) for i, shape in enumerate(outputs)]
    return make.model(op, [*data, *behind], results, **options)  # type: ignore[no-any-return]


def positive(model: TfliteModel) -> dict[str, Any]:
    """Inputs that every operator is defined for."""
    return {
        name: np.full(model.tensors[t].shape, 5, model.tensors[t].dtype.numpy)
        for name, t in model.inputs.items()
    }


def runs(model: TfliteModel) -> bool:
    """Whether LiteRT has a kernel: some refuse a type when they are prepared, others when they run."""
    try:
        LiteRt(write_model(model), Kernels.OPTIMIZED).run(positive(model))
    except EdgekitError:
        return False
    return True


def delegated(model: TfliteModel) -> bool:
    """Whether XNNPACK takes the operator: the interpreter then lists the delegate beside it."""
    interpreter = LiteRt(write_model(model), Kernels.XNNPACK)._interpreter
    return any("delegate" in detail["op_name"].lower() for detail in interpreter._get_ops_details())


def test_every_operator_has_a_kernel_in_the_reference_and_the_other_way_round() -> None:
    Reference(TfliteModel({}, (), {}, {}))  # imports every kernel
    assert sorted(OPS) == list(supported_ops())
    assert all(info.op == op for op, info in OPS.items())


def test_the_onnx_operators_are_those_that_are_lowered() -> None:
    importlib.import_module("edgekit.tflite.lower.lower")  # registers every lowering
    named = {op for info in OPS.values() for op in info.onnx}
    # These two become nothing, the others come with the quantized form.
    assert named - {"QuantizeLinear", "DequantizeLinear"} == set(LOWERINGS) - {"Identity", "Dropout"}


@pytest.mark.parametrize("op", sorted(OPS))
def test_the_integer_types_are_those_of_litert(one_op: Any, op: str) -> None:
    pytest.importorskip("ai_edge_litert")
    assert {dtype.value: runs(example(one_op, op, dtype)) for dtype in (DType.INT8, DType.INT16)} == {
        "int8": OPS[op].int8,
        "int16": OPS[op].int16,
    }


@pytest.mark.parametrize("op", sorted(op for op, info in OPS.items() if info.int8))
def test_xnnpack_takes_what_the_table_says(one_op: Any, op: str) -> None:
    pytest.importorskip("ai_edge_litert")
    assert delegated(example(one_op, op, DType.INT8)) == OPS[op].xnnpack


@pytest.mark.parametrize("op", ["POW", "SQUARE"])
def test_some_operators_have_no_integer_kernel_at_all(one_op: Any, op: str) -> None:
    pytest.importorskip("ai_edge_litert")
    shapes = [IMAGE, IMAGE] if op == "POW" else [IMAGE]
    inputs = [one_op.tensor(f"x{i}", shape, 0.05) for i, shape in enumerate(shapes)]
    assert op not in OPS
    assert not runs(one_op.model(op, inputs, [one_op.tensor("y", IMAGE, 0.05)]))


def test_the_page_names_every_operator() -> None:
    page = ops_page()
    assert all(f"| {op} |" in page for op in OPS)
    assert "| CONV_2D | Conv | yes | yes | yes |" in page


def test_the_stored_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "tflite_ops_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
