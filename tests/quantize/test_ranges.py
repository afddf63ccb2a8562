"""Where the range of every tensor comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator, choose_range
from edgekit.quantize.observe import Calibration, observe, silu
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qparams import QParams, activation_params
from edgekit.quantize.ranges import RangeOptions, choose_params, fixed_ranges
from edgekit.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
Build = Callable[..., Graph]
MakeSamples = Callable[..., list[dict[str, Array]]]
MINMAX = RangeOptions(Calibrator.MINMAX)


def _graph(build: Build) -> Graph:
    random = np.random.default_rng(0)
    text = """g (float[1,3,8,8] x) => (float[1,16,4,4] y) {
        p = MaxPool <kernel_shape=[1,1]> (x)
        a = Conv(p, wa)
        s = Sigmoid(a)
        m = Mul(a, s)
        b = Conv(x, wb)
        j = Concat <axis=1> (m, b)
        q = MaxPool <kernel_shape=[2,2], strides=[2,2]> (j)
        y = Conv(q, wc)
    }"""
    shapes = {"wa": (4, 3, 1, 1), "wb": (2, 3, 1, 1), "wc": (16, 6, 1, 1)}
    return build(text, {k: random.standard_normal(v) * 3 * (1 + 2 * (k == "wa")) for k, v in shapes.items()})


def _prepared(
    build: Build, samples: MakeSamples, scheme: Scheme, **plan_options: Any
) -> tuple[Graph, Plan, Calibration]:
    graph = _graph(build)
    plan = make_plan(graph, scheme, **plan_options)
    wanted = [t for t in plan.sources if t not in fixed_ranges(graph, scheme, plan)]
    return graph, plan, observe(graph, wanted, samples(graph, 8))


def _is_about(params: QParams, low: float, high: float) -> bool:
    return bool(np.allclose(params.range, (low, high), atol=params.scale))


def test_sources_get_what_was_seen(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX, tails=False))
    seen = calibration.histograms["a"]
    assert _is_about(params["a"], seen.min, seen.max)
    assert set(params) == set(plan.tensors)


def test_ops_fix_ranges(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    assert fixed_ranges(graph, scheme, plan) == {"s": (0.0, 1.0)}
    assert "s" not in calibration.histograms
    params = choose_params(graph, plan, scheme, calibration, MINMAX)
    assert params["s"] == activation_params(0.0, 1.0, scheme.activation)


def test_a_group_takes_the_range_that_holds_all(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    params = choose_params(graph, plan, scheme, calibration, MINMAX)
    assert params["m"] == params["b"] == params["j"] == params["q"]
    low = min(calibration.histograms[t].min for t in ("m", "b"))
    high = max(calibration.histograms[t].max for t in ("m", "b"))
    assert params["j"] == activation_params(low, high, scheme.activation)
    # Neither of the two alone has that range.
    assert (low, high) not in [
        (h.min, h.max) for h in (calibration.histograms["m"], calibration.histograms["b"])
    ]


def test_inputs_of_a_concat_kept_apart(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme, apart=["j.node"])
    params = choose_params(graph, plan, scheme, calibration, MINMAX)
    assert params["m"] != params["b"]
    low = min(calibration.histograms[t].min for t in ("m", "b"))
    high = max(calibration.histograms[t].max for t in ("m", "b"))
    assert params["j"] == params["q"] == activation_params(low, high, scheme.activation)


def test_known_inputs(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    options = RangeOptions(Calibrator.MINMAX, inputs={"x": (-9.0, 7.0)})
    params = choose_params(graph, plan, scheme, calibration, options)
    expected = activation_params(-9.0, 7.0, scheme.activation)
    # The MaxPool moves the input; what it makes has the same range.
    assert {t for t in ("x", "p") if t in params and params[t] == expected} == {"x", "p"}


def test_measured_ranges_win_over_the_calibrator(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    options = RangeOptions(Calibrator.MINMAX, chosen={"a": (-1.0, 2.0), "s": (0.0, 9.0)})
    params = choose_params(graph, plan, scheme, calibration, options)
    assert params["a"] == activation_params(-1.0, 2.0, scheme.activation)
    assert params["s"] == activation_params(0.0, 1.0, scheme.activation)


def test_the_tail_of_a_silu(build: Build, samples: MakeSamples, scheme: Scheme) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    kept = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX, tails=False))["a"]
    cut = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX, tails=True))["a"]
    assert cut.range[0] > kept.range[0] + 1.0
    expected = choose_range(calibration.histograms["a"], Calibrator.MSE, function=silu)
    assert cut == activation_params(*expected, scheme.activation)


@pytest.mark.parametrize("method", Calibrator)
def test_the_calibrator_is_the_one_asked_for(
    method: Calibrator, build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph, plan, calibration = _prepared(build, samples, scheme)
    options = RangeOptions(method, percentile=90.0, tails=False)
    params = choose_params(graph, plan, scheme, calibration, options)
    expected = choose_range(calibration.histograms["a"], method, percentile=90.0)
    assert params["a"] == activation_params(*expected, scheme.activation)


def test_behind_a_raised_tensor_what_is_moved_is_looked_up(
    build: Build, samples: MakeSamples, scheme: Scheme
) -> None:
    graph, _, calibration = _prepared(build, samples, scheme)
    plan = make_plan(graph, scheme, raised=["b"])
    params = choose_params(graph, plan, scheme, calibration, MINMAX)
    assert set(params) == set(plan.tensors)
    low = min(calibration.histograms[t].min for t in ("m", "b"))
    high = max(calibration.histograms[t].max for t in ("m", "b"))
    joined = next(t for t in ("q", "j") if t in params)
    assert params[joined] == activation_params(low, high, scheme.activation)


def test_a_tensor_without_a_range_is_named(build: Build, scheme: Scheme) -> None:
    graph = _graph(build)
    plan = make_plan(graph, scheme)
    with pytest.raises(ModelError, match=r"tensor '[xpa]'"):
        choose_params(graph, plan, scheme, Calibration({}, 0), MINMAX)
