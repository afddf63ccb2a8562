"""The whole line from samples to a QDQ graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DataError, ModelError
from edgekit.graph import Graph
from edgekit.quantize.bias import correctable
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.findings import Kind
from edgekit.quantize.judge import Judge
from edgekit.quantize.plan import Plan
from edgekit.quantize.quantize import Options, QuantizeResult, Spread, quantize
from edgekit.quantize.scheme import Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
MODULE = importlib.import_module("edgekit.quantize.ladder")
SHARED = Path(__file__).parents[2].parent / "shared"
PLAIN = Options(calibrator="minmax", equalize=False, correct_biases=False, max_raised=0)


def _clash(build: Build, activation: str = "r = Relu(a)") -> Graph:
    """Channels 500 to 1 in front of a depthwise Conv that makes up for it."""
    random = np.random.default_rng(0)
    scale = np.where(np.arange(16) == 3, 1.0, 1 / 500).reshape(-1, 1, 1, 1)
    text = f"""g (float[1,3,12,12] x) => (float[1,10] y) {{
        a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1, b1) {activation}
        d = Conv <group=16, pads=[1,1,1,1]> (r, w2) e = Relu(d)
        c = Conv(e, w3, b3) f = Relu(c)
        p = GlobalAveragePool(f) q = Flatten(p) y = Gemm(q, w4, b4)
    }}"""
    constants = {
        "w1": random.standard_normal((16, 3, 3, 3)) / 3 * scale,
        "b1": random.standard_normal(16) / 4 * scale.ravel(),
        "w2": random.standard_normal((16, 1, 3, 3)) / 2 / scale,
        "w3": random.standard_normal((24, 16, 1, 1)) / 3,
        "b3": random.standard_normal(24) / 4,
        "w4": random.standard_normal((24, 10)) / 3,
        "b4": random.standard_normal(10) / 4,
    }
    return build(text, constants)


def _db(graph: Graph, quantized: Graph, feeds: Iterable[dict[str, Array]]) -> float:
    first, second = open_runner(graph, threads=1), open_runner(quantized, threads=1)
    error = energy = 0.0
    for feed in feeds:
        wanted, found = first.run(feed), second.run(feed)
        for name, signal in wanted.items():
            error += float(((found[name].astype(np.float64) - signal) ** 2).sum())
            energy += float((signal.astype(np.float64) ** 2).sum())
    return float(10 * np.log10(energy / max(error, 1e-30)))


def _quantize(
    graph: Graph, scheme: Scheme, feeds: list[dict[str, Array]], options: Options | None = None, **more: Any
) -> QuantizeResult:
    return quantize(graph, scheme, lambda: feeds, options, threads=1, **more)


def test_clashing_channels_are_repaired(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    feeds, unseen = samples(graph, 24), samples(graph, 12, 9)
    plain = _quantize(graph, scheme, feeds, PLAIN)
    repaired = _quantize(graph, scheme, feeds)
    assert _db(graph, plain.graph, unseen) < 12
    assert _db(graph, repaired.graph, unseen) > _db(graph, plain.graph, unseen) + 12
    assert repaired.raised == ()
    (clash,) = [f for f in repaired.findings if f.kind is Kind.CHANNELS and f.where == "r"]
    assert clash.action.startswith("equalized: small channels raised by up to 32x")
    assert clash.ratio > 100


def test_the_measured_quality_is_that_of_the_graph(
    build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph = _clash(build)
    feeds = samples(graph, 16)
    result = _quantize(graph, scheme, feeds, Options(judge_samples=16))
    assert result.db == pytest.approx(_db(graph, result.graph, feeds), abs=0.05)
    assert result.rungs[-1][1] == result.db
    assert result.db >= max(db for label, db in result.rungs if label.startswith("best: "))
    # Parameters, plan and graph belong together.
    values = result.graph.values()
    assert set(result.params) >= set(result.plan.tensors)
    for tensor in result.plan.tensors:
        scale = values[f"{tensor}_scale"].const_value
        assert scale is not None
        assert float(scale.numpy()) == result.params[tensor].scale
    assert [c.pass_name for c in result.graph.history] == ["equalize", "correct_biases", "insert_qdq"]
    assert set(result.seconds) == {"calibrate", "prepare", "search"}


def test_two_runs_are_the_same_to_the_bit(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    feeds = samples(graph, 20)
    first = quantize(graph, scheme, lambda: feeds, threads=1)
    second = quantize(graph, scheme, lambda: iter(feeds), threads=3)
    assert first.graph.sha256() == second.graph.sha256()
    assert first.rungs == second.rungs
    assert first.findings == second.findings


def test_the_float_graph_is_not_touched(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    before = graph.sha256()
    _quantize(graph, scheme, samples(graph, 4))
    assert graph.sha256() == before


@pytest.mark.parametrize("method", Calibrator)
def test_the_calibrator_that_was_asked_for(
    method: Calibrator, build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph = _clash(build)
    result = _quantize(graph, scheme, samples(graph, 8), Options(calibrator=method.value))
    assert result.calibrator is method
    tried = {label.removeprefix("best: ").partition(",")[0] for label, _ in result.rungs}
    assert not tried & ({m.value for m in Calibrator} - {method.value})


def test_auto_keeps_the_best(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    feeds = samples(graph, 16)
    result = _quantize(graph, scheme, feeds)
    tried = {label.partition(",")[0]: 0.0 for label, _ in result.rungs}
    assert {m.value for m in Calibrator} <= set(tried)
    chosen = next(db for label, db in result.rungs if label.startswith("best: "))
    assert chosen == max(
        db for label, db in result.rungs[: len(result.rungs)] if label.partition(",")[0] in set(Calibrator)
    )


def test_steps_can_be_switched_off(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    feeds = samples(graph, 8)
    names = [c.pass_name for c in _quantize(graph, scheme, feeds, PLAIN).graph.history]
    assert names == ["insert_qdq"]
    assert _quantize(graph, scheme, feeds, PLAIN).raised == ()
    only = _quantize(graph, scheme, feeds, Options(calibrator="minmax", equalize=False))
    assert "equalize" not in [c.pass_name for c in only.graph.history]


def _hopeless(build: Build) -> Graph:
    """The same clash behind a Tanh, where nothing can be equalized."""
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        t = Tanh(x) a = Conv(t, w1) h = HardSwish(a) b = Conv(h, w2) y = Conv(b, w3)
    }"""
    random = np.random.default_rng(0)
    scale = np.where(np.arange(16) == 3, 1.0, 1 / 2000)
    constants = {
        "w1": random.standard_normal((16, 16, 1, 1)) * 4 * scale.reshape(-1, 1, 1, 1),
        "w2": random.standard_normal((16, 16, 1, 1)) / 4 / scale.reshape(1, -1, 1, 1),
        "w3": random.standard_normal((16, 16, 1, 1)) / 4,
    }
    return build(text, constants)


