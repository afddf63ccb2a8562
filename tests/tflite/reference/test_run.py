"""Whole models in the integer reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InputError, ModelError
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import Operator, TfliteModel
from edgekit.tflite.read import read_model
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.write import write_model


@pytest.fixture
def model(one_op: Any) -> TfliteModel:
    """Two branches of which one is read twice, and an output that is read again."""
    names = ("x", "a", "b", "c", "d")
    tensors = {n: one_op.tensor(n, (1, 4, 4, 8), 0.1 + 0.03 * i, i) for i, n in enumerate(names)}
    tensors["k"] = one_op.tensor("k", (8,), 0.1, 3, data=np.arange(8) * 9)
    return TfliteModel(
        tensors=tensors,
        operators=(
            Operator("ADD", ("x", "k"), ("a",), {"fusedActivationFunction": "RELU"}),
            Operator("MUL", ("a", "x"), ("b",)),
            Operator("SUB", ("b", "a"), ("c",)),
            Operator("ADD", ("c", "c"), ("d",), source="last"),
        ),
        inputs={"image": "x"},
        outputs={"first": "c", "second": "d"},
    )


def test_every_tensor_is_that_of_litert(model: TfliteModel, one_op: Any) -> None:
    pytest.importorskip("ai_edge_litert")
    values = {"image": one_op.values(replace(model, inputs={"x": "x"}))["x"]}
    data = write_model(model)
    runner = LiteRt(data, Kernels.REFERENCE, keep_all=True)
    outputs = runner.run(values)
    inner = runner.tensors()
    # A model that went through a file computes the same.
    for reference in (Reference(model), Reference(read_model(data))):
        found = reference.run(values, keep=("a", "b"))
        assert list(found) == ["first", "second", "a", "b"]
        assert all(np.array_equal(found[name], outputs[name]) for name in outputs)
        assert all(np.array_equal(found[name], inner[name]) for name in ("a", "b"))


def test_the_inputs_are_left_alone(model: TfliteModel) -> None:
    image = np.full((1, 4, 4, 8), 5, np.int8)
    before = image.copy()
    Reference(model).run({"image": image})
    assert np.array_equal(image, before)


def test_refusals(model: TfliteModel, refused: Callable[..., str]) -> None:
    odd = replace(model, operators=(Operator("LSH_PROJECTION", ("x",), ("d",)),))
    assert "the integer reference has no kernel for LSH_PROJECTION (valid: A" in refused(
        ModelError, Reference, odd
    )
    values = {"image": np.zeros((1, 4, 4, 8), np.int8)}
    reference = Reference(model)
    assert "the model has no tensors ['z']" in refused(ModelError, reference.run, values, keep=("z",))
    assert "the inputs are [] (valid: image)" in refused(InputError, reference.run, {})
    wrong = replace(model, tensors={**model.tensors, "d": replace(model.tensors["d"], shape=(1, 4, 8, 4))})
    assert "ADD last: it gives int8 [1, 4, 4, 8], the model says int8 [1, 4, 8, 4]" in refused(
        ModelError, Reference(wrong).run, values
    )
