import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import ModelError
from edgekit.graph import TensorSpec
from edgekit.measure.outputs import SQNR_CEILING_DB, compare_outputs, cosine

INPUT = (TensorSpec("x", (1, 10), np.dtype(np.float32)),)
DATA = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
SAMPLES = open_samples(list(DATA), INPUT, Preprocess())


class Function:
    def __init__(self, function: Callable[[Any], dict[str, Any]]) -> None:
        self.function = function

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.function(feeds["x"])


SAME = Function(lambda x: {"y": x, "map": x.reshape(1, 2, 5)})


def test_the_same_network_agrees() -> None:
    seen: list[tuple[int, int | None]] = []
    result = compare_outputs(SAME, SAME, SAMPLES, progress=lambda *step: seen.append(step))
    y, other = result.outputs
    assert (y.cosine, y.cosine_min, y.cosine_p5) == pytest.approx((1, 1, 1))
    assert (y.sqnr_db, y.max_abs, y.top1_agreement) == (SQNR_CEILING_DB, 0, 1)
    assert other.top1_agreement is None
    assert result.samples == 20
    assert seen[-1] == (20, 20)
    assert result.notes == ()
    assert set(result.measurements()) == {"cosine", "sqnr_db", "top1"}


def test_figures_are_those_of_the_definitions() -> None:
    noise = np.random.default_rng(1).standard_normal((20, 10)).astype(np.float32) / 10
    found = iter(DATA + noise)
    result = compare_outputs(
        SAME, Function(lambda x: {"y": next(found)[None], "map": x.reshape(1, 2, 5)}), SAMPLES
    )
    y = result.outputs[0]
    a, b = DATA.astype(float), (DATA + noise).astype(float)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert y.cosine == pytest.approx(cosines.mean())
    assert y.cosine_min == pytest.approx(cosines.min())
    assert y.cosine_p5 == pytest.approx(np.percentile(cosines, 5))
    assert y.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert y.max_abs == pytest.approx(np.abs(a - b).max())
    assert y.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()


def test_a_shifted_row_has_another_best_class() -> None:
    result = compare_outputs(
        SAME, Function(lambda x: {"y": np.roll(x, 1), "map": x.reshape(1, 2, 5)}), SAMPLES
    )
    assert result.outputs[0].top1_agreement == 0


def test_nan_is_counted_and_never_hidden() -> None:
    count = iter(range(20))
    bad = Function(lambda x: {"y": x * (np.nan if next(count) < 5 else 1), "map": x.reshape(1, 2, 5)})
    result = compare_outputs(SAME, bad, SAMPLES)
    y = result.outputs[0]
    assert (y.non_finite, y.cosine_min, y.cosine) == pytest.approx((5, 0, 0.75))
    assert y.top1_agreement == 0.75
    assert result.notes == ("'y' holds NaN or infinite values for 5 samples",)
    never = compare_outputs(SAME, Function(lambda x: {"y": x * np.nan, "map": x.reshape(1, 2, 5)}), SAMPLES)
    assert never.outputs[0].sqnr_db == -SQNR_CEILING_DB


def test_outputs_of_other_names_are_paired_by_position_and_noted() -> None:
    result = compare_outputs(SAME, Function(lambda x: {"a": x, "b": x.reshape(1, 2, 5)}), SAMPLES)
    assert result.notes == ("outputs paired by position: y with a, map with b",)
    assert result.outputs[0].sqnr_db == SQNR_CEILING_DB


@pytest.mark.parametrize(
    "function", [lambda x: {"y": x}, lambda x: {"y": x[:, :9], "map": x}, lambda x: {"a": x, "b": x}]
)
def test_networks_that_do_not_match_are_refused(function: Any) -> None:
    with pytest.raises(
        ModelError, match=r"cannot be compared: the outputs are y \[1, 10\], map \[1, 2, 5\] and"
    ):
        compare_outputs(SAME, Function(function), SAMPLES)


def test_cosine_of_zeros() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert (cosine(zero, zero), cosine(zero, one), cosine(one, -one)) == pytest.approx((1, 0, -1))
    assert cosine(np.full(4, 1e-30, np.float32), np.full(4, 1e-30, np.float32)) == pytest.approx(1)
