"""Whole networks: random ones, an encoder block, and real ones, all beside ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.graph import Graph
from edgekit.tflite.lower.lower import lower
from edgekit.tflite.model import DType
from edgekit.tflite.split import split

pytest.importorskip("ai_edge_litert")

MODELS = Path(__file__).parents[4] / "shared" / "models"
KINDS = (
    *(
        "conv",
        "down",
        "depthwise",
        "grouped",
        "relu",
        "silu",
        "scale",
        "gate",
        "residual",
        "branches",
        "split",
    ),
    *("pool", "resize", "shuffle", "focus", "pad", "tokens", "flip", "pixels", "squeeze"),
)


class Walk:
    """Adds random layers to a network; ``x`` has ``c`` channels, ``h`` x ``w``."""

    def __init__(self, net: Any, c: int, h: int, w: int) -> None:
        self.n, self.c, self.h, self.w = net, c, h, w
        self.x = net.conv(net.input(1, c, h, w), c, c, pads=[1, 1, 1, 1])

    def conv(self, outer: int = 0, **attributes: Any) -> str:
        return str(self.n.conv(self.x, self.c, outer or self.c, pads=[1, 1, 1, 1], **attributes))

    def shaped(self, x: str, *shape: int) -> str:
        return str(self.n.op("Reshape", x, self.n.ints(*shape)))

    def step(self, kind: str) -> None:
        self.x = getattr(self, f"_{kind}")()

    def _conv(self) -> str:
        x, self.c = self.conv(12 if self.c == 8 else 8), 12 if self.c == 8 else 8
        return x

    def _down(self) -> str:
        if min(self.h, self.w) < 5:
            return self.conv()
        x = self.conv(strides=[2, 2])
        self.h, self.w = (self.h + 1) // 2, (self.w + 1) // 2
        return x

    def _depthwise(self) -> str:
        return self.conv(group=self.c)

    def _grouped(self) -> str:
        return self.conv(group=2)

    def _relu(self) -> str:
        return str(self.n.op("Relu", self.conv()))

    def _silu(self) -> str:
        return str(self.n.op("Mul", self.x, self.n.op("Sigmoid", self.x)))

    def _scale(self) -> str:
        return str(self.n.op("Mul", self.x, self.n.const(self.n.rng.uniform(0.5, 1.5, (self.c, 1, 1)))))

    def _gate(self) -> str:
        mean = self.n.op("GlobalAveragePool", self.x)
        return str(self.n.op("Mul", self.x, self.n.op("Sigmoid", self.n.conv(mean, self.c, self.c, (1, 1)))))

    def _residual(self) -> str:
        return str(self.n.op("Add", self.x, self.conv()))

    def _branches(self) -> str:
        half = self.n.conv(self.x, self.c, self.c // 2, (1, 1))
        return str(self.n.op("Concat", half, self.n.conv(self.x, self.c, self.c // 2, (1, 1)), axis=1))

    def _split(self) -> str:
        a, b = self.n.op("Split", self.x, n=2, axis=1, num_outputs=2)
        return str(self.n.op("Concat", b, self.n.op("Add", a, b), axis=1))

    def _pool(self) -> str:
        return str(self.n.op("MaxPool", self.x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]))

    def _resize(self) -> str:
        if self.h * self.w > 200:
            return self._down()
        self.h, self.w = 2 * self.h, 2 * self.w
        scales = self.n.const([1, 1, 2, 2])
        return str(self.n.op("Resize", self.x, "", scales, mode="nearest"))

    def _shuffle(self) -> str:
        x = self.shaped(self.x, 1, 2, self.c // 2, self.h, self.w)
        x = self.n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        return self.shaped(x, 1, self.c, self.h, self.w)

    def _focus(self) -> str:
        if self.h % 2 or self.w % 2:
            return self.conv()
        starts = ((0, 0), (1, 0), (0, 1), (1, 1))
        far, axes, steps = self.n.ints(99, 99), self.n.ints(2, 3), self.n.ints(2, 2)
        parts = [self.n.op("Slice", self.x, self.n.ints(*s), far, axes, steps) for s in starts]
        x = self.n.conv(self.n.op("Concat", *parts, axis=1), 4 * self.c, self.c, (1, 1))
        self.h, self.w = self.h // 2, self.w // 2
        return str(x)

    def _pad(self) -> str:
        self.h, self.w = self.h + 1, self.w + 2
        return str(self.n.op("Pad", self.x, self.n.ints(0, 0, 0, 2, 0, 0, 1, 0)))

    def _tokens(self) -> str:
        x = self.n.op("Transpose", self.shaped(self.x, 1, self.c, self.h * self.w), perm=[0, 2, 1])
        weight = self.n.const(self.n.rng.normal(0, 0.4, (self.c, self.c)))
        x = self.n.op("Transpose", self.n.op("MatMul", x, weight), perm=[0, 2, 1])
        return self.shaped(x, 1, self.c, self.h, self.w)

    def _flip(self) -> str:
        self.h, self.w = self.w, self.h
        return str(self.n.op("Transpose", self.x, perm=[0, 1, 3, 2]))

    def _pixels(self) -> str:
        wide = self.n.conv(self.x, self.c, 4 * self.c, (1, 1))
        x = self.n.op("DepthToSpace", wide, blocksize=2, mode="CRD" if self.n.rng.random() < 0.5 else "DCR")
        return str(self.n.conv(x, self.c, self.c, (2, 2), strides=[2, 2]))

    def _squeeze(self) -> str:
        x = self.n.op("Squeeze", self.x, self.n.ints(0))
        return str(self.n.op("Unsqueeze", x, self.n.ints(0)))

    def heads(self) -> list[str]:
        """The outputs of a detector: boxes, scores and pooled features."""
        boxes = self.shaped(self.n.conv(self.x, self.c, 6, (1, 1)), 1, 6, self.h * self.w)
        weight = self.n.const(self.n.rng.normal(0, 0.3, (self.c * self.h * self.w, 12)))
        flat = self.n.op("MatMul", self.n.op("Flatten", self.x), weight)
        return [self.n.op("Transpose", boxes, perm=[0, 2, 1]), flat]


def random_network(net: Callable[..., Any], seed: int, layers: int = 6) -> Graph:
    rng = np.random.default_rng(seed)
    walk = Walk(net(seed), 8, int(rng.integers(6, 11)), int(rng.integers(6, 11)))
    for kind in rng.choice(KINDS, layers):
        walk.step(str(kind))
    graph: Graph = walk.n.graph(*walk.heads())
    return graph


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_compute_what_onnx_runtime_computes(
    seed: int, net: Any, int8: Any, agree: Any
) -> None:
    graph = random_network(net, seed)
    assert agree(graph).steps < 1e-4
    # Codes that differ by one here and there, where a sum lies between two, add up from layer to layer.
    assert agree(int8(graph)).steps <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_exact_to_two_steps(kind: str, net: Any, int8: Any, agree: Any) -> None:
    walk = Walk(net(3), 8, 8, 8)
    walk.step(kind)
    found = agree(int8(walk.n.graph(*walk.heads())))
    assert found.steps <= 2


def test_a_chain_of_cnn_layers_has_no_transpose(net: Any, int8: Any, agree: Any) -> None:
    walk = Walk(net(5), 8, 8, 8)
    for kind in ("silu", "residual", "split", "shuffle", "depthwise", "tokens", "pixels", "gate", "branches"):
        walk.step(kind)
        walk.step("conv")
    found = agree(int8(walk.n.graph(*walk.heads())))
    assert "TRANSPOSE" not in found.counts
    assert not found.lowered.notes


def encoder(net: Any, tokens: int = 12, width: int = 32, heads: int = 4) -> Graph:
    """Attention, a norm and a feed-forward layer, in the primitives that preparation leaves."""
    n = net(2)
    each = width // heads

    def dense(x: str, inner: int, outer: int) -> str:
        weight = n.const(n.rng.normal(0, inner**-0.5, (inner, outer)))
        return str(n.op("Add", n.op("MatMul", x, weight), n.const(n.rng.normal(0, 0.1, outer))))

    def head(x: str, perm: list[int]) -> str:
        return str(n.op("Transpose", n.op("Reshape", dense(x, width, width), four), perm=perm))

    x, four = n.input(1, tokens, width), n.ints(1, tokens, heads, each)
    q, k, v = (head(x, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = n.op("Softmax", n.op("Mul", n.op("MatMul", q, k), n.const(each**-0.5)), axis=-1)
    mixed = n.op("Transpose", n.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    x = n.op("Add", x, dense(n.op("Reshape", mixed, n.ints(1, tokens, width)), width, width))
    centred = n.op("Sub", x, n.op("ReduceMean", x, n.ints(-1)))
    spread = n.op("ReduceMean", n.op("Mul", centred, centred), n.ints(-1))
    spread = n.op("Reciprocal", n.op("Sqrt", n.op("Add", spread, n.const(0.01))))
    x = n.op("Mul", centred, spread)
    x = n.op("Add", x, dense(n.op("Gelu", dense(x, width, 2 * width)), 2 * width, width))
    graph: Graph = n.graph(n.op("MatMul", x, n.const(n.rng.normal(0, 0.2, (width, 8)))))
    return graph


@pytest.mark.parametrize("quantized", [False, True])
def test_an_encoder_needs_one_transpose_for_each_factor_and_one_back(
    quantized: bool, net: Any, int8: Any, agree: Any
) -> None:
    graph = encoder(net)
    found = agree(int8(graph) if quantized else graph)
    assert found.steps <= (4 if quantized else 1e-5)
    assert found.counts["TRANSPOSE"] == 4
    assert found.counts["RSQRT"] == 1
    assert "SQRT" not in found.counts
    assert [n.op for n in found.lowered.notes] == ["TRANSPOSE"] * 4
    assert all(n.reason for n in found.lowered.notes)
    assert all(n.node.startswith("MatMul") for n in found.lowered.notes)


REAL = pytest.mark.parametrize(
    ("name", "convolutions"), [("mobilefacenet", 51), ("yolox_nano", 113)], ids=["face", "yolox"]
)


def real(name: str) -> Graph:
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {name}.onnx beside the repository")
    return edgekit.load(path)


@REAL
def test_real_networks_in_float(name: str, convolutions: int, agree: Any) -> None:
    found = agree(real(name))
    assert found.steps < 1e-3
    assert "TRANSPOSE" not in found.counts
    assert not found.lowered.notes
    assert found.counts["CONV_2D"] + found.counts["DEPTHWISE_CONV_2D"] == convolutions


@REAL
def test_real_networks_in_int8_move_and_rescale_nothing(name: str, convolutions: int, int8: Any) -> None:
    parts = split(int8(real(name)))
    start = time.perf_counter()
    lowered = lower(parts.body)
    # 0.1 s where nothing else runs.
    assert time.perf_counter() - start < 3
    counts = lowered.model.counts()
    assert not lowered.notes
    assert not {"TRANSPOSE", "QUANTIZE", "DEQUANTIZE"} & set(counts)
    assert counts["CONV_2D"] + counts["DEPTHWISE_CONV_2D"] == convolutions
    assert {t.dtype for t in lowered.model.tensors.values()} == {DType.INT8, DType.INT32}
