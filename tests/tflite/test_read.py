"""Reading .tflite files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.tflite.interpreter import LiteRt
from edgekit.tflite.model import DType, Operator, TfliteModel
from edgekit.tflite.read import read_model
from edgekit.tflite.schema import pack_options, unpack_options
from edgekit.tflite.write import write_model

pytest.importorskip("ai_edge_litert")


@pytest.fixture
def model(one_op: Any) -> TfliteModel:
    """Several operators: an optional input left out, a scalar, per-channel weights, every element type."""
    rng = np.random.default_rng(0)
    tensors = [
        one_op.tensor("x", (1, 4, 4, 2), 0.05, 4),
        one_op.tensor("w", (1, 3, 3, 2), [0.01, 0.02], axis=3, data=rng.integers(-127, 128, (1, 3, 3, 2))),
        one_op.tensor("b", (2,), [0.0005, 0.001], dtype=DType.INT32, data=[5, -6]),
        one_op.tensor("c", (1, 4, 4, 2), 0.07, -9),
        one_op.constant("shape", [1, 32]),
        one_op.tensor("flat", (1, 32), 0.07, -9),
        one_op.tensor("m", (3, 32), 0.01, data=rng.integers(-127, 128, (3, 32))),
        one_op.tensor("y", (1, 3), 0.2, 1),
        one_op.tensor("real", (1, 3), dtype=DType.FLOAT32),
        one_op.constant("long", [2**40, -1], DType.INT64),
        one_op.constant("flag", [True, False], DType.BOOL),
        one_op.tensor("wide", (2,), 0.001, dtype=DType.INT16, data=[-32768, 32767]),
        one_op.constant("scalar", 2.5, DType.FLOAT32),
    ]
    return TfliteModel(
        tensors={t.name: t for t in tensors},
        operators=(
            Operator(
                "DEPTHWISE_CONV_2D",
                ("x", "w", "b"),
                ("c",),
                {"padding": "SAME", "strideW": 1, "strideH": 1, "depthMultiplier": 1, "dilationHFactor": 2},
            ),
            Operator("RESHAPE", ("c", "shape"), ("flat",), {"newShape": (1, 32)}),
            Operator("FULLY_CONNECTED", ("flat", "m", None), ("y",), {"fusedActivationFunction": "RELU"}),
            Operator("DEQUANTIZE", ("y",), ("real",)),
        ),
        inputs={"image": "x"},
        outputs={"scores": "real", "codes": "y"},
        metadata={"edgekit.io": '{"a": 1}'},
        description="four operators",
    )


def full(model: TfliteModel) -> TfliteModel:
    """With all fields of the options, as a reader finds them."""
    return replace(
        model,
        operators=tuple(replace(o, options=unpack_options(o.op, pack_options(o))) for o in model.operators),
    )


def assert_same(found: TfliteModel, wanted: TfliteModel) -> None:
    assert found.operators == wanted.operators
    assert list(found.inputs.items()) == list(wanted.inputs.items())
    assert list(found.outputs.items()) == list(wanted.outputs.items())
    assert found.metadata == wanted.metadata
    assert found.description == wanted.description
    assert list(found.tensors) == list(wanted.tensors)
    for a, b in zip(found.tensors.values(), wanted.tensors.values(), strict=True):
        assert (a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype)
        assert a.quantization is None if b.quantization is None else b.quantization.same_as(a.quantization)
        assert (a.data is None) == (b.data is None)
        if a.data is not None and b.data is not None:
            assert a.data.dtype == b.data.dtype
            assert a.data.shape == b.data.shape
            assert np.array_equal(a.data, b.data)


def test_round_trip(model: TfliteModel) -> None:
    data = write_model(model)
    assert_same(read_model(data), full(model))
    assert write_model(read_model(data)) == data


def test_files_without_a_signature_and_with_shared_names(model: TfliteModel) -> None:
    data = rebuilt(write_model(model), anonymous)
    found = read_model(data)
    assert found.inputs == {"x": "x"}
    assert found.outputs == {"real": "real", "y": "y"}
    assert found.operators[0].outputs == ("x:3",)
    # LiteRT finds the inputs and outputs of such a file too.
    assert set(LiteRt(data).run({"x": np.zeros((1, 4, 4, 2), np.int8)})) == {"real", "y"}


def anonymous(root: Any) -> None:
    root.signatureDefs = None
    tensor(root, 3).name = b"x"


def rebuilt(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """The file with something changed that write_model would not write."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    root = schema.ModelT.InitFromPackedBuf(data)
    change(root)
    builder = Builder(0)
    builder.Finish(root.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def tensor(root: Any, index: int) -> Any:
    return root.subgraphs[0].tensors[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: setattr(r, "version", 2), "version 2 of the TFLite schema (valid: 3)"),
        (lambda r: r.subgraphs.append(r.subgraphs[0]), "the file has 2 subgraphs"),
        (lambda r: setattr(r, "subgraphs", None), "the file has 0 subgraphs"),
        (lambda r: setattr(tensor(r, 0), "type", 1), "tensor 'x': its element type is FLOAT16 (valid: INT8"),
        (lambda r: setattr(tensor(r, 0), "type", 99), "tensor 'x': its element type is 99"),
        (lambda r: setattr(tensor(r, 0), "isVariable", True), "variable tensors are not supported"),
        (lambda r: setattr(tensor(r, 0), "buffer", 999), "tensor 'x': buffer 999 of"),
        (lambda r: setattr(tensor(r, 0), "shape", [1, -4, 4, 2]), "tensor 'x': its shape is [1, -4, 4, 2]"),
        (lambda r: setattr(tensor(r, 0), "shape", [65536, 65536]), "tensor 'x': its shape is [65536, 65536]"),
        (lambda r: setattr(tensor(r, 4), "shape", [3]), "tensor 'shape': int32 [3] needs 12 bytes, not 8"),
        (
            lambda r: setattr(tensor(r, 1).quantization, "quantizedDimension", 7),
            "2 scales on axis 7 of [1, 3, 3, 2]",
        ),
        (lambda r: setattr(tensor(r, 1).quantization, "zeroPoint", [0, 0, 0]), "2 scales, but 3 zero points"),
        (lambda r: setattr(r.subgraphs[0], "inputs", [77]), "input tensors [77] of 13"),
        (
            lambda r: setattr(r.subgraphs[0].operators[0], "inputs", [0, 50]),
            "DEPTHWISE_CONV_2D tensors [50] of 13",
        ),
        (lambda r: setattr(r.subgraphs[0].operators[0], "opcodeIndex", 9), "operator code 9 of 4"),
        (lambda r: setattr(r.operatorCodes[0], "builtinCode", 32), "is not one of TFLite's built-in ones"),
    ],
)
def test_refusals(
    model: TfliteModel, refused: Callable[..., str], change: Callable[[Any], Any], message: str
) -> None:
    assert message in refused(ModelError, read_model, rebuilt(write_model(model), change))


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x08\0\0\0TFL4" + bytes(100), b"PK\x03\x04" + bytes(100)])
def test_other_files(data: bytes, refused: Callable[..., str]) -> None:
    assert "this is no TFLite file" in refused(ModelError, read_model, data)


def test_damaged_files_end_in_one_error(model: TfliteModel) -> None:
    data = write_model(model)
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    damaged = [data[:length] for length in range(8, len(data), 97)]
    for _ in range(150):
        copy = bytearray(data)
        for position in rng.integers(8, len(copy), 4):
            copy[position] = rng.integers(256)
        damaged.append(bytes(copy))
    for content in damaged:
        try:
            read_model(content)
            outcomes["read"] += 1
        except ModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 4
