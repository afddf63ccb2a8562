"""Options of a pruning: what excludes what, and which values are refused."""

from typing import Any

import pytest

from edgekit.errors import UsageError
from edgekit.prune.options import Aim, CostKind, Importance, PruneOptions, Scope


def test_the_aim_is_the_share_that_is_given() -> None:
    options = PruneOptions(latency=0.6, importance=Importance.MAGNITUDE_L1)
    assert (options.aim, options.share) == (Aim.LATENCY, 0.6)
    assert PruneOptions(drop_layers=2).aim is None


def test_strings_become_members() -> None:
    options = PruneOptions(macs=0.5, importance="activation", cost_kind="int8", scope="uniform")  # type: ignore[arg-type]
    assert options.importance is Importance.ACTIVATION
    assert options.cost_kind is CostKind.INT8
    assert options.scope is Scope.UNIFORM


def test_keep_shrinks_all_groups_alike_and_the_others_compete() -> None:
    assert PruneOptions(keep=0.5).chosen_scope is Scope.UNIFORM
    assert PruneOptions(macs=0.5).chosen_scope is Scope.GLOBAL
    assert PruneOptions(keep=0.5, scope=Scope.GLOBAL).chosen_scope is Scope.GLOBAL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says how much.*keep, macs, params, bytes, latency"),
        ({"keep": 0.5, "macs": 0.5}, "keep and macs exclude each other"),
        ({"macs": 1.5}, "macs: must be a share"),
        ({"macs": 0.0}, "macs: must be a share"),
        ({"drop_to": 2.0}, "drop_to: must be a share"),
        ({"macs": 0.5, "min_keep": -0.1}, "min_keep"),
        ({"macs": 0.5, "steps": 0}, "steps: must be 1 or more"),
        ({"macs": 0.5, "align": 0}, "align: must be 1 or more"),
        ({"macs": 0.5, "samples": 0}, "samples"),
        ({"macs": 0.5, "importance": "taylor"}, "there is no 'taylor'.*fisher"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PruneOptions(**given)
