"""Effect of each group and block, for the chart."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from edgekit.graph import Graph
from edgekit.prune.groups import find_groups
from edgekit.prune.importance import importance
from edgekit.prune.options import Importance
from edgekit.prune.sensitivity import RATIOS, sensitivity
from edgekit.stats import count

Feeds = list[dict[str, np.ndarray[Any, Any]]]


def test_every_group_has_a_point_for_every_ratio(net: Graph, feeds: Feeds) -> None:
    groups = find_groups(net)
    scores = importance(net, groups, Importance.MAGNITUDE_L1, [])
    seen: list[tuple[int, int | None]] = []
    entries = sensitivity(
        net, groups, scores, feeds[:4], progress=lambda done, total: seen.append((done, total))
    )
    json.dumps(entries, allow_nan=False)
    by_name = {entry["name"]: entry for entry in entries if entry["kind"] != "block"}
    assert list(by_name) == [g.name for g in groups.groups]
    for group in groups.groups:
        points = by_name[group.name]["points"]
        assert [p["removed"] for p in points] == [round(r * group.size) for r in RATIOS]
        saved = [p["macs"] for p in points]
        assert saved == sorted(saved)
        assert 0 < saved[0] < saved[-1] < 1
        assert 0 < points[0]["distance"] <= points[-1]["distance"] * 1.5
    assert seen[-1] == (len(groups) * len(RATIOS), len(groups) * len(RATIOS))
    blocks = [entry for entry in entries if entry["kind"] == "block"]
    assert any(entry["name"] == "jr" for entry in blocks)


def test_a_metric_and_excluded_groups(net: Graph, feeds: Feeds) -> None:
    groups = find_groups(net)
    scores = importance(net, groups, Importance.MAGNITUDE_L1, [])
    entries = sensitivity(
        net, groups, scores, feeds[:2], ratios=(0.5,), exclude=["s*"], blocks=False,
        metric=lambda graph: float(count(graph).macs),
    )  # fmt: skip
    assert [entry["name"] for entry in entries] == [g.name for g in groups if not g.name.startswith("s")]
    # Masking keeps all shapes.
    assert {entry["points"][0]["metric"] for entry in entries} == {float(count(net).macs)}
