"""What a block learns in torch is what the exported graph computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.graph import array
from edgekit.quantize.reconstruct.checkpoint import Done
from edgekit.quantize.reconstruct.network import Network, bias_of
from edgekit.quantize.reconstruct.options import BlockResult, ReconstructOptions
from edgekit.quantize.reconstruct.sections import ENTRY
from edgekit.quantize.reconstruct.store import Store
from edgekit.quantize.reconstruct.stream import Stream
from edgekit.quantize.reconstruct.tasks import Aim, make_task
from edgekit.quantize.reconstruct.train import AIM, _Trainer
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]

OPTIONS = ReconstructOptions(iterations=1, fisher=False, batch=4)


@pytest.mark.parametrize("net", ["relu", "depthwise", "residual", "silu", "no bias", "attention"])
def test_exported_graph_computes_what_was_learned(net: str, case: Callable[..., Any]) -> None:
    made = case(net, count=6)
    network = made.network(OPTIONS)
    with Store() as store, ThreadPoolExecutor(1) as pool:
        stream = Stream(made.graph, network, store, lambda: iter(made.feeds), OPTIONS)
        stream.advance(network, ENTRY)
        stream.run_float(0)
        result = network.sections.quantized_name(network.blocks[0].outputs[0])
        task = make_task(network, 0, Aim(result, np.ones(1, np.float32), 1.0), OPTIONS)
        trainer = _Trainer(task, OPTIONS, pool)
        _shake(trainer)
        learned = trainer._learned(1, 0.0)
        shifts = {k: b - made_bias(network, k) for k, b in learned.biases.items()}
        done = Done(BlockResult("", (), 0, 0, 0), learned.codes, shifts, learned.scales)
        changed = network.changed(done)
        data = stream.fetch(network, task, 0, [0, 1, 2], mix=False)
        feeds = {t: torch.from_numpy(data[t]) for t in task.inputs}
        with torch.no_grad():
            found = trainer._forward(feeds | trainer.fed()).numpy()
        model = changed.sections.model(0, [result]).SerializeToString()
        runner = open_runner(model, threads=1, optimize=False)
        wanted = np.concatenate(
            [runner.run({t: data[t][i : i + 1] for t in task.inputs})[result] for i in range(3)]
        )
    assert data[AIM].shape == wanted.shape
    maker = changed.sections.values[result].producer()
    assert maker is not None
    if maker.op_type != "DequantizeLinear":
        assert np.allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
        return
    step = float(np.asarray(array(maker.inputs[1])))
    codes = np.abs(found - wanted) / step
    assert codes.max() < 1.01
    assert (codes > 0.5).mean() < 0.02


def made_bias(network: Network, node: str) -> Array:
    found = bias_of(network.nodes[node])
    assert found is not None
    return found


def _shake(trainer: _Trainer) -> None:
    """Decide every rounding at random, and move biases and scales."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for soft in trainer.soft.values():
            soft.variable.copy_(
                torch.where(torch.rand(soft.variable.shape, generator=random) < 0.5, 9.0, -9.0)
            )
        for move in trainer.moves.values():
            move.copy_(torch.randn(move.shape, generator=random))
        for log in trainer.logs.values():
            log.fill_(-0.2)


@pytest.mark.parametrize("threads", [1, 2])
def test_shares_of_a_batch_add_up(threads: int, case: Callable[..., Any]) -> None:
    """Gradients do not depend on how memory or threads cut the batch."""
    made = case("residual", count=6)
    network = made.network(OPTIONS)
    found = []
    for options in (OPTIONS, replace(OPTIONS, threads=threads, memory_bytes=2**26)):
        with Store() as store, ThreadPoolExecutor(threads) as pool:
            stream = Stream(made.graph, network, store, lambda: iter(made.feeds), options)
            stream.advance(network, ENTRY)
            stream.run_float(0)
            result = network.sections.quantized_name(network.blocks[0].outputs[0])
            task = make_task(network, 0, Aim(result, np.ones(1, np.float32), 1.0), options)
            if options is not OPTIONS:
                task = replace(task, bytes=2**26)  # one sample at a time
            trainer = _Trainer(task, options, pool)
            error = trainer._gradients(stream.fetch(network, task, 0, [0, 1, 2, 4], mix=False), 0.0)
            leaves = [s.variable for s in trainer.soft.values()] + list(trainer.logs.values())
            found.append((error, [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert len(found[0][1]) == len(found[1][1]) > 3
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, two, rtol=1e-2, atol=1e-3 * float(one.abs().max()))
