"""TFLite Micro in its own process: the same codes as LiteRT, the smallest arena, and clear failures."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import InputError, ModelError
from edgekit.targets.tflm.engine import TflmEngine, enough
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.write import write_model

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")

Array = npt.NDArray[Any]


def conv(size: int = 12, channels: int = 8) -> TfliteModel:
    """A 3x3 convolution with ReLU from three channels, int8."""
    random = np.random.default_rng(0)
    scales = np.full(channels, 0.01, np.float32)
    none = np.zeros(channels, np.int64)
    weight = random.integers(-127, 128, (channels, 3, 3, 3)).astype(np.int8)
    bias = random.integers(-500, 500, channels).astype(np.int32)
    listed = [
        Tensor("x", (1, size, size, 3), DType.INT8, Quantization.single(0.05, -3)),
        Tensor("w", weight.shape, DType.INT8, Quantization(scales, none), weight),
        Tensor("b", bias.shape, DType.INT32, Quantization(scales * np.float32(0.05), none), bias),
        Tensor("y", (1, size, size, channels), DType.INT8, Quantization.single(0.03, -128)),
    ]
    options = {"padding": "SAME", "strideW": 1, "strideH": 1, "fusedActivationFunction": "RELU"}
    options |= {"dilationWFactor": 1, "dilationHFactor": 1}
    operator = Operator("CONV_2D", ("x", "w", "b"), ("y",), options, "conv")
    return TfliteModel({t.name: t for t in listed}, (operator,), {"image": "x"}, {"features": "y"})


def _written(folder: Path, model: TfliteModel) -> Path:
    path = folder / "net.tflite"
    path.write_bytes(write_model(model))
    return path


def _image(size: int = 12) -> dict[str, Array]:
    return {"image": np.random.default_rng(1).integers(-128, 128, (1, size, size, 3)).astype(np.int8)}


def test_it_computes_what_litert_computes_run_after_run(tmp_path: Path) -> None:
    path = _written(tmp_path, conv())
    engine = TflmEngine(path, conv())
    reference = LiteRt(path, kernels=Kernels.REFERENCE)
    for feeds in (_image(), {"image": np.full((1, 12, 12, 3), 127, np.int8)}, _image()):
        found, expected = engine.run(feeds), reference.run(feeds)
        assert found.keys() == {"features"}
        assert found["features"].shape == (1, 12, 12, 8)
        steps = np.abs(found["features"].astype(int) - expected["features"])
        assert steps.max() <= 1
    assert len(np.unique(expected["features"])) > 20


def test_the_smallest_arena_holds_input_and_output_and_little_more(tmp_path: Path) -> None:
    small = TflmEngine(_written(tmp_path, conv()), conv(), measure=True).arena_bytes
    large = TflmEngine(_written(tmp_path, conv(24)), conv(24), measure=True).arena_bytes
    tensors = 12 * 12 * (3 + 8)
    assert tensors < small < tensors + 4096
    assert large - small == pytest.approx(3 * tensors, abs=64)
    assert small % 16 == 0
    assert enough(conv()) > small


def test_wrong_inputs_are_refused_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = TflmEngine(_written(tmp_path, conv()), conv())
    with pytest.raises(InputError, match="int8"):
        engine.run({"image": np.zeros((1, 12, 12, 3), np.float32)})
    with pytest.raises(InputError, match="image"):
        engine.run({"x": np.zeros((1, 12, 12, 3), np.int8)})
    assert engine.run(_image())["features"].any()


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    step = Quantization.single(0.1, 0)
    tensors = {n: Tensor(n, (1, 8), DType.INT8, step) for n in ("a", "b")}
    model = TfliteModel(tensors, (Operator("GELU", ("a",), ("b",)),), {"a": "a"}, {"b": "b"})
    path = _written(tmp_path, model)
    with pytest.raises(ModelError, match=r"(?s)net\.tflite: TFLite Micro refuses the model: .*GELU"):
        TflmEngine(path, model)


def test_after_a_crash_the_next_run_sets_the_model_up_again(tmp_path: Path) -> None:
    engine = TflmEngine(_written(tmp_path, conv()), conv())
    expected = engine.run(_image())["features"]
    engine.close()
    assert np.array_equal(engine.run(_image())["features"], expected)
    engine.close()
    engine.close()
