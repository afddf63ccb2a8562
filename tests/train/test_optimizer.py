"""Steps relative to the size of a channel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.train.optimizer import LEAST_SHARE, RelativeAdamW, size_of


def test_a_step_is_a_share_of_the_channels_size() -> None:
    weight = nn.Parameter(torch.ones(2, 3) * torch.tensor([[1.0], [200.0]]))
    optimizer = RelativeAdamW([weight], 0.01)
    weight.grad = torch.ones(2, 3)
    before = weight.detach().clone()
    optimizer.step()
    moved = before - weight.detach()
    whole = float(before.square().mean().sqrt())
    # The small channel counts as a tenth of the tensor.
    expected = [0.01 * LEAST_SHARE * whole, 0.01 * 200]
    assert moved[:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_channels_of_one_size_move_as_with_torchs_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 5).sign()
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        RelativeAdamW([mine], 1e-2, weight_decay=0.1),
        torch.optim.AdamW([theirs], 1e-2, betas=(0.9, 0.99), weight_decay=0.1),
    ]
    for _ in range(20):
        for parameter, optimizer in zip((mine, theirs), optimizers, strict=True):
            parameter.grad = (parameter.detach() - 0.3) * torch.arange(1.0, 6.0)
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


def test_zeros_can_move() -> None:
    assert float(size_of(torch.zeros(3))) == 1
    sizes = size_of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert float(sizes[0]) > 0
    assert float(sizes[1]) == pytest.approx((25 / 2) ** 0.5)


def test_its_state_can_be_saved() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    first, second = RelativeAdamW([weight], 0.01), RelativeAdamW([weight], 0.01)
    weight.grad = torch.ones(2, 3)
    first.step()
    second.load_state_dict(first.state_dict())
    a, b = first.state[weight], second.state[weight]
    assert a["step"] == b["step"] == 1
    assert all(torch.equal(a[key], b[key]) for key in ("mean", "square", "size"))
