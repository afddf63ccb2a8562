"""Figures beside the original's, and the warning where pruning did not pay."""

from __future__ import annotations

import pytest

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.measure.result import Measurement, Method
from edgekit.prune.figures import (
    can_measure,
    figures,
    judge,
    measure,
    open_cost_model,
    slower,
)
from edgekit.prune.options import CostKind, PruneOptions
from edgekit.registry import load_target
from edgekit.stats import count


def _ms(value: float) -> Measurement:
    return Measurement(value, "ms", Method.HOST)


def test_figures_are_counted(net: Graph) -> None:
    found = figures(net, CostKind.FLOAT)
    stats = count(net)
    assert found["macs"].value == stats.macs
    assert found["params"].value == stats.parameters
    assert found["bytes"].value == stats.size_bytes
    assert figures(net, CostKind.INT8)["bytes"].value < stats.size_bytes / 3


@pytest.mark.parametrize(
    ("after", "text"), [(1.2, "is slower than"), (0.99, "is no faster than"), (0.9, None)]
)
def test_a_network_that_is_not_faster_is_called_so(after: float, text: str | None) -> None:
    found = slower(_ms(1.0), _ms(after))
    assert len(found) == (0 if text is None else 1)
    assert text is None or text in found[0]


def test_a_target_without_a_cost_model_is_refused_for_latency(net: Graph) -> None:
    options = PruneOptions(latency=0.5)
    with pytest.raises(UsageError, match=r"'null' has no cost model.*ort-cpu"):
        open_cost_model(net, options, load_target("null"))
    with pytest.raises(UsageError, match="without a target"):
        open_cost_model(net, options, None)


def test_a_board_is_refused_for_latency(net: Graph) -> None:
    with pytest.raises(UsageError, match=r"Raspberry Pi 4.*table of its kernels"):
        open_cost_model(net, PruneOptions(latency=0.5), load_target("ort-cpu:rpi4"))


def test_only_this_machine_can_be_measured() -> None:
    assert can_measure(load_target("ort-cpu:host"))
    assert not can_measure(load_target("ort-cpu:rpi4"))
    assert not can_measure(load_target("null"))


def test_both_are_timed_side_by_side(net: Graph) -> None:
    found = measure(net, net, PruneOptions(keep=0.5, threads=1), load_target("ort-cpu:host-1t"))
    assert (found.before.unit, found.before.method) == ("ms", Method.HOST)
    assert found.after.value > 0
    assert found.steady or any("not measured reliably" in note for note in found.notes)


def test_interruptions_that_favour_the_shorter_network_are_not_believed() -> None:
    # As seen at a load of 11 on two cores: half the work, yet a sixteenth by the medians.
    before = [2.1] * 20 + [18.2] * 80
    after = [1.1] * 60 + [18.0] * 40
    found = judge(before, after)
    assert not found.steady
    assert found.share == pytest.approx(1.1 / 2.1)
    assert "not measured reliably: 52 % is left by the fast calls, 6 % by the medians" in found.notes[-1]


def test_interruptions_that_hit_both_alike_are_not_believed_either() -> None:
    assert not judge([2.0] * 20 + [20.0] * 80, [1.0] * 20 + [10.0] * 80).steady


def test_a_quiet_machine_is_believed() -> None:
    found = judge([2.0, 2.05, 2.1] * 30, [1.0, 1.02, 1.05] * 30, ["a note"])
    assert found.steady
    assert found.notes == ("a note",)
