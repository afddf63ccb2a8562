"""Distillation as a whole, on a network of two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import Samples, open_samples
from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph, array
from edgekit.passes.edit import set_constant
from edgekit.session import open_runner
from edgekit.train.augment import NONE, Augmentation
from edgekit.train.distill import DistillResult, distill, pair_tensors
from edgekit.train.options import DistillOptions

Array = np.ndarray[Any, Any]
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,3,12,12] x) => (float[1,{classes}] y) {{
    a = Conv <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x, w1, b1)
    {norm}
    r = Relu ({inner})
    c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r, w2, b2)
    s = Relu (c)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    y = Gemm (f, w3, b3)
}}"""
#: Quick, and with all that a run has.
FAST = DistillOptions(epochs=6, batch=8, rate=1e-2, threads=1, patience=0, features=0.1, augment=NONE)


def network(seed: int = 0, classes: int = 5, width: int = 8, norm: bool = False) -> Graph:
    rng = np.random.default_rng(seed)
    line = "n = BatchNormalization (a, gain, shift, mean, var)" if norm else ""
    model = onnx.parser.parse_model(TEXT.format(classes=classes, norm=line, inner="n" if norm else "a"))
    weights = {
        "w1": rng.normal(size=(width, 3, 3, 3)) / 3,
        "b1": rng.normal(size=width) / 10,
        "w2": rng.normal(size=(width, width, 3, 3)) / 6,
        "b2": rng.normal(size=width) / 10,
        "w3": rng.normal(size=(width, classes)),
        "b3": rng.normal(size=classes),
    }
    if norm:
        weights |= {"gain": np.ones(width), "shift": np.zeros(width)}
        weights |= {"mean": np.zeros(width), "var": np.ones(width)}
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))


def damaged(graph: Graph, amount: float = 0.1) -> Graph:
    """With noise on every weight."""
    rng = np.random.default_rng(7)
    graph = graph.copy()
    for value in graph.model.graph.initializers.values():
        old = array(value)
        assert old is not None
        set_constant(value, (old + amount * rng.normal(size=old.shape)).astype(np.float32))
    return graph


def arrays(graph: Graph, count: int = 40) -> Samples:
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(1, 3, 12, 12)).astype(np.float32) for _ in range(count)]
    return open_samples(rows, graph.inputs, Preprocess())


def photos(graph: Graph, count: int = 24) -> Samples:
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 256, (20, 16, 3), dtype=np.uint8) for _ in range(count)]
    return open_samples(rows, graph.inputs, Preprocess())


def weights(result: DistillResult) -> dict[str, Array]:
    return initial(result.graph)


def initial(graph: Graph) -> dict[str, Array]:
    found = {name: array(value) for name, value in graph.model.graph.initializers.items()}
    return {str(name): value for name, value in found.items() if value is not None}


def same(first: DistillResult, second: DistillResult) -> bool:
    a, b = weights(first), weights(second)
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_damaged_student_comes_back() -> None:
    teacher = network()
    student = damaged(teacher)
    steps: list[tuple[int, int | None]] = []
    words: list[str] = []
    result = distill(
        student, teacher, arrays(teacher), replace(FAST, epochs=15),
        progress=lambda done, total: steps.append((done, total)), status=words.append,
    )  # fmt: skip
    assert result.best < 0.4 * result.start
    assert [stats.epoch for stats in result.history] == list(range(1, 16))
    assert result.history[result.best_epoch - 1].held_out == result.best
    assert steps[-1] == (15 * 4, 15 * 4)  # 35 of 40 samples in batches of 8; 5 are held out
    assert words
    assert result.graph.history[-1].pass_name == "distill"
    # What the result object says holds for the graph it carries.
    feeds = [sample.feeds for sample in arrays(teacher)]
    answers = [
        [open_runner(g, threads=1).run(f)["y"] for f in feeds] for g in (teacher, student, result.graph)
    ]
    before, after = (np.square(np.array(a) - np.array(answers[0])).mean() for a in answers[1:])
    assert after < 0.4 * before


