"""A plan made on a captured module, applied to the module itself."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.capture import capture
from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.prune.apply import apply
from edgekit.prune.groups import find_groups
from edgekit.prune.module import apply_plan
from edgekit.prune.plan import DroppedBlock, PruningPlan, make_plan
from edgekit.session import open_runner

IMAGE = (1, 3, 16, 16)


class Residual(nn.Module):
    """Batch normalization after every convolution, a depthwise one, PReLU, a shortcut, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.expand = nn.Conv2d(8, 12, 1)
        self.depth = nn.Conv2d(12, 24, 3, padding=1, groups=12, bias=False)
        self.depth_norm = nn.BatchNorm2d(24)
        self.slope = nn.PReLU(24)
        self.project = nn.Conv2d(24, 8, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, bias=False)
        self.up_norm = nn.BatchNorm2d(6)
        self.head = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.slope(self.depth_norm(self.depth(torch.relu(self.expand(x)))))
        x = torch.relu(x + self.project_norm(self.project(y)))
        x = torch.relu(self.up_norm(self.up(self.grouped(x))))
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


class Tokens(nn.Module):
    """Linear layers on three axes, which are stored transposed, and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.one, self.two = nn.Linear(6, 9), nn.Linear(9, 9)
        self.scale = nn.Parameter(torch.rand(9))
        self.norm = nn.GroupNorm(3, 6)
        self.three = nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patch(x)).flatten(2).transpose(1, 2)
        found: torch.Tensor = self.three(torch.tanh(self.two(self.scale * torch.relu(self.one(x)))))
        return found


class Checking(nn.Module):
    """A forward that torch.fx cannot follow: it looks at its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            raise TypeError("not a tensor")
        found: torch.Tensor = self.second(self.norm(self.first(x)))
        return found


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.mix(x, x, x, need_weights=False)[0]
        return found


@functools.cache
def _trained(make: Callable[[], nn.Module]) -> nn.Module:
    """In eval mode, with statistics as after training. Not to be changed."""
    torch.manual_seed(0)
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if name == "running_var":
                    nn.init.uniform_(tensor, 0.5, 2)
                elif name != "num_batches_tracked":
                    nn.init.normal_(tensor)
    return module


@functools.cache
def _capture(make: Callable[[], nn.Module], shape: tuple[int, ...] = IMAGE, fold: bool = True) -> Graph:
    holder = types.ModuleType("holder")
    holder.make = lambda: _trained(make)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "holder", holder)
        return capture("holder:make", input_shapes={"x": shape}, fold=fold).graph


def _plan(graph: Graph, seed: int = 0) -> PruningPlan:
    rng = np.random.default_rng(seed)
    groups = find_groups(graph)
    keep = {
        g.name: rng.choice(g.size, max(1, g.size * 2 // 3), replace=False).tolist() for g in groups.groups
    }
    return make_plan(graph, groups, keep)


@pytest.mark.parametrize(("make", "fold"), [(Residual, True), (Residual, False), (Tokens, True)])
def test_the_module_computes_what_the_graph_does(make: Callable[[], nn.Module], fold: bool) -> None:
    module = _trained(make)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = _capture(make, fold=fold)
    plan = _plan(graph)
    pruned = apply_plan(module, plan)
    x = torch.randn(IMAGE)
    expected = next(iter(open_runner(apply(graph, plan), threads=1).run({"x": x.numpy()}).values()))
    with torch.no_grad():
        found = pruned(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in pruned.parameters()) < 0.75 * sum(p.numel() for p in module.parameters())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_layers_know_their_sizes() -> None:
    module = _trained(Residual)
    pruned = apply_plan(module, _plan(_capture(Residual)))
    sizes = {name: (m.in_channels, m.out_channels, m.groups) for name, m in pruned.named_modules()
             if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))}  # fmt: skip
    # Grouped: 4 offsets in and 6 out, in two groups; the stem shares the 4 offsets of both groups.
    assert sizes == {
        "stem.0": (3, 4, 1), "expand": (4, 8, 1), "depth": (8, 16, 8), "project": (16, 4, 1),
        "grouped": (4, 8, 2), "up": (8, 4, 1),
    }  # fmt: skip
    assert pruned.get_submodule("depth_norm").num_features == 16
    assert pruned.get_submodule("slope").num_parameters == 16
    assert repr(pruned.get_submodule("head.0")) == "Linear(in_features=4, out_features=6, bias=True)"


def test_the_pruned_module_trains() -> None:
    module = _trained(Residual)
    pruned = apply_plan(module, _plan(_capture(Residual))).train()
    pruned(torch.randn(4, *IMAGE[1:])).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def test_a_module_that_torch_fx_cannot_follow() -> None:
    with pytest.raises(ModelError, match=r"not a tensor.*fold=False"):
        apply_plan(_trained(Checking), _plan(_capture(Checking)))


def test_another_module_is_refused() -> None:
    plan = _plan(_capture(Residual))
    with pytest.raises(ModelError, match=r"no counterpart of \d+ tensors of the plan: stem\.0\.weight"):
        apply_plan(_trained(Tokens), plan)


def test_attention_of_torch_is_refused() -> None:
    module = _trained(Attention)
    graph = _capture(Attention, (1, 5, 8))
    groups = find_groups(graph)
    assert [(g.size, g.kind) for g in groups.groups] == [(4, "heads")]
    with pytest.raises(ModelError, match="MultiheadAttention"):
        apply_plan(module, make_plan(graph, groups, {groups.groups[0].name: [0, 2]}))


def test_dropped_blocks_are_refused() -> None:
    plan = PruningPlan(
        model_sha256="", groups={}, sizes={}, tensors={}, dropped=[DroppedBlock(input="a", output="b")]
    )
    with pytest.raises(ModelError, match="forward"):
        apply_plan(nn.Identity(), plan)
