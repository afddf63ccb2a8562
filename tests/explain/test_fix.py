"""What is named is repaired, and the outputs get better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.data.base import Sample
from edgekit.data.preprocess import Preprocess
from edgekit.errors import UsageError
from edgekit.explain.case import Case
from edgekit.explain.cause import Fix
from edgekit.explain.run import Diagnosis, run
from edgekit.session import open_runner


@pytest.fixture
def fixed(scheme: Any, samples: Any) -> Any:
    def make(graph: Any, feeds: Any = None, against: Any = (), **options: Any) -> Diagnosis:
        own, other = (
            tuple(Sample(f"s{i}", f) for i, f in enumerate(part)) for part in (feeds or samples(), against)
        )
        how = Preprocess()
        case = Case("net", "ort-cpu:host", scheme, graph, None, how, "given", own, other)
        return run(case, fix=True, threads=1, **options)

    return make


def _kept(found: Diagnosis) -> set[Fix]:
    assert found.repair is not None
    return {s.fix for s in found.repair.steps if s.kept}


def _outlier(weights: Any) -> None:
    weights["w1"][3] *= 200
    weights["b1"][3] *= 200
    weights["w2"][3] /= 200


def _clash(weights: Any) -> None:
    for name in ("w3", "b3"):
        weights[name] *= 300
    weights["w7"][:12] /= 300


def _tail(weights: Any) -> None:
    weights["b2"][5] = -300.0


@pytest.mark.parametrize(
    ("plant", "fix"), [(_outlier, Fix.EQUALIZE), (_clash, Fix.EQUALIZE), (_tail, Fix.CUT)]
)
def test_a_planted_cause_is_repaired(plant: Any, fix: Fix, weights: Any, net: Any, fixed: Any) -> None:
    plant(weights)
    graph = net(weights)

    found = fixed(graph)

    assert fix in _kept(found)
    assert found.repair.noise.db > found.explanation.db + 8
    assert found.repair.noise.db > 24
    assert all(s.gain_db > 0 for s in found.repair.steps if s.kept)
    assert open_runner(found.repair.graph).run({"x": np.zeros((1, 3, 16, 16), np.float32)})["y"].shape == (
        1,
        10,
    )


def test_what_cannot_be_equalized_is_kept_above_8_bits(weights: Any, net: Any, text: str, fixed: Any) -> None:
    _clash(weights)
    text = text.replace("rl = Relu(l)", "rl = Abs(l)").replace("rr = Relu(r)", "rr = Abs(r)")

    found = fixed(net(weights, text))

    assert Fix.RAISE in _kept(found)
    assert found.repair.noise.db > found.explanation.db + 8


def test_a_few_images_no_longer_set_the_range(weights: Any, net: Any, samples: Any, fixed: Any) -> None:
    feeds = samples()
    feeds[4] = {"x": feeds[4]["x"] * 60}

    found = fixed(net(weights), feeds)

    assert _kept(found) & {Fix.CUT, Fix.CALIBRATOR}
    assert found.repair.noise.db > found.explanation.db + 3


def test_unlike_data_is_calibrated_on_too(weights: Any, net: Any, samples: Any, fixed: Any) -> None:
    quiet = [{"x": 0.2 * f["x"]} for f in samples()]

    found = fixed(net(weights), quiet, samples(seed=3))

    assert found.repair.noise.db > found.explanation.db + 8


def test_a_healthy_network_stays_healthy(weights: Any, net: Any, fixed: Any) -> None:
    found = fixed(net(weights))

    assert found.repair.noise.db >= found.explanation.db - 1e-6


def test_a_qdq_graph_alone_cannot_be_repaired(
    scheme: Any, weights: Any, net: Any, samples: Any, setting: Any
) -> None:
    made = setting(net(weights), samples())
    own = tuple(Sample(str(i), f) for i, f in enumerate(samples()))
    case = Case("net", "ort-cpu:host", scheme, None, made.graph, Preprocess(), "given", own, ())

    with pytest.raises(UsageError, match="--float"):
        run(case, fix=True, threads=1)
