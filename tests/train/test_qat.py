"""Quantization-aware training as a whole, on networks of three convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import Samples, open_samples
from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph, array
from edgekit.quantize.quantization import Quantization
from edgekit.quantize.scheme import Scheme
from edgekit.session import open_runner
from edgekit.train.augment import NONE
from edgekit.train.match import Match
from edgekit.train.options import DistillOptions
from edgekit.train.qat import QatOptions, QatResult, qat

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
Quantize = Callable[..., Quantization]

FAST = QatOptions(DistillOptions(epochs=8, batch=8, rate=1e-2, threads=1, patience=0, augment=NONE))
#: A range that cuts off most of what there is, as calibration images unlike the others make it.
BAD = {"s": (0.0, 0.5)}


def weight(*shape: int, seed: int = 1) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:])))


@pytest.fixture
def teacher(build_graph: Build) -> Graph:
    lines = (
        "a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2, b2) "
        "s = Relu(b) p = GlobalAveragePool(s) f = Flatten(p) logits = Gemm<transB=1>(f, w3, b3)"
    )
    weights = {
        "w1": 2 * weight(8, 3, 3, 3), "b1": weight(8), "w2": 2 * weight(12, 8, 3, 3, seed=2),
        "b2": weight(12, seed=3), "w3": 4 * weight(5, 12, seed=4), "b3": weight(5, seed=5),
    }  # fmt: skip
    return build_graph(f"g (float[1,3,12,12] x) => (float[1,5] logits) {{ {lines} }}", weights)


def samples(graph: Graph, count: int = 40) -> Samples:
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(1, 3, 12, 12)).astype(np.float32) for _ in range(count)]
    return open_samples(rows, graph.inputs, Preprocess())


def train(
    start: Quantization, teacher: Graph, options: QatOptions = FAST, data: Samples | None = None, **more: Any
) -> QatResult:
    given = samples(teacher) if data is None else data
    return qat(
        start.work, start.plan, start.params, start.scheme, start.scales, teacher, given, options, **more
    )


def longer(options: QatOptions = FAST, **changed: Any) -> QatOptions:
    return replace(options, distill=replace(options.distill, **changed))


def difference(network: Graph, teacher: Graph, data: Samples) -> float:
    """Of held-out samples, as training measures it, but in ONNX Runtime without optimizations."""
    match = Match(teacher)
    mine, goal = (open_runner(g, threads=1, optimize=False) for g in (network, teacher))
    held = [s.feeds for i, s in enumerate(data) if i % 8 == 7]
    pairs = [
        [{k: torch.from_numpy(v) for k, v in r.run(feed).items()} for r in (mine, goal)] for feed in held
    ]
    return float(np.mean([float(match.loss(*pair)) for pair in pairs]))


def content(graph: Graph) -> dict[str, Array]:
    found = {str(name): array(value) for name, value in graph.model.graph.initializers.items()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("learn", [False, True], ids=["fixed scales", "learned scales"])
def test_a_network_that_int8_hurts_comes_nearer_to_its_teacher(
    learn: bool, teacher: Graph, quantization: Quantize
) -> None:
    start = quantization(teacher, chosen=BAD)
    lines: list[str] = []
    before = teacher.sha256()
    result = train(start, teacher, replace(FAST, learn_scales=learn), status=lines.append)
    assert result.best < 0.7 * result.start
    assert result.history[result.best_epoch - 1].held_out == result.best
    # What it says holds for the graph that is deployed, in another runtime.
    data = samples(teacher)
    assert difference(start.deployed(), teacher, data) == pytest.approx(result.start, rel=0.02)
    assert difference(result.quantized, teacher, data) == pytest.approx(result.best, rel=0.02)
    assert teacher.sha256() == before
    assert lines
    assert not any("does not take batches" in note for note in result.notes)
    assert (result.params == dict(start.params)) == (not learn)
    assert result.graph.history[-1].pass_name == "qat"
    assert [c.pass_name for c in result.quantized.history][-2:] == ["qat", "insert_qdq"]


@pytest.mark.parametrize(("top", "wider"), [(0.5, True), (200.0, False)])
def test_learned_scales_move_to_where_the_values_are(
    top: float, wider: bool, teacher: Graph, quantization: Quantize
) -> None:
    start = quantization(teacher, chosen={"s": (0.0, top)})
    result = train(start, teacher, longer(rate=3e-2))
    ratio = result.params["s"].scale / start.params["s"].scale
    assert ratio > 1.2 if wider else ratio < 0.9
    assert result.params["s"].zero_point == start.params["s"].zero_point
    assert result.params["x"] == start.params["x"]
    assert any("scales were learned" in note for note in result.notes)


def test_a_training_that_does_harm_changes_nothing(teacher: Graph, quantization: Quantize) -> None:
    start = quantization(teacher)
    result = train(start, teacher, longer(rate=2.0, epochs=2))
    assert result.best_epoch == 0
    assert result.best == result.start
    assert result.params == dict(start.params)
    now, then = content(result.quantized), content(start.deployed())
    assert all(np.array_equal(now[name], then[name]) for name in then)


def test_held_weights_have_the_code_zero(teacher: Graph, quantization: Quantize) -> None:
    start = quantization(teacher, chosen=BAD)
    masks = {
        name: np.random.default_rng(1).random(content(teacher)[name].shape) < 0.5 for name in ("w1", "w2")
    }
    result = train(start, teacher, hold=masks)
    assert result.best_epoch > 0
    for name, mask in masks.items():
        codes = content(result.quantized)[f"{name}_quantized"]
        assert not codes[~mask].any()
        assert np.count_nonzero(codes[mask]) > 0.9 * np.count_nonzero(mask)
        assert not content(result.graph)[name][~mask].any()
    assert content(teacher)["w1"][~masks["w1"]].any()


def test_resuming_gives_the_same_network(tmp_path: Path, teacher: Graph, quantization: Quantize) -> None:
    start = quantization(teacher, chosen=BAD)
    how = longer(epochs=4, checkpoint_seconds=0.0)
    whole = train(start, teacher, how)

    class StoppedError(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 3"):
            raise StoppedError

    file = tmp_path / "run.ckpt"
    with pytest.raises(StoppedError):
        train(start, teacher, how, status=stop, checkpoint=file)
    assert file.exists()
    resumed = train(start, teacher, how, checkpoint=file)
    assert any("continued after epoch" in note for note in resumed.notes)
    assert whole.params == resumed.params
    one, two = content(whole.quantized), content(resumed.quantized)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(UsageError, match="another run: student"):
        train(start, teacher, replace(how, learn_scales=False), checkpoint=file)


def test_labels_can_be_mixed_in(teacher: Graph, quantization: Quantize) -> None:
    start = quantization(teacher, chosen=BAD)
    labels = [i % 5 for i in range(40)]
    plain = train(start, teacher, longer(epochs=2))
    mixed = train(start, teacher, longer(epochs=2, labels=labels, label_weight=0.5))
    assert any("40 samples have a label" in note for note in mixed.notes)
    assert mixed.start > plain.start  # the labels were drawn at random
    assert not np.array_equal(content(mixed.graph)["w3"], content(plain.graph)["w3"])


def test_what_is_not_trained_is_said(build_graph: Build, quantization: Quantize) -> None:
    rng = np.random.default_rng(0)
    graph = build_graph(
        "g (float[1,3,12,12] x) => (float[1,16,12,12] y) { "
        "a = Conv(x, w1) k = Mul(a, c) b = Conv(k, w3) n = BatchNormalization(b, g, s, m, v) "
        "y = Conv(n, w2) }",
        {
            "w1": weight(8, 3, 1, 1), "w2": weight(16, 8, 1, 1), "w3": weight(8, 8, 1, 1),
            "c": rng.random((1, 8, 1, 1)) + 0.5,
            **{name: rng.random(8) + 0.5 for name in "gsmv"},
        },
    )  # fmt: skip
    start = quantization(graph)
    result = train(start, graph, longer(epochs=1))
    notes = " ".join(result.notes)
    assert "1 BatchNormalization nodes are not folded" in notes
    assert "1 constant operands" in notes
    assert np.array_equal(content(result.graph)["m"], content(graph)["m"])
    assert np.array_equal(content(result.graph)["c"], content(graph)["c"])


def test_what_cannot_be_trained_is_refused(teacher: Graph, quantization: Quantize) -> None:
    start = quantization(teacher)
    with pytest.raises(DataError):
        train(start, teacher, data=open_samples([], teacher.inputs, Preprocess()))
    with pytest.raises(UsageError, match=r"fits no weight.*") as caught:
        train(start, teacher, hold={"nothing": np.ones(3, bool)})
    assert "nothing" in str(caught.value)
    empty = quantization(teacher, scheme=Scheme(ops={}))
    with pytest.raises(ModelError, match="nothing in it runs on integers"):
        train(empty, teacher)
