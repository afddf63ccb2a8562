"""Learned rounding stays on the grid, starts unrounded and ends decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgekit.quantize.qparams import weight_codes, weight_scales
from edgekit.quantize.reconstruct.rounding import Grid, SoftWeight, grid_scales, on_grid
from edgekit.quantize.scheme import Format

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 3, 3, 3)), (1, (5, 7)), (None, (4, 40))])
def test_grid_of_eight_bits_is_the_plain_one(axis: int | None, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    scales = weight_scales(weight, axis, Format.INT8)
    assert np.array_equal(
        Grid(scales, axis, 127).nearest(weight), weight_codes(weight, scales, axis, Format.INT8)
    )
    wide = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    assert np.array_equal(grid_scales(wide, 0, 127), weight_scales(wide, 0, Format.INT8))


def test_few_bits_clip_more() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 500)).astype(np.float32)

    def error(scales: Array) -> float:
        grid = Grid(scales, 0, 3)
        return float(((grid.nearest(weight) * grid.spread(2) - weight) ** 2).sum())

    largest = (np.abs(weight).max(1) / 3).astype(np.float32)
    assert error(grid_scales(weight, 0, 3)) < 0.6 * error(largest)


def test_starts_unrounded_and_ends_rounded() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (3, 50)).astype(np.float32)
    grid = Grid(np.full(3, 0.1, np.float32), 0, 127)
    soft = SoftWeight(weight, grid)
    assert np.allclose(soft.value().detach().numpy(), weight, atol=2e-4)
    assert np.array_equal(soft.codes(), grid.nearest(weight))
    optimizer = torch.optim.Adam([soft.variable], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        soft.undecided(2.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(soft.undecided(2.0).detach()) < 1e-3
    assert np.allclose(soft.value().detach().numpy(), soft.codes() * 0.1, atol=1e-3)
    assert np.array_equal(soft.codes(), grid.nearest(weight))


def test_codes_stay_on_a_short_grid() -> None:
    weight = np.linspace(-2, 2, 41, dtype=np.float32)[None]
    soft = SoftWeight(weight, Grid(np.array([0.1], np.float32), 0, 7))
    with torch.no_grad():
        soft.variable.fill_(9.0)
    assert soft.codes().min() == -6
    assert soft.codes().max() == 7
    assert float(soft.value().detach().max()) == pytest.approx(0.7)


def test_gradient_passes_the_grid() -> None:
    x = torch.tensor([0.34, -1.26], requires_grad=True)
    found = on_grid(x, torch.tensor(0.1))
    assert torch.allclose(found, torch.tensor([0.3, -1.3]))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.ones(2))
