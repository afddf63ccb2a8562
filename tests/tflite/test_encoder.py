"""A transformer encoder from PyTorch to token ids in, logits out, in integers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.lower.lower import lower
from edgekit.tflite.model import DType
from edgekit.tflite.package import Package, open_package, write_package
from edgekit.tflite.prepare import prepare
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.split import split
from edgekit.tflite.write import write_model

pytest.importorskip("ai_edge_litert")

WORDS, TOKENS, WIDTH, HEADS, LAYERS = 200, 32, 64, 4, 2
Feeds = dict[str, np.ndarray[Any, Any]]


class Layer(nn.Module):
    """Attention and a feed-forward network, each with a residual and a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        weights = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask).softmax(-1)
        x = self.norm1(x + self.out((weights @ value).transpose(1, 2).reshape(1, TOKENS, WIDTH)))
        found: Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return found


class Encoder(nn.Module):
    """Embeddings of words, places and types, a mask, layers, and a classifier of the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.types = (nn.Embedding(n, WIDTH) for n in (WORDS, TOKENS, 2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pool, self.classify = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.register_buffer("ids", torch.arange(TOKENS)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        x = self.words(input_ids) + self.places(self.ids) + self.types(torch.zeros_like(input_ids))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        found: Tensor = self.classify(torch.tanh(self.pool(x[:, 0])))
        return found


def feeds(seed: int) -> Feeds:
    """Random words in a sentence of random length."""
    random = np.random.default_rng(seed)
    kept = (np.arange(TOKENS) < random.integers(4, TOKENS + 1)).astype(np.int64)[None]
    return {"input_ids": random.integers(0, WORDS, (1, TOKENS)) * kept, "attention_mask": kept}


#: Targets, and whether they compute in float too.
NPU = "ethos-u:u85-256"
TARGETS = {NPU: False, "litert:host-1t": True}
SAMPLES = [feeds(1000 + i) for i in range(8)]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The encoder as an exported file holds it, captured."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    example = tuple(torch.from_numpy(v) for v in feeds(0).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns about its own modules
        torch.onnx.export(
            Encoder().eval(), example, path, input_names=list(feeds(0)), output_names=["logits"],
            dynamo=True, opset_version=21, verbose=False,
        )  # fmt: skip
    return edgekit.load(path)


@pytest.fixture(scope="module")
def quantized(network: Graph) -> Callable[..., tuple[Graph, Plan]]:
    """The integer form of the network for a target, with tensors ``raised`` above 8 bits, and its plan."""
    graph = prepare(network)

    @cache
    def make(target: str, raised: tuple[str, ...] = ()) -> tuple[Graph, Plan]:
        scheme = load_target(target).scheme
        assert scheme is not None
        plan = make_plan(graph, scheme, raised=raised)
        wanted = unknown_ranges(graph, scheme, plan, ())
        seen = observe(graph, wanted, (feeds(i) for i in range(24)), threads=1)
        params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX))
        return insert_qdq(graph, plan, params, scheme), plan

    return make


def signal_to_noise(network: Graph, run: Any) -> float:
    """Of the outputs over all samples, in dB."""
    runner = open_runner(network, threads=1)
    wanted = np.stack([runner.run(f)["logits"] for f in SAMPLES])
    found = np.stack([run(f)["logits"] for f in SAMPLES])
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


@pytest.mark.parametrize("target", TARGETS)
def test_every_layer_is_integers_and_moves_data_four_times(target: str, quantized: Any) -> None:
    (graph, plan), mixed = quantized(target), TARGETS[target]
    parts = split(graph, mixed=mixed)
    # Only the mask is made in float: before the model, or by float operators in it.
    mask = ["Unsqueeze", "Cast", "Sub", "Mul"]
    assert [n.op_type for n in graph.nodes if n.name in plan.float_nodes] == mask
    assert parts.decoder is None
    if mixed:
        assert parts.front is None
    else:
        assert parts.front is not None
        assert [n.op_type for n in parts.front.nodes] == mask
    model, notes = (lowered := lower(parts.body)).model, lowered.notes
    # Query, key and value are brought to their heads and the result back: BATCH_MATMUL wants the axes that it
    # multiplies over behind the heads, FULLY_CONNECTED wants all numbers of a token together.
    moved = [n.reason.split()[0] for n in notes if n.op == "TRANSPOSE"]
    assert Counter(moved) == {"BATCH_MATMUL": 3 * LAYERS, "MatMul": LAYERS}
    counts = model.counts()
    assert counts["TRANSPOSE"] == 4 * LAYERS
    assert (counts["GATHER"], counts["RSQRT"], counts["GELU"]) == (1, 2 * LAYERS + 1, LAYERS)
    assert counts["FULLY_CONNECTED"] == 6 * LAYERS + 2
    assert (DType.FLOAT32 in {t.dtype for t in model.tensors.values()}) is mixed
    # The bias of a MatMul has 32 bits, though the graph adds it.
    dense = [o for o in model.operators if o.op == "FULLY_CONNECTED"]
    assert {model.tensors[str(o.inputs[2])].dtype for o in dense} == {DType.INT32}


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_from_token_ids(target: str, network: Graph, quantized: Any, tmp_path: Path) -> None:
    graph, _ = quantized(target)
    package = write_package(graph, "int8", tmp_path, dialect=Dialect(mixed=TARGETS[target]))
    assert package.io.inputs[0].name == "input_ids"
    exact = open_runner(graph, threads=1, optimize=False, integer=False)
    wanted, step = np.stack([exact.run(f)["logits"] for f in SAMPLES]), package.io.outputs[0].scale
    assert step is not None
    assert signal_to_noise(network, exact.run) > 22
    for kernels in (Kernels.REFERENCE, Kernels.XNNPACK):
        runner = open_package(package.path, kernels=kernels)
        steps = (np.stack([runner.run(f)["logits"] for f in SAMPLES]) - wanted) / step
        # Each kernel is within a step of ONNX Runtime; over two layers the differences add up.
        assert np.sqrt((steps**2).mean()) < 2.5
        assert np.abs(steps).max() < 7
        assert signal_to_noise(network, runner.run) > 22
    assert_exact(package)


def assert_exact(package: Package) -> None:
    """The integer reference computes what LiteRT's reference kernels compute."""
    codes = open_package(package.path, kernels=Kernels.REFERENCE).prepare(SAMPLES[0])
    wanted = LiteRt(package.path.read_bytes(), Kernels.REFERENCE).run(codes)["logits"]
    np.testing.assert_array_equal(Reference(package.model).run(codes)["logits"], wanted)


