"""Convolutions of the integer reference, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.tflite.model import DType, TfliteModel
from edgekit.tflite.reference.conv import matmul
from edgekit.tflite.reference.run import Reference

BIAS = {DType.INT8: DType.INT32, DType.INT16: DType.INT64, DType.FLOAT32: DType.FLOAT32}
TYPES = [DType.INT8, DType.INT16, DType.FLOAT32]


def convolution(
    one_op: Any,
    op: str = "CONV_2D",
    dtype: DType = DType.INT8,
    *,
    image: tuple[int, ...] = (1, 9, 11, 6),
    channels: int = 8,
    taps: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    groups: int = 1,
    activation: str = "NONE",
    per_channel: bool = True,
    seed: int = 0,
) -> TfliteModel:
    """A convolution whose outputs fill their range, with saturation at both ends."""
    rng = np.random.default_rng(seed)
    depthwise, is_float = op == "DEPTHWISE_CONV_2D", dtype is DType.FLOAT32
    depth = image[-1]
    shape = (1, *taps, channels) if depthwise else (channels, *taps, depth // groups)
    weight = rng.integers(-127, 128, shape)
    scales = rng.uniform(0.002, 0.01, channels if per_channel else 1)
    step = 0.05 if dtype is DType.INT8 else 0.0002
    sizes = [
        -(-size // stride) if padding == "SAME" else -(-(size - (k - 1) * dilation) // stride)
        for size, k, stride, dilation in zip(image[1:3], taps, strides, dilations, strict=True)
    ]
    gain = 75 * scales.mean() * np.sqrt(np.prod(taps) * (1 if depthwise else depth // groups))
    quantized = (lambda scale, zero=0: (None, 0)) if is_float else (lambda scale, zero=0: (scale, zero))
    asymmetric = 1 if dtype is DType.INT8 else 0
    stored = {"dtype": DType.FLOAT32 if is_float else DType.INT8, "axis": 3 if depthwise else 0}
    bias = rng.integers(-3000, 3000, channels)
    tensor = one_op.tensor
    return one_op.model(  # type: ignore[no-any-return]
        op,
        [
            tensor("image", image, *quantized(step, 7 * asymmetric), dtype=dtype),
            tensor("weight", shape, *quantized(scales), **stored, data=weight),
            tensor("bias", (channels,), *quantized(step * scales), dtype=BIAS[dtype], data=bias),
        ],
        [tensor("out", (image[0], *sizes, channels), *quantized(step * gain, -3 * asymmetric), dtype=dtype)],
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        dilationHFactor=dilations[0],
        dilationWFactor=dilations[1],
        fusedActivationFunction=activation,
        **({"depthMultiplier": channels // depth} if depthwise else {}),
    )


CASES: list[dict[str, Any]] = [
    {},
    {"per_channel": False},
    {"strides": (2, 2)},
    {"strides": (2, 1), "taps": (2, 5)},
    {"strides": (3, 2), "taps": (1, 1)},
    {"padding": "VALID", "strides": (2, 2), "taps": (2, 4)},
    {"dilations": (2, 3)},
    {"dilations": (2, 2), "padding": "VALID"},
    {"activation": "RELU"},
    {"activation": "RELU6"},
    {"activation": "RELU_N1_TO_1"},
    {"image": (2, 5, 4, 6)},
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "case", [*CASES, {"groups": 2}, {"groups": 6, "channels": 12}, {"image": (1, 3, 3, 700)}]
)
def test_conv_2d(one_op: Any, dtype: DType, case: dict[str, Any]) -> None:
    out = one_op.check(convolution(one_op, dtype=dtype, **case))["out"]
    assert len(np.unique(out)) > 10 or dtype is DType.FLOAT32


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", [*CASES, {"channels": 6}, {"channels": 18, "taps": (5, 5)}])
def test_depthwise_conv_2d(one_op: Any, dtype: DType, case: dict[str, Any]) -> None:
    case = {"channels": 12, **case}
    out = one_op.check(convolution(one_op, "DEPTHWISE_CONV_2D", dtype, **case))["out"]
    assert len(np.unique(out)) > 10 or dtype is DType.FLOAT32


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depth=st.integers(1, 5),
    dtype=st.sampled_from([DType.INT8, DType.INT16]),
    seed=st.integers(0, 99),
)
def test_any_geometry(
    one_op: Any, size: Any, taps: Any, strides: Any, depth: int, dtype: DType, seed: int
) -> None:
    model = convolution(
        one_op, dtype=dtype, image=(1, *size, depth), channels=3, taps=taps, strides=strides, seed=seed
    )
    one_op.check(model, seed=seed)


def transposed(
    one_op: Any, dtype: DType, taps: int, stride: int, padding: str, bias: bool = True
) -> TfliteModel:
    rng = np.random.default_rng(taps)
    size, depth, channels = (4, 5), 6, 7
    out = [n * stride if padding == "SAME" else (n - 1) * stride + taps for n in size]
    is_float = dtype is DType.FLOAT32
    scales = rng.uniform(0.002, 0.01, channels)
    step = 0.05 if dtype is DType.INT8 else 0.0002
    asymmetric = 1 if dtype is DType.INT8 else 0
    shape = (channels, taps, taps, depth)
    weight = one_op.tensor(
        "weight",
        shape,
        None if is_float else scales,
        dtype=DType.FLOAT32 if is_float else DType.INT8,
        data=rng.integers(-127, 128, shape),
    )
    added = one_op.tensor(
        "bias",
        (channels,),
        None if is_float else step * scales,
        dtype=BIAS[dtype],
        data=rng.integers(-3000, 3000, channels),
    )
    return one_op.model(  # type: ignore[no-any-return]
        "TRANSPOSE_CONV",
        [
            one_op.constant("shape", [1, *out, channels]),
            weight,
            one_op.tensor(
                "image", (1, *size, depth), None if is_float else step, 7 * asymmetric, dtype=dtype
            ),
            *([added] if bias else []),
        ],
        [one_op.tensor("out", (1, *out, channels), None if is_float else step, -3 * asymmetric, dtype=dtype)],
        padding=padding,
        strideH=stride,
        strideW=stride,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 2), (4, 2), (3, 1), (1, 1), (5, 3)])
def test_transpose_conv(one_op: Any, dtype: DType, taps: int, stride: int, padding: str) -> None:
    one_op.check(transposed(one_op, dtype, taps, stride, padding))


@pytest.mark.parametrize("dtype", TYPES)
def test_transpose_conv_without_bias(one_op: Any, dtype: DType) -> None:
    one_op.check(transposed(one_op, dtype, 3, 2, "SAME", bias=False))


def test_transpose_conv_with_activation(one_op: Any) -> None:
    model = transposed(one_op, DType.INT8, 2, 2, "SAME")
    operator = model.operators[0]
    fused = {**operator.options, "fusedActivationFunction": "RELU6"}
    changed = type(model)(
        model.tensors,
        (type(operator)(operator.op, operator.inputs, operator.outputs, fused),),
        model.inputs,
        model.outputs,
    )
    assert one_op.check(changed)["out"].min() == -3


def test_an_int32_bias_of_16_bits_is_refused(one_op: Any, refused: Callable[..., str]) -> None:
    """LiteRT reads it as int64, past its end."""
    model = convolution(one_op, dtype=DType.INT16)
    narrow = one_op.tensor("bias", (8,), [0.01] * 8, dtype=DType.INT32, data=range(8))
    changed = type(model)({**model.tensors, "bias": narrow}, model.operators, model.inputs, model.outputs)
    assert "the bias of a 16-bit kernel is int32" in refused(
        ModelError, Reference(changed).run, one_op.values(model)
    )


@pytest.mark.parametrize("most", [100, 2**15, 2**31 - 1])
def test_matmul_is_exact(most: int) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(-most, most, (5, 37)), rng.integers(-127, 128, (37, 4))
    assert matmul(left, right).tolist() == (left.astype(object) @ right.astype(object)).tolist()
