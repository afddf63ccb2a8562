"""Writing .tflite files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import DType, Operator, Tensor, TfliteModel
from edgekit.tflite.write import write_model

pytest.importorskip("ai_edge_litert")


@pytest.fixture
def convolution(one_op: Any) -> TfliteModel:
    rng = np.random.default_rng(0)
    scales = [0.01, 0.02, 0.03, 0.04]
    model: TfliteModel = one_op.model(
        "CONV_2D",
        [
            one_op.tensor("image", (1, 6, 6, 3), 0.05, 4),
            one_op.tensor("weight", (4, 3, 3, 3), scales, data=rng.integers(-127, 128, (4, 3, 3, 3))),
            one_op.tensor("bias", (4,), [s * 0.05 for s in scales], dtype=DType.INT32, data=[1, -2, 3, -4]),
        ],
        [one_op.tensor("out", (1, 6, 6, 4), 0.3, -5)],
        padding="SAME",
        strideW=1,
        strideH=1,
        fusedActivationFunction="RELU6",
    )
    return replace(model, metadata={"note": "né"}, description="a convolution")


def test_same_bytes_each_time(convolution: TfliteModel) -> None:
    data = write_model(convolution)
    assert data[4:8] == b"TFL3"
    assert data == write_model(convolution)


def test_layout_of_the_file(convolution: TfliteModel) -> None:
    from ai_edge_litert import schema_py_generated as schema

    data = write_model(convolution)
    root = schema.ModelT.InitFromPackedBuf(data)
    assert root.version == 3
    assert root.buffers[0].data is None
    assert root.description == b"a convolution"
    assert root.signatureDefs[0].signatureKey == b"serving_default"
    assert [entry.name for entry in root.signatureDefs[0].outputs] == [b"out"]
    buffer = root.metadata[0].buffer
    assert bytes(root.buffers[buffer].data).decode() == "né"
    # Kernels read constants in place: their first byte must be aligned.
    for tensor in root.subgraphs[0].tensors:
        content = root.buffers[tensor.buffer].data
        if content is not None:
            assert data.index(bytes(content)) % 16 == 0


def test_equal_constants_share_a_buffer(one_op: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    a = one_op.tensor("a", (1, 2, 2, 8))
    first, second = (one_op.tensor(n, (8,), 0.1, data=range(8)) for n in "pq")
    model = TfliteModel(
        tensors={t.name: t for t in (one_op.tensor("x", a.shape, 0.1), first, second)}
        | {n: one_op.tensor(n, a.shape, 0.1) for n in "yz"},
        operators=(Operator("MUL", ("x", "p"), ("y",)), Operator("MUL", ("y", "q"), ("z",))),
        inputs={"x": "x"},
        outputs={"z": "z"},
    )
    root = schema.ModelT.InitFromPackedBuf(write_model(model))
    buffers = {tensor.name.decode(): tensor.buffer for tensor in root.subgraphs[0].tensors}
    assert buffers["p"] == buffers["q"]
    assert len({buffers[n] for n in "xyz"}) == 3
    assert len(root.operatorCodes) == 1


@pytest.mark.parametrize(
    ("op", "dtype", "options", "version"),
    [
        ("MAX_POOL_2D", DType.INT8, {}, 2),
        ("MAX_POOL_2D", DType.INT16, {}, 3),
        ("MAX_POOL_2D", DType.FLOAT32, {}, 1),
        ("RESIZE_NEAREST_NEIGHBOR", DType.INT8, {"halfPixelCenters": True}, 3),
        ("RESIZE_BILINEAR", DType.INT8, {}, 2),
        ("DEPTHWISE_CONV_2D", DType.FLOAT32, {"dilationWFactor": 2}, 2),
        ("DEPTHWISE_CONV_2D", DType.INT8, {"dilationWFactor": 2}, 3),
        ("FULLY_CONNECTED", DType.INT8, {"keepNumDims": True}, 6),
        ("TRANSPOSE", DType.INT16, {}, 5),
        ("TRANSPOSE", DType.INT8, {}, 2),
        ("BROADCAST_TO", DType.FLOAT32, {}, 2),
        ("BROADCAST_TO", DType.INT8, {}, 3),
        ("HARD_SWISH", DType.INT8, {}, 1),
        ("SLICE", DType.INT16, {}, 4),
    ],
)
def test_versions(one_op: Any, op: str, dtype: DType, options: dict[str, Any], version: int) -> None:
    from ai_edge_litert import schema_py_generated as schema

    scale = None if dtype is DType.FLOAT32 else 0.1
    tensors = [one_op.tensor(name, (1, 4, 4, 8), scale, dtype=dtype) for name in "xyz"]
    root = schema.ModelT.InitFromPackedBuf(write_model(one_op.model(op, tensors[:2], tensors[2:], **options)))
    assert root.operatorCodes[0].version == version


def test_version_of_a_product_whose_factor_is_one_or_more(one_op: Any) -> None:
    from ai_edge_litert import schema_py_generated as schema

    for scale, version in ((1.0, 2), (0.25, 3)):
        tensors = [
            one_op.tensor("x", (4,), 0.5),
            one_op.tensor("y", (4,), 0.5),
            one_op.tensor("z", (4,), scale),
        ]
        root = schema.ModelT.InitFromPackedBuf(write_model(one_op.model("MUL", tensors[:2], tensors[2:])))
        assert root.operatorCodes[0].version == version


def test_a_model_with_two_names_for_one_output(convolution: TfliteModel) -> None:
    model = replace(convolution, outputs={"one": "out", "two": "out"})
    found = LiteRt(write_model(model), Kernels.REFERENCE).run({"image": np.ones((1, 6, 6, 3), np.int8)})
    assert np.array_equal(found["one"], found["two"])


def changed(model: TfliteModel, name: str, /, **fields: Any) -> TfliteModel:
    return replace(model, tensors={**model.tensors, name: replace(model.tensors[name], **fields)})


def with_operator(model: TfliteModel, **fields: Any) -> TfliteModel:
    return replace(model, operators=(replace(model.operators[0], source="conv1", **fields),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: with_operator(m, op="CONV_3"), "CONV_3 conv1: TFLite has no operator 'CONV_3'"),
        (
            lambda m: with_operator(m, options={"padding": "FULL"}),
            "CONV_2D conv1: padding cannot be 'FULL' (valid: SAME, VALID)",
        ),
        (
            lambda m: with_operator(m, options={"stride": 1}),
            "CONV_2D conv1: no option 'stride' (valid: dilationHFactor",
        ),
        (lambda m: with_operator(m, op="TANH"), "TANH has no options, but"),
        (
            lambda m: with_operator(m, inputs=("nothing",)),
            "names tensors that the model does not have: ['nothing']",
        ),
        (
            lambda m: with_operator(m, inputs=("out", "weight")),
            "it reads ['out'] before anything computes them",
        ),
        (
            lambda m: replace(m, outputs={"o": "nothing"}),
            "outputs name tensors that it does not have: ['nothing']",
        ),
        (
            lambda m: changed(m, "bias", data=np.zeros(3, np.int32)),
            "'bias': its values are int32 [3], not int32 [4]",
        ),
        (
            lambda m: changed(m, "bias", data=np.zeros(4, np.int64)),
            "'bias': its values are int64 [4], not int32 [4]",
        ),
        (
            lambda m: changed(m, "bias", data=np.zeros(0, np.int32), shape=(0,), quantization=None),
            "cannot tell a constant",
        ),
        (lambda m: changed(m, "image", name="picture"), "listed as 'image', but calls itself 'picture'"),
        (
            lambda m: changed(m, "weight", quantization=replace(m.tensors["weight"].quantization, axis=3)),
            "'weight': 4 scales on axis 3 of [4, 3, 3, 3]",
        ),
        (
            lambda m: changed(
                m, "out", quantization=replace(m.tensors["out"].quantization, scale=np.zeros(1))
            ),
            "'out': scales must be positive and finite",
        ),
        (
            lambda m: changed(
                m, "out", quantization=replace(m.tensors["out"].quantization, zero_point=np.zeros(2))
            ),
            "'out': 1 scales, but 2 zero points",
        ),
    ],
)
def test_refusals(
    convolution: TfliteModel,
    refused: Callable[..., str],
    change: Callable[[TfliteModel], TfliteModel],
    message: str,
) -> None:
    assert message in refused(ModelError, write_model, change(convolution))


def test_a_narrow_bias_of_a_16_bit_kernel_is_refused(one_op: Any, refused: Callable[..., str]) -> None:
    model = one_op.model(
        "FULLY_CONNECTED",
        [
            one_op.tensor("x", (1, 8), 0.1, dtype=DType.INT16),
            one_op.tensor("w", (4, 8), 0.1, data=np.ones((4, 8))),
            one_op.tensor("b", (4,), 0.01, dtype=DType.INT32, data=[1, 2, 3, 4]),
        ],
        [one_op.tensor("y", (1, 4), 0.1, dtype=DType.INT16)],
    )
    assert "tensor 'b': the bias of a 16-bit kernel is int32, not int64" in refused(
        ModelError, write_model, model
    )


def test_constants_of_more_than_2_gib_are_refused(
    convolution: TfliteModel, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.tflite.write._LARGEST", 2**20 + 100)
    assert "the model holds 127 bytes of constants" in refused(ModelError, write_model, convolution)


def test_scalars_and_unused_tensors(one_op: Any) -> None:
    scalar = Tensor("axis", (), DType.INT32, None, np.array(1, np.int32))
    model = one_op.model(
        "REDUCE_MAX", [one_op.tensor("x", (2, 3), 0.1), scalar], [one_op.tensor("y", (2,), 0.1)]
    )
    found = LiteRt(write_model(model), Kernels.REFERENCE).run(
        {"x": np.arange(6, dtype=np.int8).reshape(2, 3)}
    )
    assert found["y"].tolist() == [2, 5]
