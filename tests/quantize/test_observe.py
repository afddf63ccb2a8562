"""The calibration pass, against NumPy on whole tensors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DataError, ModelError
from edgekit.graph import Graph
from edgekit.quantize.histogram import BINS
from edgekit.quantize.observe import BLOCK, VALUES, observe, silu, silu_inputs
from edgekit.quantize.probe import channel_axis

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
MakeValues = Callable[..., dict[str, Array]]


def _channels(stacked: Array) -> Array:
    """``[C, everything else]`` of a tensor stacked over samples."""
    axis = channel_axis(stacked.ndim - 1) + 1
    return np.moveaxis(stacked, axis, 0).reshape(stacked.shape[axis], -1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_ranges_of_random_networks(
    seed: int, random_net: Callable[[int], Graph], samples: MakeSamples, values: MakeValues
) -> None:
    graph = random_net(seed)
    feeds = samples(graph, 3, seed)
    expected = values(graph, feeds)
    found = observe(graph, expected, feeds, threads=1).histograms
    silus = silu_inputs(graph)
    floors = {str(n.outputs[0].name) for n in graph.nodes if n.op_type in ("Relu", "Clip")}
    assert set(found) == set(expected)
    for name, stacked in expected.items():
        channels, histogram = _channels(stacked), found[name]
        tolerance = 1e-4 * (1 + np.abs(channels).max())
        seen = channels.min(1)
        if name in silus:
            # Carried through from its input: not narrower than what was seen, nor past the SiLU's own ends.
            inner = _channels(expected[silus[name]])
            top = np.maximum(silu(inner.max(1)), silu(inner.min(1)))
            assert (histogram.channel_max >= channels.max(1) - tolerance).all(), name
            assert (histogram.channel_max <= top + tolerance).all(), name
            assert (histogram.channel_min >= -0.2785 - tolerance).all(), name
            continue
        np.testing.assert_allclose(histogram.channel_max, channels.max(1), atol=tolerance, err_msg=name)
        if name in floors and stacked.ndim == 5:
            assert (histogram.channel_min <= seen + tolerance).all(), name
            assert (histogram.channel_min >= np.minimum(seen, 0.0) - tolerance).all(), name
        elif name in silus.values():
            # The smallest of the sampled values: one that was really there.
            assert (histogram.channel_min >= seen - tolerance).all(), name
            apart = np.abs(channels - histogram.channel_min[:, None]).min(1)
            assert (apart <= tolerance).all(), name
        else:
            np.testing.assert_allclose(histogram.channel_min, seen, atol=tolerance, err_msg=name)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_small_tensors_are_counted_whole(
    seed: int, random_net: Callable[[int], Graph], samples: MakeSamples, values: MakeValues
) -> None:
    graph = random_net(seed)
    feeds = samples(graph, BLOCK - 1, seed)  # one block, so that nothing has been moved into new bins
    expected = {
        n: v for n, v in values(graph, feeds).items() if v[0].size <= VALUES and n not in silu_inputs(graph)
    }
    found = observe(graph, expected, feeds, threads=1).histograms
    for name, stacked in expected.items():
        histogram, seen = found[name], stacked.ravel().astype(np.float64)
        assert histogram.counts.sum() == stacked.size
        below = np.concatenate([[0], np.cumsum(histogram.counts)])
        edges = histogram.edges_low + histogram.width * np.arange(BINS + 1)
        for index in range(0, BINS + 1, 97):
            slack = histogram.width * 0.01 + 1e-5
            assert (
                (seen < edges[index] - slack).sum() <= below[index] <= (seen <= edges[index] + slack).sum()
            ), name


def _conv(
    build: Build, size: int = 32, rest: str = "y = Relu(c)", constants: dict[str, Array] | None = None
) -> Graph:
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3))
    text = f"""g (float[1,3,{size},{size}] x) => (float[1,5,{size},{size}] y) {{
        c = Conv <pads=[1,1,1,1]> (x, w) {rest}
    }}"""
    return build(text, {"w": weight, **(constants or {})})


def test_large_tensors_are_sampled_over_all_of_their_pixels(build: Build, samples: MakeSamples) -> None:
    graph = _conv(build)
    feeds = samples(graph, 40)
    histogram = observe(graph, ["x"], feeds).histograms["x"]
    per_sample = histogram.counts.sum() / 40
    assert VALUES / 2 <= per_sample <= 2 * VALUES
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = histogram.edges_low + histogram.width * np.arange(1, BINS + 1)
    for point, expected in ((-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413)):
        assert np.interp(point, edges, share) == pytest.approx(expected, abs=0.02)


def test_a_range_that_grows_keeps_what_was_counted(build: Build) -> None:
    graph = build("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    random = np.random.default_rng(0)
    small = [{"x": random.uniform(-1, 1, (1, 4)).astype(np.float32)} for _ in range(3 * BLOCK)]
    large = [{"x": random.uniform(-30, 50, (1, 4)).astype(np.float32)} for _ in range(BLOCK)]
    found = observe(graph, ["x"], [*small, *large]).histograms["x"]
    stacked = np.concatenate([f["x"] for f in (*small, *large)])
    np.testing.assert_array_equal(found.channel_min, stacked.min(0))
    np.testing.assert_array_equal(found.channel_max, stacked.max(0))
    assert found.counts.sum() == stacked.size
    assert found.edges_low <= stacked.min()
    assert found.edges_high >= stacked.max()
    assert found.counts.shape == (BINS,)
    centers = found.centers
    inside = found.counts[np.abs(centers) <= 1.0 + 2 * found.width].sum()
    assert inside == pytest.approx((np.abs(stacked) <= 1.0 + 2 * found.width).sum(), abs=3)


def test_memory_does_not_grow_with_the_number_of_samples(build: Build) -> None:
    graph = _conv(build)

    def feeds(count: int) -> Iterator[dict[str, Array]]:
        random = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": random.standard_normal((1, 3, 32, 32)).astype(np.float32)}

    def peak(count: int) -> int:
        tracemalloc.start()
        observe(graph, ["x", "c", "y"], feeds(count), threads=1)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(BLOCK)
    few, many = peak(2 * BLOCK), peak(20 * BLOCK)
    # One more sample is 12 KiB of input and as much of what is sampled.
    assert many - few < 100_000


def test_threads_change_nothing(build: Build, samples: MakeSamples) -> None:
    graph = _conv(build)
    feeds = samples(graph, 2 * BLOCK + 3)
    one = observe(graph, ["x", "c", "y"], feeds, threads=1)
    for threads in (2, 5):
        other = observe(graph, ["x", "c", "y"], iter(feeds), threads=threads)
        assert other.samples == one.samples == len(feeds)
        for name, histogram in one.histograms.items():
            for part in ("counts", "channel_min", "channel_max", "edges_low", "edges_high"):
                np.testing.assert_array_equal(
                    getattr(other.histograms[name], part), getattr(histogram, part), err_msg=name
                )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(0, 0), (17, 13)])
def test_a_value_that_is_not_finite_is_refused(build: Build, bad: float, pixel: tuple[int, int]) -> None:
    graph = _conv(build)
    image = np.ones((1, 3, 32, 32), np.float32)
    image[0, 1, pixel[0], pixel[1]] = bad
    good = {"x": np.ones((1, 3, 32, 32), np.float32)}
    with pytest.raises(ModelError, match="not finite") as caught:
        observe(graph, ["x", "c", "y"], [good, {"x": image}])
    assert caught.value.where == "tensor 'x'"


@pytest.mark.parametrize("pixel", [(0, 0), (17, 13), (5, 30)])
def test_one_nan_that_arises_inside_is_found(build: Build, pixel: tuple[int, int]) -> None:
    graph = _conv(
        build, rest="l = Sqrt(x) d = Conv(l, v) y = Add(c, d)", constants={"v": np.ones((5, 3, 1, 1))}
    )
    image = np.ones((1, 3, 32, 32), np.float32)
    image[0, 1, pixel[0], pixel[1]] = -1.0
    with pytest.raises(ModelError, match="not finite"):
        observe(graph, ["x", "c"], [{"x": image}])


def test_the_tensor_that_is_not_finite_is_named(build: Build) -> None:
    graph = build(
        "g (float[1,2,4,4] x) => (float[1,2,4,4] y) { c = Conv(x, w) l = Log(c) y = Add(l, c) }",
        {"w": np.eye(2).reshape(2, 2, 1, 1)},
    )
    feeds = [{"x": -np.ones((1, 2, 4, 4), np.float32)}]
    with pytest.raises(ModelError, match="tensor 'l'"):
        observe(graph, ["x", "c", "l"], feeds)


def test_a_minimum_that_is_not_finite_is_refused(build: Build) -> None:
    graph = build("g (float[1,4] x) => (float[1,4] y) { y = Log(x) }")
    with pytest.raises(ModelError, match="tensor 'y'"):
        observe(graph, ["y"], [{"x": np.array([[0.0, 1, 2, 3]], np.float32)}])


def test_no_sample(build: Build) -> None:
    with pytest.raises(DataError, match="no sample"):
        observe(_conv(build), ["c"], [])


def test_nothing_to_observe_still_counts_the_samples(build: Build, samples: MakeSamples) -> None:
    graph = _conv(build)
    found = observe(graph, [], samples(graph, 3))
    assert found.samples == 3
    assert found.histograms == {}


def test_progress_is_told(build: Build, samples: MakeSamples) -> None:
    graph = _conv(build)
    told: list[tuple[int, int | None]] = []
    observe(graph, ["c"], samples(graph, 3), total=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_silu_is_not_run_for_its_range(build: Build, samples: MakeSamples) -> None:
    graph = _conv(build, rest="s = Sigmoid(c) y = Mul(c, s)")
    assert silu_inputs(graph) == {"y": "c"}
    found = observe(graph, ["y"], samples(graph, 4)).histograms
    assert set(found) == {"y", "c"}
    assert found["y"].min == pytest.approx(-0.27846, abs=1e-4)
    assert found["y"].max == pytest.approx(float(silu(np.array(found["c"].max))), rel=1e-6)


def test_a_gate_of_another_tensor_is_no_silu(build: Build) -> None:
    graph = _conv(build, rest="r = Relu(c) s = Sigmoid(r) y = Mul(c, s)")
    assert silu_inputs(graph) == {}


def test_sampled_values_do_not_keep_time_with_the_channels(build: Build) -> None:
    graph = build("g (float[1,64,64] x) => (float[1,64,64] y) { y = Relu(x) }")
    x = np.zeros((1, 64, 64), np.float32)
    x[..., 3] = 1.0  # one channel in 64
    x[..., 0] = -1.0
    found = observe(graph, ["x"], [{"x": x}]).histograms["x"]
    share = np.array([found.counts[0], found.counts[BINS // 2], found.counts[-1]]) / found.counts.sum()
    np.testing.assert_allclose(share, [1 / 64, 62 / 64, 1 / 64], atol=0.005)