def test_the_student_it_was_given_stays_as_it_was() -> None:
    teacher = network()
    student = damaged(teacher)
    before = student.sha256()
    distill(student, teacher, arrays(teacher, 16), replace(FAST, epochs=1))
    assert student.sha256() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_weights(threads: int) -> None:
    teacher = network()
    how = replace(FAST, epochs=2, threads=threads, augment=None)
    runs = [distill(damaged(teacher), teacher, photos(teacher), o) for o in (how, how, replace(how, seed=1))]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_resuming_continues_bit_by_bit(tmp_path: Path) -> None:
    teacher = network()
    student, samples = damaged(teacher), photos(teacher)
    how = replace(FAST, epochs=4, augment=None, checkpoint_seconds=0.0)
    whole = distill(student, teacher, samples, how)

    class StoppedError(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("epoch 3"):
            raise StoppedError

    path = tmp_path / "run.pt"
    with pytest.raises(StoppedError):
        distill(student, teacher, samples, how, status=stop, checkpoint=path)
    resumed = distill(student, teacher, samples, how, checkpoint=path)
    assert "continued after epoch 2" in resumed.notes
    assert same(whole, resumed)
    assert [s.held_out for s in whole.history] == [s.held_out for s in resumed.history]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    teacher = network()
    path = tmp_path / "run.pt"
    how = replace(FAST, epochs=1)
    distill(damaged(teacher), teacher, arrays(teacher, 16), how, checkpoint=path)
    with pytest.raises(UsageError, match="another run: rate was"):
        distill(damaged(teacher), teacher, arrays(teacher, 16), replace(how, rate=1e-4), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no readable checkpoint"):
        distill(damaged(teacher), teacher, arrays(teacher, 16), how, checkpoint=path)


def test_no_epoch_better_returns_the_start() -> None:
    teacher = network()
    result = distill(teacher, teacher, arrays(teacher, 16), replace(FAST, epochs=2))
    assert result.best_epoch == 0
    assert any("stay as they were" in note for note in result.notes)
    assert weights(result).keys() == initial(teacher).keys()
    assert all(np.array_equal(value, initial(teacher)[name]) for name, value in weights(result).items())


def test_a_loss_that_is_not_finite_ends_with_the_best_so_far() -> None:
    teacher = network()
    result = distill(
        damaged(teacher), teacher, arrays(teacher), replace(FAST, rate=1e30, clip=1e30, epochs=4)
    )
    assert any("not finite" in note and "learning rate" in note for note in result.notes)
    assert all(np.isfinite(value).all() for value in weights(result).values())


def test_held_weights_stay_zero() -> None:
    teacher = network()
    mask = np.random.default_rng(0).random((8, 8, 3, 3)) < 0.5
    result = distill(damaged(teacher), teacher, arrays(teacher), FAST, hold={"w2": mask})
    assert result.best_epoch > 0
    assert (weights(result)["w2"][~mask] == 0).all()
    assert (weights(result)["w2"][mask] != 0).all()
    with pytest.raises(UsageError, match="hold, w2: the mask"):
        distill(damaged(teacher), teacher, arrays(teacher), FAST, hold={"w2": mask[:4]})


def test_seconds_limit_the_run_and_the_schedule() -> None:
    teacher = network()
    how = replace(FAST, epochs=None, seconds=1.5)
    result = distill(damaged(teacher), teacher, arrays(teacher, 200), how)
    assert result.seconds < 2.5
    assert len(result.history) >= 1
    assert result.history[-1].rate < 0.3 * 1e-2


def test_patience_ends_a_run_that_does_not_improve() -> None:
    teacher = network()
    result = distill(teacher, teacher, arrays(teacher, 16), replace(FAST, epochs=10, patience=2))
    assert len(result.history) == 4  # two epochs, but at least 40 % of the run
    assert any("no better epoch in 4" in note for note in result.notes)


def test_a_narrower_student_learns_through_adapters() -> None:
    teacher, student = network(), network(seed=1, width=6)
    result = distill(student, teacher, arrays(teacher), replace(FAST, features=1.0, epochs=10))
    assert any("1 of them by a learned 1×1 map" in note for note in result.notes)
    assert result.best < result.start
    assert weights(result)["w1"].shape == (6, 3, 3, 3)


def test_labels_pull_towards_them() -> None:
    teacher = network()
    samples = arrays(teacher, 32)
    how = replace(FAST, epochs=20, held_out=4)
    free = distill(teacher, teacher, samples, replace(how, labels=[2] * 32, label_weight=0.0))
    result = distill(damaged(teacher), teacher, samples, replace(how, labels=[2] * 32, label_weight=0.9))
    assert any("32 samples have a label" in note for note in result.notes)
    assert free.best_epoch == 0

    def share(graph: Graph) -> float:
        runner = open_runner(graph, threads=1)
        return float(np.mean([runner.run(s.feeds)["y"].argmax() == 2 for s in samples]))

    assert share(result.graph) > share(damaged(teacher))
    with pytest.raises(DataError, match="3 labels, but more samples"):
        distill(teacher, teacher, samples, replace(how, labels=[0, 1, 2]))


@pytest.mark.parametrize(
    ("make", "how", "expected"),
    [
        (arrays, FAST, "came as arrays: they are not varied"),
        (photos, replace(FAST, augment=Augmentation(noise=0.1)), "noise and mixup do not apply"),
        (lambda graph: photos(graph, 4), FAST, "4 samples are too few to hold some out"),
        (lambda graph: photos(graph, 16), replace(FAST, cache_bytes=5000), "read again in every epoch"),
    ],
)
def test_what_happens_to_samples_is_said(
    make: Callable[[Graph], Samples], how: DistillOptions, expected: str
) -> None:
    teacher = network()
    result = distill(damaged(teacher), teacher, make(teacher), replace(how, epochs=2))
    assert any(expected in note for note in result.notes)
    assert len(result.history) == 2


@pytest.mark.parametrize(("count", "frozen"), [(8, False), (4, False), (8, True)])
def test_batch_normalization_trains_on_large_batches_alone(count: int, frozen: bool) -> None:
    teacher = network(norm=True)
    how = replace(FAST, batch=count, epochs=1, freeze_norm=frozen, features=0.0)
    result = distill(damaged(teacher, 0.02), teacher, arrays(teacher, 20), how)
    trains = count >= 8 and not frozen
    assert any("keeps its running statistics" in note for note in result.notes) != trains
    if trains and result.best_epoch:
        before = initial(damaged(teacher, 0.02))["mean"]
        assert not np.array_equal(weights(result)["mean"], before)


def test_a_graph_that_takes_no_batches_is_trained_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = network()
    batched = distill(damaged(teacher), teacher, arrays(teacher, 16), replace(FAST, epochs=2))
    monkeypatch.setattr("edgekit.train.distill.check_batch", lambda *_: False)
    single = distill(damaged(teacher), teacher, arrays(teacher, 16), replace(FAST, epochs=2))
    assert any("sample by sample" in note for note in single.notes)
    assert single.best == pytest.approx(batched.best, rel=0.05)


def test_outputs_are_paired_by_name_then_by_position() -> None:
    teacher = network()
    renamed = network().copy()
    renamed.model.graph.outputs[0].name = "other"
    assert pair_tensors(renamed, teacher).outputs == {"other": "y"}
    result = distill(renamed, teacher, arrays(teacher, 16), replace(FAST, epochs=1))
    assert [spec.name for spec in result.graph.outputs] == ["other"]
    with pytest.raises(ModelError, match=r"student's outputs \('y' \[1, 4\] float32\) do not match"):
        distill(network(classes=4), teacher, arrays(teacher, 16), FAST)
