"""Element-wise arithmetic and changes of scale of the integer reference, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, TfliteModel
from edgekit.tflite.reference.run import Reference

TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]
SHAPES = [
    ((2, 6, 7, 8), (2, 6, 7, 8)),
    ((2, 6, 7, 8), (1, 1, 1, 8)),
    ((2, 6, 7, 8), (8,)),
    ((1, 6, 7, 8), ()),
    ((2, 1, 7, 1), (2, 6, 1, 8)),
]
#: Output scale in units of the inputs', so that the output's range is filled.
OUTPUT = {"ADD": 1.1, "SUB": 0.9, "MUL": 3.1, "SQUARED_DIFFERENCE": 9.0}


def binary(
    one_op: Any,
    op: str,
    dtype: DType,
    shapes: Any = SHAPES[0],
    scales: tuple[float, float, float] | None = None,
    **options: Any,
) -> TfliteModel:
    step, asymmetric = (0.07, 1) if dtype is DType.INT8 else (0.00027, 0)
    if op == "MUL" and dtype is DType.INT16:
        options.setdefault("fusedActivationFunction", "NONE")
    second = 0.44 * step
    third = OUTPUT.get(op, 1.0) * step * (1 if dtype is DType.INT8 or op != "MUL" else 2)
    found = scales or (step, second, third)
    if dtype is DType.FLOAT32:
        found = (None, None, None)  # type: ignore[assignment]
    zero_points = [zero * asymmetric for zero in (5, -9, 7)]
    return one_op.model(  # type: ignore[no-any-return]
        op,
        [
            one_op.tensor(name, shape, found[i], zero_points[i], dtype=dtype)
            for i, (name, shape) in enumerate(zip("ab", shapes, strict=True))
        ],
        [one_op.tensor("out", np.broadcast_shapes(*shapes), found[2], zero_points[2], dtype=dtype)],
        **options,
    )


@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("activation", ["NONE", "RELU", "RELU6"])
def test_add_sub_mul(one_op: Any, op: str, dtype: DType, shapes: Any, activation: str) -> None:
    one_op.check(binary(one_op, op, dtype, shapes, fusedActivationFunction=activation))


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT32])
@pytest.mark.parametrize("shapes", SHAPES)
def test_squared_difference(one_op: Any, dtype: DType, shapes: Any) -> None:
    one_op.check(binary(one_op, "SQUARED_DIFFERENCE", dtype, shapes))


@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL"])
@pytest.mark.parametrize("scales", [(0.5, 0.0001, 0.5), (0.0003, 0.7, 0.02), (3e-5, 2e-5, 8.0)])
def test_scales_far_apart(one_op: Any, op: str, scales: tuple[float, float, float]) -> None:
    one_op.check(binary(one_op, op, DType.INT8, scales=scales))


@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL"])
def test_an_output_scale_far_below_the_inputs(one_op: Any, op: str) -> None:
    # The optimized kernels narrow to 16 bits before they clamp, so codes beyond wrap around;
    # XNNPACK leaves such scales to them.
    one_op.check(binary(one_op, op, DType.INT8, scales=(1.0, 1.0, 0.001)), optimized=None, xnnpack=None)


@pytest.mark.parametrize("dtype", [DType.INT16])
def test_16_bit_sums_of_powers_of_two(one_op: Any, refused: Callable[..., str], dtype: DType) -> None:
    scales = (2.0**-12, 2.0**-12, 2.0**-11)
    one_op.check(binary(one_op, "ADD", dtype, scales=scales, potScaleInt16=False))
    model = binary(one_op, "ADD", dtype, scales=scales)
    message = refused(ModelError, Reference(model).run, one_op.values(model))
    assert "ADD out: all scales are powers of two" in message
    assert "Set the option potScaleInt16=False" in message


def test_factors_that_end_litert_are_refused(one_op: Any, refused: Callable[..., str]) -> None:
    model = binary(one_op, "SQUARED_DIFFERENCE", DType.INT8, scales=(1.0, 1.0, 0.0001))
    message = refused(ModelError, Reference(model).run, one_op.values(model))
    assert "a step of its inputs is worth 2.44 steps of the output" in message


@pytest.mark.parametrize("op", ["SQUARED_DIFFERENCE", "DIV"])
def test_types_without_a_kernel(one_op: Any, refused: Callable[..., str], op: str) -> None:
    model = binary(one_op, op, DType.INT16)
    assert f"{op} out: " in refused(ModelError, Reference(model).run, one_op.values(model))


def test_div(one_op: Any) -> None:
    one_op.check(binary(one_op, "DIV", DType.FLOAT32, fusedActivationFunction="RELU6"))


@pytest.mark.parametrize("op", ["MAXIMUM", "MINIMUM"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_maximum_minimum(one_op: Any, op: str, dtype: DType, shapes: Any) -> None:
    scale, zero = (None, 0) if dtype is DType.FLOAT32 else (0.1, 4 if dtype is DType.INT8 else 0)
    tensors = [
        one_op.tensor(name, shape, scale, zero, dtype=dtype) for name, shape in zip("ab", shapes, strict=True)
    ]
    out = one_op.tensor("out", np.broadcast_shapes(*shapes), scale, zero, dtype=dtype)
    one_op.check(one_op.model(op, tensors, [out]))


def test_maximum_of_two_scales_is_refused(one_op: Any, refused: Callable[..., str]) -> None:
    model = binary(one_op, "MAXIMUM", DType.INT8)
    message = refused(ModelError, Reference(model).run, one_op.values(model))
    assert "MAXIMUM out: MAXIMUM compares codes: 'a' needs the output's scale and zero point" in message


@pytest.mark.parametrize("source", [DType.INT8, DType.INT16])
@pytest.mark.parametrize("target", [DType.INT8, DType.INT16])
@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
def test_requantize(one_op: Any, source: DType, target: DType, factor: float) -> None:
    steps = {DType.INT8: 0.1, DType.INT16: 0.1 / 256}
    zero_points = {DType.INT8: 5, DType.INT16: 0}
    model = one_op.model(
        "QUANTIZE",
        [one_op.tensor("x", (3, 500), steps[source], zero_points[source], dtype=source)],
        [one_op.tensor("y", (3, 500), steps[target] * factor, -zero_points[target], dtype=target)],
    )
    one_op.check(model)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16])
def test_quantize_floats(one_op: Any, dtype: DType) -> None:
    step, zero = (0.0123, 5) if dtype is DType.INT8 else (0.00007, 0)
    model = one_op.model(
        "QUANTIZE",
        [one_op.tensor("x", (3, 500), dtype=DType.FLOAT32)],
        [one_op.tensor("y", (3, 500), step, zero, dtype=dtype)],
    )
    values = one_op.values(model)
    # Halves, and values far outside the range. The quotients fit in 32 bits, beyond which LiteRT's cast is
    # undefined.
    values["x"][0, :100] = (np.arange(100, dtype=np.float32) - 50.5) * np.float32(step)
    values["x"][0, 100:102] = [1e4, -1e4]
    # XNNPACK multiplies by the reciprocal: one step apart at halves.
    one_op.check(model, values)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT16])
def test_dequantize(one_op: Any, dtype: DType) -> None:
    model = one_op.model(
        "DEQUANTIZE",
        [one_op.tensor("x", (3, 500), 0.0123, 5 if dtype is DType.INT8 else 0, dtype=dtype)],
        [one_op.tensor("y", (3, 500), dtype=DType.FLOAT32)],
    )
    one_op.check(model)


def test_dequantize_channels(one_op: Any) -> None:
    model = one_op.model(
        "DEQUANTIZE",
        [one_op.tensor("x", (4, 3), [0.1, 0.2, 0.3], axis=1)],
        [one_op.tensor("y", (4, 3), dtype=DType.FLOAT32)],
    )
    one_op.check(model)