def test_words_can_be_looked_up_before_the_model(quantized: Any) -> None:
    graph, _ = quantized(NPU)
    whole, parts = split(graph), split(graph, lookups=False)
    assert parts.front is not None
    assert "Gather" in {n.op_type for n in parts.front.nodes}
    inside, outside = lower(whole.body).model, lower(parts.body).model
    assert "GATHER" in inside.counts()
    assert "GATHER" not in outside.counts()
    # Rows of codes, or codes of rows: the same.
    front = open_runner(parts.front, threads=1, optimize=False).run(SAMPLES[0])
    codes = {}
    for port in parts.inputs:
        q = port.quantization
        assert q is not None
        rounded = np.round(front[port.name] / q.scale[0]) + q.zero_point[0]
        codes[port.name] = np.clip(rounded, -128, 127).astype(np.int8)
    assert len(codes) == 2
    ids = {name: v for name, v in codes.items() if name in inside.inputs}
    ids["input_ids"] = SAMPLES[0]["input_ids"].astype(np.int32)
    wanted = Reference(outside).run(codes)["logits"]
    np.testing.assert_array_equal(Reference(inside).run(ids)["logits"], wanted)


def test_tensors_of_16_bits_among_8(network: Graph, quantized: Any, tmp_path: Path) -> None:
    graph, plan = quantized(NPU, ("layer_norm_1.centered", "layer_norm_4"))
    assert plan.wide_nodes
    package = write_package(graph, "int8", tmp_path)
    assert package.model.counts()["QUANTIZE"] >= 2
    assert DType.INT16 in {t.dtype for t in package.model.tensors.values()}
    assert signal_to_noise(network, open_package(package.path, kernels=Kernels.REFERENCE).run) > 22
    assert_exact(package)


@pytest.mark.parametrize("npu", ["u85-256", "u55-256"])
def test_an_npu_keeps_all_of_it_but_the_lookup(npu: str, quantized: Any) -> None:
    pytest.importorskip("ethosu")
    from edgekit.targets.ethos_u.profiles import load_npu
    from edgekit.targets.ethos_u.vela import compile_model

    graph, _ = quantized(NPU)

    def left(lookups: bool) -> set[str]:
        data = write_model(lower(split(graph, lookups=lookups).body).model)
        return {op.op.upper() for op in compile_model(data, load_npu(npu)).cpu_ops}

    assert left(lookups=False) == set()
    assert left(lookups=True) <= {"GATHER", "GATHERV2"}
