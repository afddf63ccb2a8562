"""Codes of two runtimes, in steps."""

import numpy as np
import pytest

from edgekit.measure.steps import StepTable


def test_differences_add_up_over_the_samples() -> None:
    table = StepTable()
    table.add({"a": np.array([0, 200], np.uint8)}, {"a": np.array([3, 200], np.uint8)}, {"a": "Conv"})
    table.add({"a": np.array([5, 7], np.uint8)}, {"a": np.array([4, 7], np.uint8)}, {"a": "Conv"})
    (row,) = table.rows()
    assert (row.tensor, row.op, row.max_steps) == ("a", "Conv", 3)
    assert row.different == pytest.approx(0.5)
    assert row.rms_steps == pytest.approx(np.sqrt(10 / 4))


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_16_bits_count_in_steps_of_8(kind: type[np.generic]) -> None:
    table = StepTable()
    table.add({"a": np.array([1000], kind)}, {"a": np.array([1257], kind)}, {})
    (row,) = table.rows()
    assert row.max_steps == 2
    assert row.rms_steps == pytest.approx(257 / 256)


def test_what_only_one_has_is_left_out() -> None:
    table = StepTable()
    table.add({"a": np.zeros(1, np.uint8), "b": np.zeros(1, np.uint8)}, {"b": np.ones(1, np.uint8)}, {})
    assert [row.tensor for row in table.rows()] == ["b"]
