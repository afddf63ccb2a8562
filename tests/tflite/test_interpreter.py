"""Running .tflite files in LiteRT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InputError, ModelError, ToolError
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import Operator, TfliteModel
from edgekit.tflite.write import write_model


@pytest.fixture
def sums(one_op: Any) -> TfliteModel:
    """``total = (left + right) + right``, under names of its own."""
    pytest.importorskip("ai_edge_litert")
    return TfliteModel(
        tensors={name: one_op.tensor(name, (1, 2, 2, 8), 0.5) for name in ("a", "b", "inner", "c")},
        operators=(Operator("ADD", ("a", "b"), ("inner",)), Operator("ADD", ("inner", "b"), ("c",))),
        inputs={"left": "a", "right": "b"},
        outputs={"total": "c"},
    )


@pytest.fixture
def values() -> dict[str, Any]:
    return {"right": np.full((1, 2, 2, 8), 3, np.int8), "left": np.full((1, 2, 2, 8), 10, np.int8)}


@pytest.mark.parametrize("kernels", list(Kernels))
def test_names_are_those_of_the_model(
    sums: TfliteModel, values: dict[str, Any], kernels: Kernels, tmp_path: Path
) -> None:
    path = tmp_path / "sums.tflite"
    path.write_bytes(write_model(sums))
    runner = LiteRt(path, kernels, threads=2)
    assert runner.run(values)["total"].reshape(-1).tolist() == [16] * 32
    runner.invoke()
    # What was handed out stays as it was.
    first = runner.run(values)["total"]
    runner.run({**values, "left": values["left"] + 1})
    assert first.reshape(-1).tolist() == [16] * 32


def test_inner_tensors(sums: TfliteModel, values: dict[str, Any], refused: Callable[..., str]) -> None:
    runner = LiteRt(write_model(sums), Kernels.REFERENCE, keep_all=True)
    assert "after a run" in refused(ToolError, runner.tensors)
    runner.run(values)
    assert {name: int(value.flat[0]) for name, value in runner.tensors().items()} == {
        "a": 10,
        "b": 3,
        "inner": 13,
        "c": 16,
    }
    plain = LiteRt(write_model(sums))
    plain.run(values)
    assert "keep_all" in refused(ToolError, plain.tensors)


def test_inputs_are_checked(sums: TfliteModel, values: dict[str, Any], refused: Callable[..., str]) -> None:
    runner = LiteRt(write_model(sums))
    assert "the inputs are ['left'] (valid: left, right)" in refused(
        InputError, runner.run, {"left": values["left"]}
    )
    wrong_type = {**values, "left": values["left"].astype(np.float32)}
    assert "input 'left': it is float32 [1, 2, 2, 8], not int8" in refused(InputError, runner.run, wrong_type)
    wrong_shape = {**values, "left": values["left"][0]}
    assert "input 'left': it is int8 [2, 2, 8], not int8 [1, 2, 2, 8]" in refused(
        InputError, runner.run, wrong_shape
    )


def test_models_that_litert_does_not_accept(one_op: Any, refused: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    shapes = one_op.model(
        "ADD", [one_op.tensor("x", (3,), 0.1), one_op.tensor("y", (4,), 0.1)], [one_op.tensor("z", (4,), 0.1)]
    )
    message = refused(ModelError, LiteRt, write_model(shapes), Kernels.REFERENCE)
    assert message.startswith("LiteRT does not accept the model: ")
    assert "ADD" in message
    assert "this is no TFLite file" in refused(ModelError, LiteRt, b"nothing")
    assert "cannot be read: No such file" in refused(ModelError, LiteRt, tmp_path / "none.tflite")


def test_a_kernel_that_fails_when_it_runs(one_op: Any, refused: Callable[..., str]) -> None:
    pytest.importorskip("ai_edge_litert")
    tensors = [one_op.tensor(name, (4,), 0.1) for name in "xyz"]
    model = one_op.model("DIV", tensors[:2], tensors[2:])
    runner = LiteRt(write_model(model), Kernels.REFERENCE)
    message = refused(ToolError, runner.run, {name: np.zeros(4, np.int8) for name in "xy"})
    assert message.startswith("LiteRT failed: ")
    assert "DIV" in message


def test_without_litert(
    sums: TfliteModel, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_model(sums)
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "ai-edge-litert is not installed. pip install 'edgekit[litert]'" in refused(
        ToolError, LiteRt, data
    )
