"""Parts that can be left out whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.blocks import bypass_blocks, drop_blocks, find_blocks, measure_blocks
from edgekit.prune.effect import Effect
from edgekit.session import open_runner
from edgekit.stats import count
from edgekit.train.match import Match, OutputKind

Feeds = list[dict[str, np.ndarray[Any, Any]]]


def _tower(strengths: list[float], leak: bool = False) -> Graph:
    """Residual blocks ``relu(x + conv(relu(conv(x))))`` of the given strengths between a stem and a pool."""
    random = np.random.default_rng(0)
    arrays = {"stem": random.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5}
    nodes = [helper.make_node("Conv", ["x", "stem"], ["b0"], name="stem", pads=[1, 1, 1, 1])]
    for i, strength in enumerate(strengths):
        for part in "uv":
            weights = random.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8
            arrays[f"{part}{i}"] = weights * np.float32(strength if part == "v" else 1.0)
        nodes += [
            helper.make_node("Conv", [f"b{i}", f"u{i}"], [f"p{i}"], name=f"u{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"p{i}"], [f"q{i}"], name=f"relu{i}"),
            helper.make_node("Conv", [f"q{i}", f"v{i}"], [f"r{i}"], name=f"v{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Add", [f"b{i}", f"r{i}"], [f"s{i}"], name=f"add{i}"),
            helper.make_node("Relu", [f"s{i}"], [f"b{i + 1}"], name=f"out{i}"),
        ]
    last = f"b{len(strengths)}"
    if leak:  # something inside the first block is read outside it
        nodes.append(helper.make_node("Add", [last, "q0"], ["leak"], name="leak"))
        last = "leak"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], name="pool"))
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def _macs(graph: Graph) -> float:
    return float(count(graph).macs)


def _effect(graph: Graph, feeds: Feeds) -> Effect:
    return Effect(graph, feeds, Match(graph, {"y": OutputKind.REGRESSION}), threads=1)


def test_residual_blocks_go_with_the_activation_behind_them() -> None:
    blocks = {(b.input, b.output): b for b in find_blocks(_tower([1.0, 1.0]))}
    first = blocks["b0", "b1"]
    assert first.residual
    assert set(first.nodes) == {"u0", "relu0", "v0", "add0", "out0"}
    assert first.macs == 2 * 8 * 8 * 9 * 64
    assert ("b0", "s0") not in blocks
    # A layer inside with as many channels out as in is a block of its own.
    assert not blocks["b0", "q0"].residual
    assert ("b1", "b2") in blocks


def test_what_is_read_elsewhere_is_no_block() -> None:
    found = {(b.input, b.output) for b in find_blocks(_tower([1.0, 1.0], leak=True))}
    assert ("b0", "b1") not in found
    assert ("b1", "b2") in found


def test_ends_of_another_shape_and_graph_outputs_are_no_blocks(net: Graph) -> None:
    found = {(b.input, b.output) for b in find_blocks(net)}
    assert ("sr", "jr") in found
    assert all(output not in ("y", "e", "c") for _, output in found)


def test_a_bypassed_block_is_the_identity() -> None:
    graph = _tower([1.0, 1.0])
    block = next(b for b in find_blocks(graph) if (b.input, b.output) == ("b1", "b2"))
    without = bypass_blocks(graph, [block])
    assert count(without).macs == count(graph).macs - block.macs
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    inner = open_runner(graph, threads=1, extra_outputs=["b1"]).run(feed)["b1"]
    got = open_runner(without, threads=1).run(feed)["y"]
    np.testing.assert_allclose(got, inner.mean((2, 3), keepdims=True), rtol=1e-4, atol=1e-5)


def test_the_weakest_block_is_dropped_first(feeds: Feeds) -> None:
    graph = _tower([1.0, 0.01, 0.5])
    chosen, alone = drop_blocks(graph, _effect(graph, feeds), _macs, count=2)
    assert chosen[0].block.output == "b2"
    assert chosen[0].distance < chosen[1].distance
    assert len(alone) == len(find_blocks(graph))
    assert chosen[0].saved == pytest.approx(chosen[0].block.macs / count(graph).macs)


def test_blocks_are_dropped_until_the_share_is_reached(feeds: Feeds) -> None:
    graph = _tower([0.1, 0.1, 0.1])
    chosen, _ = drop_blocks(graph, _effect(graph, feeds), _macs, share=0.5)
    left = 1.0 - sum(d.saved for d in chosen)
    assert left <= 0.5 < left + chosen[-1].saved


def test_more_than_there_is_cannot_be_dropped(feeds: Feeds) -> None:
    graph = _tower([0.1])
    with pytest.raises(UsageError, match=r"drop_layers: .* blocks can be left out"):
        drop_blocks(graph, _effect(graph, feeds), _macs, count=9)
    with pytest.raises(UsageError, match="drop_to"):
        drop_blocks(graph, _effect(graph, feeds), _macs, share=0.01)


def test_excluded_blocks_stay(feeds: Feeds) -> None:
    graph = _tower([0.01, 1.0])
    chosen, alone = drop_blocks(graph, _effect(graph, feeds), _macs, count=1, exclude=["b1"])
    assert chosen[0].block.output != "b1"
    assert "b1" not in {d.block.output for d in alone}


def test_measured_alone_they_say_distance_and_saving(feeds: Feeds) -> None:
    graph = _tower([0.01, 1.0])
    drops = {d.block.output: d for d in measure_blocks(graph, _effect(graph, feeds), _macs)}
    assert drops["b1"].distance < drops["b2"].distance
    assert drops["b1"].saved == drops["b2"].saved
    assert drops["b1"].to_json()["residual"] is True
