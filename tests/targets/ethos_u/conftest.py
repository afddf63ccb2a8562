"""Networks around one node, as they come out of the whole line: quantized, lowered, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.made_up import with_made_up_ranges
from edgekit.targets.ethos_u.process import VelaProcess
from edgekit.targets.ethos_u.target import EthosUTarget
from edgekit.tflite.dialect import Dialect

Shape = tuple[int, ...]
Build = Callable[..., Graph]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def vela() -> Iterator[VelaProcess]:
    """One Vela for all tests."""
    pytest.importorskip("ethosu")
    with VelaProcess() as process:
        yield process


@pytest.fixture(scope="session")
def around() -> Build:
    """``around(op, shapes, constants, **attributes)``: that node between nodes that have weights.

    A constant is an array, a shape (filled at random) or None for an input that is left out. Images get a
    1x1 Conv before and after, other tensors a MatMul.
    """
    return _around


@pytest.fixture(scope="session")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Graph], bytes]:
    """The int8 ``.tflite`` of a float graph, with made-up ranges."""
    pytest.importorskip("ai_edge_litert")
    from edgekit.tflite.lower.lower import AVOIDABLE
    from edgekit.tflite.package import write_package

    scheme = EthosUTarget.create().scheme
    assert scheme is not None
    folder = tmp_path_factory.mktemp("single")

    def make(graph: Graph) -> bytes:
        package = write_package(
            with_made_up_ranges(graph, scheme), "int8", folder, dialect=Dialect(avoid=frozenset(AVOIDABLE))
        )
        assert package.decoder is None
        return package.path.read_bytes()

    return make


def _around(op: str, shapes: list[Shape], constants: tuple[Any, ...] = (), **attributes: Any) -> Graph:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def weights(name: str, shape: Shape) -> str:
        arrays[name] = (random.standard_normal(shape) * 0.1).astype(np.float32)
        return name

    def weighted(source: str, target: str, shape: Shape, wide: int) -> Any:
        image = len(shape) == 4
        if shape[-1] == wide > 4096:
            stored, op = weights(f"{target}_w", (1,)), "Add"
        else:
            stored = weights(f"{target}_w", (wide, shape[1], 1, 1) if image else (shape[-1], wide))
            op = "Conv" if image else "MatMul"
        return helper.make_node(op, [source, stored], [target], name=f"{target}_node")

    names, nodes, inputs = [], [], []
    for i, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape))
        nodes.append(weighted(f"x{i}", f"in{i}", shape, shape[1] if len(shape) == 4 else shape[-1]))
        names.append(f"in{i}")
    for i, constant in enumerate(constants):
        if isinstance(constant, np.ndarray):
            arrays[f"c{i}"] = constant
        elif constant is not None:
            weights(f"c{i}", constant)
        names.append("" if constant is None else f"c{i}")
    nodes.append(helper.make_node(op, names, ["made"], name="node", **attributes))
    first = _graph(nodes, inputs, "made", arrays)
    # The last layer has weights enough not to be taken for a part of the decoder.
    nodes.append(weighted("made", "y", first.outputs[0].shape, 72))
    return _graph(nodes, inputs, "y", arrays)


def _graph(
    nodes: list[Any], inputs: list[Any], output: str, arrays: dict[str, np.ndarray[Any, Any]]
) -> Graph:
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "around", inputs, [result], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))
