"""Small graphs for the tests of passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph
from edgekit.passes.edit import static_shape
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.remove_unused import remove_unused
from edgekit.passes.verify import max_difference

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


def _check(before: Graph, after: Graph, tolerance: float = 1e-5) -> None:
    """``after`` computes what ``before`` does and keeps what captured graphs promise."""
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    names = [str(node.name) for node in after.nodes]
    assert len(set(names)) == len(names), "node names are unique"
    tensors = [out.name for node in after.nodes for out in node.outputs if out.name]
    assert len(set(tensors)) == len(tensors), "tensor names are unique"
    assert remove_unused(after).history[-1].details == {"nodes": 0, "weights": 0}
    inferred = infer_shapes(after).values()
    for name, value in after.values().items():
        assert static_shape(value) is not None, f"{name} has a static shape"
        assert static_shape(value) == static_shape(inferred[name]), name
        assert value.dtype == inferred[name].dtype, name
    onnx.checker.check_model(after.to_proto(), full_check=True)
    for seed in (0, 1):
        assert max_difference(before, after, seed) <= tolerance


@pytest.fixture
def check_rewrite() -> Callable[..., None]:
    return _check
