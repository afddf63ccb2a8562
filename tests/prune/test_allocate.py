"""How many units each group keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.prune.allocate import Track, allocate, keep_share, make_track, unit_align, widths
from edgekit.prune.cost import Cost, Dim, Product, Table
from edgekit.prune.groups import ChannelGroup, Site
from edgekit.prune.options import Scope


def _group(name: str, size: int, width: int = 1, kind: str = "channels") -> ChannelGroup:
    positions = tuple(tuple(range(u * width, (u + 1) * width)) for u in range(size))
    site = Site(f"{name}.weight", 0, name, positions)
    return ChannelGroup(name, size, (site,), (), (), kind)  # type: ignore[arg-type]


def _linear(sizes: list[int], prices: list[int]) -> Cost:
    """Each unit of a group costs its price."""
    dims = [Dim(size, ((i, tuple(range(size + 1))),)) for i, size in enumerate(sizes)]
    return Cost(dims, [Product(price, (i,)) for i, price in enumerate(prices)], 0, len(sizes))


def _tracks(scores: list[np.ndarray], align: int = 1, min_keep: float = 0.0) -> list[Track]:
    return [
        make_track(_group(f"g{i}", len(s)), s, align=align, min_keep=min_keep) for i, s in enumerate(scores)
    ]


def test_the_least_important_for_their_cost_go_first() -> None:
    scores = [np.array([3.0, 1.0, 2.0, 4.0]), np.array([1.0, 10.0, 10.0, 10.0])]
    found = allocate(_tracks(scores), _linear([4, 4], [1, 1]), 6.0, Scope.GLOBAL, where="macs")
    assert found.keep == {"g0": [0, 2, 3], "g1": [1, 2, 3]}
    assert (found.cost, found.loss) == (6, 2.0)
    # Twice the price makes a unit worth removing at twice the loss.
    dear = allocate(_tracks(scores), _linear([4, 4], [5, 1]), 19.0, Scope.GLOBAL, where="macs")
    assert dear.keep["g0"] == [0, 2, 3]


def test_a_dead_unit_goes_before_all_others() -> None:
    scores = [np.full(4, 1e-6), np.array([0.0, 1.0, 1.0, 1.0])]
    found = allocate(_tracks(scores), _linear([4, 4], [9, 1]), 39.0, Scope.GLOBAL, where="macs")
    assert found.keep["g1"] == [1, 2, 3]
    assert len(found.keep["g0"]) == 4


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.floats(0.3, 0.95),
    st.sampled_from(list(Scope)),
    st.integers(0, 9),
)
def test_it_lands_within_one_step_and_keeps_floors_and_alignment(
    sizes: list[int], align: int, min_keep: float, share: float, scope: Scope, seed: int
) -> None:
    random = np.random.default_rng(seed)
    prices = [int(p) for p in random.integers(1, 9, len(sizes))]
    tracks = _tracks([random.random(n) for n in sizes], align, min_keep)
    cost = _linear(sizes, prices)
    full = cost.value
    try:
        found = allocate(tracks, cost, share * full, scope, where="macs")
    except UsageError:
        least = sum(p * (t.size - t.stops[-1]) for t, p in zip(tracks, prices, strict=True))
        assert least > share * full
        return
    assert found.cost <= share * full
    for track, price in zip(tracks, prices, strict=True):
        kept = len(found.keep[track.name])
        assert kept == track.size or kept % align == 0
        assert kept >= min(track.size, max(align, min_keep * track.size))
        step = align if kept % align == 0 else track.size % align
        if kept < track.size:
            assert found.cost + price * min(step, track.size - kept) > share * full
    assert found.loss == pytest.approx(
        sum(t.loss[t.size - len(found.keep[t.name])] for t in tracks), abs=1e-9
    )


def test_what_cannot_be_reached_names_the_smallest_share() -> None:
    tracks = _tracks([np.ones(16), np.ones(16)], align=8)
    with pytest.raises(
        UsageError, match=r"macs: 0\.300 cannot be reached.*leaves 0\.500.*valid: 0\.500 to 1"
    ):
        allocate(tracks, _linear([16, 16], [1, 1]), 0.3 * 32, Scope.GLOBAL, where="macs")
    tracks = _tracks([np.ones(16), np.ones(16)], align=8)
    with pytest.raises(UsageError, match=r"leaves 0\.500"):
        allocate(tracks, _linear([16, 16], [1, 1]), 0.3 * 32, Scope.UNIFORM, where="macs")


def test_it_looks_past_a_step_that_saves_nothing() -> None:
    # 24 channels take as long as 32; only 16 are faster.
    dims = [Dim(32, ((0, tuple(range(33))),))]
    cost = Cost(dims, [Table((0,), ((8, 16, 24, 32),), (1.0, 1.0, 2.0, 2.0))], 0, 1)
    found = allocate(_tracks([np.arange(32.0)], align=8), cost, 1.2, Scope.GLOBAL, where="latency")
    assert len(found.keep["g0"]) == 16


def test_half_of_every_group_to_the_nearest_step() -> None:
    tracks = _tracks([np.arange(32.0), np.arange(20.0)[::-1], np.arange(6.0)], align=8)
    found = keep_share(tracks, _linear([32, 20, 6], [1, 1, 1]), 0.5)
    assert found.keep["g0"] == list(range(16, 32))
    assert found.keep["g1"] == list(range(8))
    assert found.keep["g2"] == list(range(6))
    assert widths(found, {"g0": 32, "g1": 20, "g2": 6}) == {"g0": (16, 32), "g1": (8, 20)}


def test_shares_and_floors_refer_to_the_original_width() -> None:
    track = make_track(_group("g", 20), np.arange(20.0), align=4, min_keep=0.25, original=40)
    assert track.size - track.stops[-1] == 12
    found = keep_share([track], _linear([20], [1]), 0.4)
    assert len(found.keep["g"]) == 16


def test_units_of_several_channels_count_with_all_of_them() -> None:
    assert unit_align(_group("g", 16, width=1), 16) == 16
    assert unit_align(_group("g", 16, width=4), 16) == 4
    assert unit_align(_group("g", 16, width=6), 16) == 8
    assert unit_align(_group("g", 8, width=16, kind="heads"), 16) == 1
