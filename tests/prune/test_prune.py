"""The whole line: rank, allocate, remove, in steps, with blocks, to every kind of aim."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.data.base import Sample
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.prune.apply import apply
from edgekit.prune.figures import Timing
from edgekit.prune.options import Importance, PruneOptions, PruneResult, Scope
from edgekit.prune.plan import PruningPlan
from edgekit.prune.prune import prune, read_feeds
from edgekit.session import open_runner
from edgekit.stats import count
from edgekit.target import NodeRequest, Profile

L1 = Importance.MAGNITUDE_L1


def _run(graph: Graph, data: Any, /, **options: Any) -> PruneResult:
    return prune(graph, data, PruneOptions(**{"align": 2, "importance": L1, **options}))


def _same(a: Graph, b: Graph) -> None:
    feed = {"x": np.random.default_rng(5).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    first, second = (open_runner(g, threads=1).run(feed)["y"] for g in (a, b))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aim", ["macs", "params", "bytes"])
@pytest.mark.parametrize("scope", list(Scope))
def test_an_aim_is_reached(net: Graph, samples: Any, aim: str, scope: Scope) -> None:
    result = _run(net, samples, **{aim: 0.6}, scope=scope)
    assert 0.5 < result.reached[aim] <= 0.6
    stats = count(result.graph)
    assert result.after["macs"].value == stats.macs
    assert result.reached["macs"] == stats.macs / count(net).macs
    assert result.graph.outputs == net.outputs
    assert all(len(units) % 2 == 0 for units in result.plan.groups.values())
    _same(apply(net, result.plan), result.graph)


def test_keep_is_half_of_every_group(net: Graph, samples: Any) -> None:
    result = _run(net, samples, keep=0.5)
    kept = {g.name: len(result.plan.groups[g.name]) for g in result.groups.groups}
    assert kept == {g.name: g.size // 2 for g in result.groups.groups}
    assert result.reached["keep"] == 0.5


def test_the_least_important_units_go(net: Graph, samples: Any) -> None:
    result = _run(net, samples, keep=0.5, importance=Importance.FISHER, samples=4)
    for name, kept in result.plan.groups.items():
        scores = result.importance[name]
        gone = sorted(set(range(len(scores))) - set(kept))
        assert scores[gone].max() <= scores[kept].min()


def test_steps_rank_anew_and_end_at_the_same_aim(net: Graph, samples: Any) -> None:
    result = _run(net, samples, macs=0.5, steps=3, importance=Importance.FISHER, samples=4)
    steps = [h for h in result.history if "step" in h]
    assert [round(h["target"], 4) for h in steps] == [round(0.5 ** (i / 3), 4) for i in (1, 2, 3)]
    assert 0.4 < result.reached["macs"] <= 0.5
    _same(apply(net, result.plan), result.graph)


def test_keep_in_steps_refers_to_the_original(net: Graph, samples: Any) -> None:
    result = _run(net, samples, keep=0.5, steps=2)
    assert {n: len(k) for n, k in result.plan.groups.items()} == {g.name: g.size // 2 for g in result.groups}


def test_recovery_comes_between_the_steps(net: Graph, samples: Any) -> None:
    calls: list[tuple[int, int]] = []

    def recover(pruned: Graph, teacher: Graph, plan: PruningPlan) -> Graph:
        assert teacher is net
        assert count(apply(net, plan)).macs == count(pruned).macs
        calls.append((count(pruned).macs, count(teacher).macs))
        return pruned

    prune(net, samples, PruneOptions(macs=0.5, steps=3, importance=L1, align=2), recover=recover)
    assert len(calls) == 2
    assert calls[0][0] > calls[1][0]


def test_blocks_go_before_channels(net: Graph, samples: Any) -> None:
    result = _run(net, samples, macs=0.6, drop_layers=1)
    assert len(result.plan.dropped) == 1
    assert "dropped" in result.history[0]
    assert result.reached["macs"] <= 0.6
    _same(apply(net, result.plan), result.graph)
    only = _run(net, samples, drop_layers=1)
    assert len(only.plan.dropped) == 1
    assert only.plan.groups == {}


def test_excluded_groups_stay_whole_and_are_listed(net: Graph, samples: Any) -> None:
    result = _run(net, samples, keep=0.5, exclude=("st*",))
    assert len(result.plan.groups.get("stem", range(16))) == 16
    assert ("stem", "excluded") in [(r.where, r.reason) for r in result.refused]
    with pytest.raises(UsageError, match=r"'nope' fits no group.*stem"):
        _run(net, samples, keep=0.5, exclude=("nope",))
    with pytest.raises(UsageError, match="nothing in the network can be pruned"):
        _run(net, samples, keep=0.5, exclude=("*",))


def test_what_cannot_be_reached_says_what_can(net: Graph, samples: Any) -> None:
    with pytest.raises(UsageError, match=r"macs: 0\.100 cannot be reached.*valid: 0\.\d+ to 1"):
        _run(net, samples, macs=0.1, min_keep=0.5)
    with pytest.raises(UsageError, match=r"macs: 0\.1"):
        _run(net, samples, macs=0.1, min_keep=0.5, steps=2)


def test_groups_without_gammas_are_left_whole_and_listed(normed: Graph, samples: Any) -> None:
    result = _run(normed, samples, keep=0.5, importance=Importance.BN_GAMMA)
    assert [n for n, k in result.plan.groups.items() if len(k) < result.plan.sizes[n]] == ["stem"]
    assert any("BatchNormalization" in r.reason for r in result.refused)


def test_the_report_is_json(net: Graph, samples: Any) -> None:
    report = _run(net, samples, macs=0.6, drop_layers=1).report()
    assert json.loads(json.dumps(report, allow_nan=False))["reached"]["macs"] <= 0.6


def test_the_original_stays_as_it_was(net: Graph, samples: Any) -> None:
    before = net.sha256()
    _run(net, samples, macs=0.5, steps=2, importance=Importance.FISHER, samples=2)
    assert net.sha256() == before


def test_the_same_seed_gives_the_same_plan(net: Graph, samples: Any) -> None:
    plans = [
        _run(net, samples, macs=0.5, importance=Importance.FISHER, samples=3, seed=7).plan for _ in range(2)
    ]
    assert plans[0] == plans[1]


class _Slow:
    """A target on which every width costs the same, but for the stem's."""

    name = title = "slow"
    profile = Profile("host", "this machine", align=4)
    scheme = None

    def cost_model(self, graph: Graph, kind: str, threads: int) -> _Slow:
        return self

    fixed_ms = 0.0
    parts = 4
    notes = ("rough",)

    def node_ms(self, requests: Sequence[NodeRequest]) -> list[float]:
        return [r.outputs[0][1] / 16 if r.node.name == "stem" else 1.0 for r in requests]

    def byte_ms(self, node: ir.Node) -> float:
        return 0.0

    def predict(self, graph: Graph) -> Measurement:
        return Measurement(float(count(graph).macs), "ms", Method.MODEL_ESTIMATE)


