"""What zeros buy, counted."""

from __future__ import annotations

import lzma
import zlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.compressed import benefit, compressed_bytes
from edgekit.prune.sparsity import SparsifyOptions, sparsify

Array = np.ndarray[Any, Any]


def one_layer(weight: Array, scale: float | None = None) -> Graph:
    """x [1, 64] - Gemm; quantized when there is a scale."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="dense", transB=1)]
    tensors = [numpy_helper.from_array(weight, "w" if scale is None else "q")]
    if scale is not None:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq"))
        tensors.append(numpy_helper.from_array(np.array(scale, np.float32), "s"))
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, k))
        for n, k in (("x", weight.shape[1]), ("y", weight.shape[0]))
    )
    graph = helper.make_graph(nodes, "net", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


WEIGHT = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)


class Chip:
    """A target as far as its sparse kernels go."""

    def __init__(self, *kernels: str) -> None:
        self.name = "chip:x"
        self.sparse_kernels = kernels


def test_bytes_are_those_of_the_data() -> None:
    graph = sparsify(one_layer(WEIGHT), SparsifyOptions(sparsity=0.75)).graph
    found = compressed_bytes(graph)
    from edgekit.graph import array

    weight = array(graph.model.graph.initializers["w"])
    assert weight is not None
    raw = weight.tobytes()
    assert found["raw"] == len(raw) == 32 * 64 * 4
    assert found["zlib"] == len(zlib.compress(raw, 9))
    assert found["lzma"] == len(lzma.compress(raw, preset=6))
    assert found["bitmask"] == 32 * 64 // 8 + 32 * 64 // 4 * 4
    assert "packed" not in found
    assert found["file"] == len(graph.to_bytes())
    assert found["file_zlib"] < found["file"]


def test_blocks_are_packed() -> None:
    graph = sparsify(one_layer(WEIGHT), SparsifyOptions(pattern="2:4")).graph
    found = compressed_bytes(graph)
    assert found["packed"] == 32 * 32 * 4 + 32 * 32 * 2 // 8
    assert found["packed"] == found["bitmask"]  # one bit a weight, or two for every second


def test_dense_weights_are_not_made_larger() -> None:
    found = compressed_bytes(one_layer(WEIGHT))
    assert found["bitmask"] == found["raw"]


def test_integers_of_a_quantized_graph() -> None:
    codes = np.where(np.abs(WEIGHT) > 0.7, np.round(WEIGHT * 40), 0).astype(np.int8)
    found = compressed_bytes(one_layer(codes, scale=0.025))
    assert found["raw"] == codes.size
    assert found["bitmask"] == codes.size // 8 + int((codes != 0).sum())


@pytest.mark.parametrize(
    ("kernels", "pattern", "faster", "words"),
    [
        ((), "2:4", False, "latency stays the same: it has no kernels for sparse weights"),
        (("2:4",), "2:4", True, "has kernels for 2:4 weights"),
        (("2:4",), "unstructured", False, "want 2:4, the weights are unstructured"),
        (("unstructured",), "unstructured", True, "has kernels"),
    ],
)
def test_benefit_depends_on_the_kernels(
    kernels: tuple[str, ...], pattern: str, faster: bool, words: str
) -> None:
    share = 0.5 if pattern == "unstructured" else None
    graph = sparsify(one_layer(WEIGHT), SparsifyOptions(sparsity=share, pattern=pattern)).graph
    found = benefit(graph, Chip(*kernels))  # type: ignore[arg-type]
    assert found["target"] == "chip:x"
    assert found["pattern"] == pattern
    assert found["latency"] is faster
    assert words in found["text"]
    assert found["sparsity"] == pytest.approx(0.5)


def test_a_target_that_says_nothing_has_no_kernels() -> None:
    class Silent:
        name = "silent"

    found = benefit(one_layer(WEIGHT), Silent())  # type: ignore[arg-type]
    assert found["kernels"] == []
    assert found["latency"] is False
    assert "nothing to gain" in found["text"]
