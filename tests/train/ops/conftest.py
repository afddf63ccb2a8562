"""The node tests that the onnx package ships, collected once."""

from __future__ import annotations

import warnings
from typing import Any

import onnx
import pytest


@pytest.fixture(scope="session")
def node_cases() -> dict[tuple[str, str], list[Any]]:
    """By domain and operator, the test cases of one node whose inputs and outputs are tensors of numbers.

    Sequences, optionals and strings have no counterpart in training.
    """
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        # Some cases overflow or divide by zero on purpose.
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    cases: dict[tuple[str, str], list[Any]] = {}
    for case in found:
        model: Any = case.model
        if _is_one_node_of_tensors(model):
            node = model.graph.node[0]
            cases.setdefault((node.domain, node.op_type), []).append(case)
    return cases


def _is_one_node_of_tensors(model: Any) -> bool:
    if len(model.graph.node) != 1:
        return False
    types = [value.type for value in (*model.graph.input, *model.graph.output)]
    return all(
        t.HasField("tensor_type") and t.tensor_type.elem_type != onnx.TensorProto.STRING for t in types
    )