def test_latency_takes_what_the_target_finds_fast(net: Graph, samples: Any) -> None:
    # 5.x ms in all, 1 of them in the stem: only narrowing that one helps.
    whole = sum(1 for n in net.nodes if n.op_type in ("Conv", "Gemm"))
    result = prune(net, samples, PruneOptions(latency=1 - 0.5 / whole, importance=L1), _Slow())  # type: ignore[arg-type]
    assert {n for n, k in result.plan.groups.items() if len(k) < result.plan.sizes[n]} == {"stem"}
    assert len(result.plan.groups["stem"]) == 8
    assert "rough" in result.warnings
    assert result.after["latency"].method is Method.MODEL_ESTIMATE


class _Counted:
    def __init__(self, total: int | None) -> None:
        self.count = total
        self.read = 0

    def __iter__(self) -> Iterator[Sample]:
        for i in range(self.count or 20):
            self.read += 1
            yield Sample(str(i), {"x": np.array([i])})


def test_samples_are_spread_over_all_of_them() -> None:
    feeds = read_feeds(_Counted(20), 4)  # type: ignore[arg-type]
    assert [int(f["x"][0]) for f in feeds] == [0, 5, 10, 15]
    endless = _Counted(None)
    assert len(read_feeds(endless, 4)) == 4  # type: ignore[arg-type]
    assert endless.read <= 5


@pytest.mark.parametrize("steady", [True, False])
def test_an_unsteady_measurement_decides_nothing(
    net: Graph, samples: Any, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    slow = Timing(_ms(1.0), _ms(1.3), steady, () if steady else ("not measured reliably",))
    calls: list[int] = []

    def measured(*_: Any) -> Timing:
        calls.append(1)
        return slow

    module = importlib.import_module("edgekit.prune.prune")
    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "can_measure", lambda target: True)
    whole = sum(1 for n in net.nodes if n.op_type in ("Conv", "Gemm"))
    options = PruneOptions(latency=1 - 0.25 / whole, importance=L1)
    if steady:  # 30 % slower than the original: the target is tightened beyond what the floors allow
        with pytest.raises(UsageError, match="cannot be reached"):
            prune(net, samples, options, _Slow())  # type: ignore[arg-type]
        return
    result = prune(net, samples, options, _Slow())  # type: ignore[arg-type]
    assert len(calls) == 1
    assert result.history[-1]["measured"] is None
    assert "not measured reliably" in result.warnings
    assert not any("slower" in text for text in result.warnings)
    assert result.after["latency"].method is Method.MODEL_ESTIMATE


def _ms(value: float) -> Measurement:
    return Measurement(value, "ms", Method.HOST)