def test_what_cannot_be_repaired_is_raised(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _hopeless(build)
    feeds, unseen = samples(graph, 12), samples(graph, 6, 7)
    left = _quantize(graph, scheme, feeds, Options(max_raised=0, target_db=20.0))
    assert left.raised == ()
    assert left.db < 20
    result = _quantize(graph, scheme, feeds, Options(target_db=20.0))
    assert {r.tensor for r in result.raised} <= {"a", "h"}
    assert result.raised
    assert len(result.raised) <= scheme.max_raised
    assert result.db >= 20
    assert _db(graph, result.graph, unseen) > 18
    assert not {r.tensor for r in result.raised} & set(result.plan.tensors)
    actions = {f.where: f.action for f in result.findings if f.kind is Kind.CHANNELS}
    for item in result.raised:
        assert item.gain_db > 0
        assert actions.get(item.tensor, "raised to float32") == "raised to float32"


def test_a_silu_is_equalized_before_anything_is_left_bad(
    build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph = _clash(build, "s = Sigmoid(a) r = Mul(a, s)")
    feeds = samples(graph, 12)
    options = Options(target_db=60.0, max_raised=0)
    result = _quantize(graph, scheme, feeds, options)
    without = _quantize(graph, scheme, feeds, Options(target_db=60.0, max_raised=0, equalize=False))
    assert any(label == "equalize 'r'" for label, _ in result.rungs)
    assert result.db > without.db + 3
    assert any(n.name == "r.restore" for n in result.graph.nodes)


def test_known_input_ranges_are_used(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    result = _quantize(graph, scheme, samples(graph, 4), PLAIN, input_ranges={"x": (-7.0, 9.0)})
    assert result.params["x"].range == pytest.approx((-7.0, 9.0), abs=0.05)


def test_a_graph_without_integer_kernels_stays_as_it_is(
    build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph = build("g (float[1,4] x) => (float[1,4] y) { t = Tanh(x) y = Exp(t) }")
    result = _quantize(graph, scheme, samples(graph, 3))
    assert result.plan.integer_nodes == frozenset()
    assert result.params == {}
    assert result.db == pytest.approx(120.0)
    feed = samples(graph, 1)[0]
    np.testing.assert_array_equal(open_runner(result.graph).run(feed)["y"], open_runner(graph).run(feed)["y"])


def test_progress_and_status_are_told(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    counts: list[tuple[int, int | None]] = []
    lines: list[str] = []
    result = _quantize(
        graph,
        scheme,
        samples(graph, 5),
        total=5,
        progress=lambda done, total: counts.append((done, total)),
        status=lines.append,
    )
    assert counts[:5] == [(i + 1, 5) for i in range(5)]
    assert len(lines) == len(result.rungs) + len(result.ladder)
    assert lines[0] == f"{result.rungs[0][0]}: {result.rungs[0][1]:.1f} dB"


def test_no_samples(build: Build, scheme: Scheme) -> None:
    with pytest.raises(DataError, match="no sample"):
        _quantize(_clash(build), scheme, [])


def test_a_correction_that_makes_it_worse_is_not_used(
    build: Build, samples: MakeSamples, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Graph, quantized: Graph, plan: Plan, *_: Any, **__: Any) -> dict[str, Array]:
        shapes = {str(v.name): v.shape for v in graph.values().values()}
        return {t: np.full(shapes[t][1], 50.0) for t in correctable(graph, plan).values()}  # type: ignore[index]

    graph = _clash(build)
    feeds = samples(graph, 8)
    monkeypatch.setattr(MODULE, "quantized_means", wrong)
    result = _quantize(graph, scheme, feeds, Options(judge_samples=8))
    assert result.rungs[-2][1] < result.db
    assert result.rungs[-1][0] == "biases corrected for weights only"
    assert result.db == pytest.approx(_db(graph, result.graph, feeds), abs=0.05)


@pytest.mark.parametrize(("length", "kept", "judged"), [(100, 16, 8), (100, 4, 8), (5, 16, 3), (30, 16, 1)])
def test_candidates_are_judged_on_a_few_samples_of_the_whole_stream(
    length: int,
    kept: int,
    judged: int,
    build: Build,
    samples: MakeSamples,
    scheme: Scheme,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[list[int]] = []

    class Watched(Judge):
        def __init__(self, reference: Graph, feeds: Sequence[Mapping[str, Array]], **more: Any) -> None:
            given.append([next(i for i, f in enumerate(stream) if f is feed) for feed in feeds])
            super().__init__(reference, feeds, **more)

    graph = build("g (float[1,4] x) => (float[1,4] y) { y = Tanh(x) }")
    stream = samples(graph, length)
    monkeypatch.setattr(MODULE, "Judge", Watched)
    _quantize(graph, scheme, stream, Options(kept_samples=kept, judge_samples=judged))
    (indices,) = given
    assert 1 <= len(indices) <= judged
    assert indices == sorted(indices)
    assert indices[0] == 0
    if length > 1 and len(indices) > 1:
        assert indices[-1] >= length // 2


def test_one_sample_is_enough(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    assert _quantize(graph, scheme, samples(graph, 1)).db > 15


def test_a_sample_that_is_not_finite(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    feeds = samples(graph, 4)
    feeds[2]["x"][0, 0, 5, 5] = np.nan
    with pytest.raises(ModelError, match="tensor 'x'"):
        _quantize(graph, scheme, feeds)


def test_an_unknown_calibrator(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph = _clash(build)
    with pytest.raises(ValueError, match="median"):
        _quantize(graph, scheme, samples(graph, 2), Options(calibrator="median"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_random_networks(
    seed: int, random_net: Callable[[int], Graph], samples: MakeSamples, scheme: Scheme
) -> None:
    graph = random_net(seed)
    feeds = samples(graph, 4, seed)
    result = _quantize(graph, scheme, feeds, Options(calibrator="mse", target_db=25.0))
    assert [o.name for o in result.graph.outputs] == [o.name for o in graph.outputs]
    assert result.db > 10
    assert _db(graph, result.graph, feeds) > 10


# Samples kept from a stream of any length.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(count=st.integers(1, 16), length=st.integers(0, 300), known=st.booleans(), wrong=st.integers(1, 50))
def test_kept_samples_are_spread_evenly(count: int, length: int, known: bool, wrong: int) -> None:
    spread = Spread(count, length if known else None)
    stream = [{"x": np.array(i)} for i in range(length)]
    most = 0
    passed = []
    for feed in spread.watch(stream):
        passed.append(feed)
        most = max(most, len(spread._kept))
    assert passed == stream
    assert most <= 2 * count
    kept = [int(f["x"]) for f in spread.kept]
    assert len(kept) <= count
    assert len(kept) >= min(length, (count + 1) // 2)
    steps = set(np.diff(kept).tolist())
    assert len(steps) <= 1
    if len(kept) > 1:
        assert kept[0] == 0
        assert length - kept[-1] <= 2 * steps.pop()


# A real network on real faces.


def _faces(numbers: tuple[int, ...]) -> list[dict[str, Array]]:
    from PIL import Image

    found = []
    for person in sorted((SHARED / "data" / "faces").glob("s*")):
        images = sorted(person.glob("*.png"))
        for number in numbers:
            with Image.open(images[number]) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32) / 255
            mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
            found.append(((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
    return [{"": f} for f in found]


def test_a_face_network_keeps_its_embeddings(scheme: Scheme) -> None:
    from edgekit.capture import capture

    path = SHARED / "models" / "mobilefacenet.onnx"
    if not path.exists() or not (SHARED / "data" / "faces").exists():
        pytest.skip("needs shared/models/mobilefacenet.onnx and shared/data/faces beside the repository")
    graph = capture(str(path)).graph
    name = graph.inputs[0].name
    feeds = [{name: f[""]} for f in _faces((0, 4))]
    unseen = [{name: f[""]} for f in _faces((9,))]
    assert (len(feeds), len(unseen)) == (40, 20)
    result = quantize(graph, scheme, lambda: feeds, total=len(feeds))
    first, second = open_runner(graph), open_runner(result.graph)
    cosines = []
    for feed in unseen:
        a, b = (next(iter(r.run(feed).values())).ravel().astype(np.float64) for r in (first, second))
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.mean(cosines) >= 0.995
    assert np.min(cosines) >= 0.98
