"""Scores of units: what they say, and that fisher agrees with what masking does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.edit import set_constant
from edgekit.prune.apply import mask
from edgekit.prune.effect import Effect
from edgekit.prune.groups import find_groups
from edgekit.prune.importance import importance
from edgekit.prune.options import Importance
from edgekit.prune.plan import make_plan
from edgekit.train.match import Match, OutputKind

Feeds = list[dict[str, np.ndarray[Any, Any]]]


def _rank_correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    x, y = (np.argsort(np.argsort(v)).astype(np.float64) for v in (a, b))
    return float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))


def _edited(graph: Graph, name: str, unit: int, value: float) -> Graph:
    """A unit's weights (and bias) multiplied with ``value``."""
    result = graph.copy()
    for tensor in (f"{name}.weight", f"{name}.bias"):
        held = result.model.graph.initializers.get(tensor)
        if held is not None and held.const_value is not None:
            data = held.const_value.numpy().copy()
            data[unit] *= value
            set_constant(held, data)
    return result


def _masked_effect(graph: Graph, feeds: Feeds, match: Match) -> dict[str, np.ndarray[Any, Any]]:
    groups, effect = find_groups(graph), Effect(graph, feeds, match, threads=1)
    return {
        g.name: np.array(
            [
                effect.distance(
                    mask(graph, make_plan(graph, groups, {g.name: [i for i in range(g.size) if i != u]}))
                )
                for u in range(g.size)
            ]
        )
        for g in groups.groups
    }


def test_fisher_ranks_units_as_masking_each_does(net: Graph, feeds: Feeds) -> None:
    groups = find_groups(net)
    match = Match(net, {"y": OutputKind.REGRESSION})
    scores = importance(net, groups, Importance.FISHER, feeds, seed=0, projections=8, match=match)
    effect = _masked_effect(net, feeds, match)
    assert set(scores) == set(effect)
    ours = np.concatenate([scores[g.name] for g in groups.groups])
    theirs = np.concatenate([effect[g.name] for g in groups.groups])
    # Across groups too: that is what a global allocation compares.
    assert _rank_correlation(ours, theirs) > 0.85
    plain = importance(net, groups, Importance.MAGNITUDE_L2, [])
    magnitudes = np.concatenate([plain[g.name] for g in groups.groups])
    assert _rank_correlation(ours, theirs) > _rank_correlation(magnitudes, theirs) + 0.2


def test_fisher_of_a_unit_behind_the_last_relu_is_its_squared_effect(net: Graph, feeds: Feeds) -> None:
    # The readers of 'side' are linear up to the output, so that first order is exact: no sampling but of v.
    groups = find_groups(net)
    match = Match(net, {"y": OutputKind.REGRESSION})
    scores = importance(net, groups, Importance.FISHER, feeds, seed=0, projections=300, match=match)["side"]
    effect = _masked_effect(net, feeds, match)["side"]
    np.testing.assert_allclose(scores / scores.sum(), effect**2 / (effect**2).sum(), rtol=0.25)


def test_fisher_gives_a_dead_channel_nothing(net: Graph, feeds: Feeds) -> None:
    dead = _edited(net, "side", 5, 0.0)
    scores = importance(dead, find_groups(dead), Importance.FISHER, feeds[:4])["side"]
    assert np.argmin(scores) == 5
    assert scores[5] == 0.0
    assert (np.delete(scores, 5) > 0).all()


def test_fisher_is_reproducible_and_depends_on_the_seed(net: Graph, feeds: Feeds) -> None:
    groups = find_groups(net)
    first, again, other = (
        importance(net, groups, Importance.FISHER, feeds[:2], seed=s)["stem"] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("method", [Importance.MAGNITUDE_L1, Importance.MAGNITUDE_L2])
def test_magnitudes_follow_the_weights_and_forget_the_layers_scale(net: Graph, method: Importance) -> None:
    groups = find_groups(net)
    before = importance(net, groups, method, [])["side"]
    after = importance(_edited(net, "side", 3, 10.0), groups, method, [])["side"]
    assert np.argmax(after) == 3
    assert before.mean() == pytest.approx(1.0)
    assert after.mean() == pytest.approx(1.0)


def test_activation_is_the_mean_absolute_value_where_it_is_read(net: Graph, feeds: Feeds) -> None:
    scores = importance(net, find_groups(net), Importance.ACTIVATION, feeds)
    loud = _edited(net, "side", 2, 50.0)
    assert np.argmax(importance(loud, find_groups(loud), Importance.ACTIVATION, feeds)["side"]) == 2
    assert all(s.mean() == pytest.approx(1.0) for s in scores.values())


def test_gammas_are_read_where_batch_normalization_is_kept(normed: Graph) -> None:
    groups = find_groups(normed)
    scores = importance(normed, groups, Importance.BN_GAMMA, [])
    assert list(scores) == ["stem"]
    scale = normed.model.graph.initializers["bn.scale"].const_value
    assert scale is not None
    np.testing.assert_allclose(scores["stem"], np.abs(scale.numpy()))


def test_gammas_without_batch_normalization_are_refused(net: Graph) -> None:
    with pytest.raises(UsageError, match=r"no BatchNormalization.*without folding"):
        importance(net, find_groups(net), Importance.BN_GAMMA, [])


@pytest.mark.parametrize("method", [Importance.FISHER, Importance.ACTIVATION])
def test_samples_are_needed(net: Graph, method: Importance) -> None:
    with pytest.raises(UsageError, match="needs samples"):
        importance(net, find_groups(net), method, [])
