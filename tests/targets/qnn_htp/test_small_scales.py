"""Channels whose weights are next to nothing, which 16-bit kernels would fill with the largest code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, helper

from edgekit.graph import Graph
from edgekit.session import open_runner
from edgekit.targets.qnn_htp.process import run_emulated
from edgekit.targets.qnn_htp.small_scales import FLOOR, raise_small_scales

SOC, ARCH = 57, 75
SHAPE = [1, 4, 6, 6]
Save = Callable[..., Path]
Pair = Callable[..., list[NodeProto]]


@pytest.fixture
def network(save: Save, pair: Pair) -> Callable[..., Path]:
    """A convolution whose channels have the given weight scales, with an output of 16 or 8 bits."""

    def make(scales: list[float], bits: str = "16", bias: float = 0.002) -> Path:
        rng = np.random.default_rng(0)
        step = np.float32(1e-4 if bits else 0.02)
        weights = np.array(scales, np.float32)
        constants: dict[str, Any] = {
            "wq": rng.integers(-127, 128, (len(scales), 4, 3, 3), dtype=np.int8),
            "ws": weights,
            "wz": np.zeros(len(scales), np.int8),
            "bq": np.clip(np.round(bias / (weights * step)), -(2**30), 2**30).astype(np.int32),
            "bs": weights * step,
            "bz": np.zeros(len(scales), np.int32),
        }
        nodes = [
            *pair("x", "a", bits),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], name="w_DQ", axis=0),
            helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["b"], name="b_DQ", axis=0),
            helper.make_node("Conv", ["a", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            *pair("c", "y", bits),
        ]
        shape: list[int | str] = [1, len(scales), 6, 6]
        return save(nodes, {"x": SHAPE}, {"y": shape}, initializers=constants)

    return make


def _graph(path: Path) -> Graph:
    return Graph(ir.load(path))


def test_a_channel_of_next_to_nothing(network: Callable[..., Path], feeds: Any) -> None:
    graph = _graph(network([0.004, 5e-8, 0.002]))
    after = raise_small_scales(graph)
    scales = {str(v.name): v.const_value for v in after.model.graph.initializers.values()}
    found = next(v.numpy() for n, v in scales.items() if v is not None and n.endswith("w_DQ.raised_scales"))
    np.testing.assert_allclose(found, [0.004, FLOOR, 0.002], rtol=1e-6)
    assert after.history[-1].details["channels"] == {"conv": 1}
    here, there = (
        open_runner(g, threads=1, optimize=False).run(feeds(SHAPE)[0])["y"] for g in (graph, after)
    )
    assert np.abs(here - there).max() <= 1.01e-4  # one code
    assert raise_small_scales(after) is after


@pytest.mark.parametrize(("scales", "bits"), [([0.004, 1e-6, 0.002], "16"), ([0.004, 5e-8, 0.002], "")])
def test_what_kernels_carry_stays(network: Callable[..., Path], scales: list[float], bits: str) -> None:
    graph = _graph(network(scales, bits))
    assert raise_small_scales(graph) is graph


def test_the_emulator_agrees_afterwards(network: Callable[..., Path], feeds: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    path, feed = network([0.004, 5e-8, 0.002, 1e-9]), feeds(SHAPE)[0]
    expected = open_runner(path, threads=1, optimize=False).run(feed)["y"]
    wrong = run_emulated(path, [feed], soc=SOC, arch=ARCH)[0]["y"]
    assert np.abs(wrong - expected)[:, 1].min() > 3  # the reason for all this: a change of it would be news
    repaired = tmp_path / "repaired.onnx"
    raise_small_scales(_graph(path)).save(repaired)
    found = run_emulated(repaired, [feed], soc=SOC, arch=ARCH)[0]["y"]
    assert np.abs(found - expected).max() < 4e-4
