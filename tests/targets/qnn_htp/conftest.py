"""Small QDQ models, and workers that stand in for the toolchain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit.targets.qnn_htp import child

#: SM8650 and its architecture.
SOC, ARCH = 57, 75
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a model of nodes: ``save(nodes, inputs={name: shape}, outputs={name: shape})``.

    ``s`` and ``z`` are the scale and zero point of 8-bit tensors, ``s16`` and ``z16`` of 16-bit ones,
    ``s0`` and ``z0`` those of 8-bit tensors without negative values.
    """

    def write(
        nodes: list[NodeProto],
        inputs: dict[str, list[int]],
        outputs: dict[str, list[int | str]],
        *,
        initializers: dict[str, np.ndarray[Any, Any]] | None = None,
        kind: int = TensorProto.FLOAT,
        name: str = "model.onnx",
    ) -> Path:
        known: dict[str, Any] = {
            "s": np.float32(0.02),
            "z": np.uint8(128),
            "s0": np.float32(0.02),
            "z0": np.uint8(0),
            "s16": np.float32(0.0001),
            "z16": np.uint16(32768),
            **(initializers or {}),
        }
        read = {i for node in nodes for i in node.input}
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in known.items() if n in read],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def pair() -> Callable[..., list[NodeProto]]:
    """``pair("a", "b")``: the Q and DQ, named ``b_Q`` and ``b_DQ``, that make tensor ``b`` of ``a``."""

    def make(source: str, made: str, bits: str = "") -> list[NodeProto]:
        edge = [f"s{bits}", f"z{bits}"]
        return [
            helper.make_node("QuantizeLinear", [source, *edge], [f"{made}_q"], name=f"{made}_Q"),
            helper.make_node("DequantizeLinear", [f"{made}_q", *edge], [made], name=f"{made}_DQ"),
        ]

    return make


@pytest.fixture
def chain(save: Save, pair: Callable[..., list[NodeProto]]) -> Callable[..., Path]:
    """A model of operators without parameters one behind the other: ``chain("Relu", "Tanh")``.

    Nodes are called ``n0``, ``n1`` …; the input is ``x``, the output ``y``.
    """

    def make(*ops: str, shape: tuple[int, ...] = (1, 4, 8, 8), name: str = "model.onnx") -> Path:
        nodes, tensor = pair("x", "t0"), "t0"
        for i, op in enumerate(ops):
            last = "y" if i == len(ops) - 1 else f"t{i + 1}"
            nodes += [helper.make_node(op, [tensor], [f"f{i}"], name=f"n{i}"), *pair(f"f{i}", last)]
            tensor = last
        return save(nodes, {"x": list(shape)}, {"y": list(shape)}, name=name)

    return make


@pytest.fixture
def convolutions(save: Save, pair: Callable[..., list[NodeProto]]) -> Path:
    """Two convolutions with an activation each, a 16-bit Sigmoid behind the first, and a Reshape.

    Nodes: ``first``, ``relu``, ``gate``, ``scaled``, ``second``, ``flat``.
    """
    rng = np.random.default_rng(0)
    weights = {"w1": (8, 4, 3, 3), "w2": (6, 8, 1, 1)}
    constants: dict[str, np.ndarray[Any, Any]] = {"shape": np.array([1, -1], np.int64)}
    nodes = pair("x", "a")
    for name, shape in weights.items():
        constants[f"{name}_q"] = rng.integers(-127, 128, shape, dtype=np.int8)
        constants[f"{name}_s"] = np.full(shape[0], 0.005, np.float32)
        constants[f"{name}_z"] = np.zeros(shape[0], np.int8)
        source = [f"{name}_q", f"{name}_s", f"{name}_z"]
        nodes.append(helper.make_node("DequantizeLinear", source, [name], name=f"{name}_DQ", axis=0))
    nodes += [
        helper.make_node("Conv", ["a", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        *pair(
            "r1", "b", "0"
        ),  # a Relu is part of its convolution only where the zero point is the least code
        *pair("b", "b16", "16"),
        helper.make_node("Sigmoid", ["b16"], ["g16"], name="gate"),
        *pair("g16", "h16", "16"),
        helper.make_node("Mul", ["b16", "h16"], ["m16"], name="scaled"),
        *pair("m16", "n16", "16"),
        *pair("n16", "d"),
        helper.make_node("Conv", ["d", "w2"], ["c2"], name="second"),
        *pair("c2", "e"),
        helper.make_node("Reshape", ["e", "shape"], ["f"], name="flat"),
        *pair("f", "y"),
    ]
    return save(nodes, {"x": [1, 4, 16, 16]}, {"y": [1, 384]}, initializers=constants)


@pytest.fixture
def feeds() -> Callable[..., list[dict[str, np.ndarray[Any, Any]]]]:
    """``feeds(shape, count)``: arrays for the input ``x``."""

    def make(shape: tuple[int, ...], count: int = 1) -> list[dict[str, np.ndarray[Any, Any]]]:
        rng = np.random.default_rng(1)
        return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]

    return make


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``fake(code)``: the name of a worker that reads its job as ``job`` and goes on with ``code``."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    # These tests need no toolchain.
    monkeypatch.setattr(child, "NEED", None)

    def make(code: str) -> str:
        head = "import json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n"
        (folder / "fake_qnn.py").write_text(head + code)
        return "fake_qnn"

    return make
