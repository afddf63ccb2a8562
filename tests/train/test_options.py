"""Options that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import UsageError
from edgekit.train.options import DistillOptions


@pytest.mark.parametrize(
    "given",
    [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"seconds": -1.0}, {"held_out": 1},
     {"warmup": 1.5}, {"label_weight": -0.1}, {"threads": -1}],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"distill: {next(iter(given))} cannot be"):
        DistillOptions(**given)


def test_the_fingerprint_leaves_out_what_only_ends_a_run() -> None:
    assert DistillOptions(seconds=3.0).fingerprint() == DistillOptions().fingerprint()
    assert DistillOptions(rate=1e-4).fingerprint() != DistillOptions().fingerprint()
