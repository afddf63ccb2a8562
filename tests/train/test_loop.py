"""The schedule of the learning rate."""

from __future__ import annotations

import pytest

from edgekit.train.loop import FLOOR, learning_rate


def test_a_line_up_and_half_a_cosine_down() -> None:
    assert learning_rate(0.0, 0.1) == FLOOR
    assert learning_rate(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 0.1) == pytest.approx(1.0)
    assert learning_rate(0.55, 0.1) == pytest.approx((1 + FLOOR) / 2)
    assert learning_rate(1.0, 0.1) == pytest.approx(FLOOR)
    assert learning_rate(0.0, 0.0) == pytest.approx(1.0)
