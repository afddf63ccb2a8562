"""Small graphs for the tests of passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph

Weights = Mapping[str, np.ndarray[Any, Any]]
MakeGraph = Callable[..., Graph]


def _make(text: str, weights: Weights | None = None, *, opset: int = 21) -> Graph:
    """A graph from the text form of ONNX, without its header, and its weights as arrays."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, values in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return Graph(ir.from_proto(model))


@pytest.fixture
def make_graph() -> MakeGraph:
    return _make


@pytest.fixture
def weights() -> Callable[..., np.ndarray[Any, Any]]:
    """Seeded float32 numbers of a given shape."""
    random = np.random.default_rng(0)
    return lambda *shape: random.standard_normal(shape).astype(np.float32)
