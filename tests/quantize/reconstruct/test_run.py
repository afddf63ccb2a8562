"""Reconstruction brings quantized networks nearer to the float ones, and can be interrupted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import DataError, UsageError
from edgekit.graph import Graph, array
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.reconstruct.options import Granularity, Reconstruction, ReconstructOptions
from edgekit.quantize.scheme import Format, Scheme

Array = np.ndarray[Any, Any]

QUICK = ReconstructOptions(iterations=100, batch=8, scale_rate=0.0, fisher=False)


def exported(case: Any, found: Reconstruction) -> Graph:
    return insert_qdq(found.graph, case.plan, found.params, case.scheme, found.scales, found.codes)


def weight_of(case: Any, label: str) -> Array:
    (node,) = [n for n in case.graph.nodes if n.name == label]
    return np.asarray(array(node.inputs[1]))


@pytest.fixture(scope="session")
def fine(scheme: Scheme) -> Scheme:
    """Activations of 16 bits, so that what noise there is comes from the weights."""
    return scheme.model_copy(update={"activation": Format.UINT16})


@pytest.mark.parametrize("net", ["relu", "depthwise", "residual", "silu", "no bias", "gemm", "attention"])
def test_noise_of_the_outputs_falls(net: str, case: Callable[..., Any], fine: Scheme) -> None:
    made = case(net, using=fine)
    found = made.reconstruct(QUICK)
    assert made.noise(exported(made, found)) < 0.9 * made.noise(made.nearest())
    assert {n for b in found.blocks for n in b.nodes} == set(found.scales) & made.plan.integer_nodes
    assert all(b.noise_after <= b.noise_before for b in found.blocks)


@pytest.mark.parametrize("net", ["relu", "silu", "gemm"])
def test_ranges_that_are_too_wide_shrink(net: str, case: Callable[..., Any]) -> None:
    made = case(net)
    group = next(t for t in made.plan.tensors if t not in ("x", "i"))
    wide = replace(made.params[group], scale=made.params[group].scale * 3)
    made.params.update(dict.fromkeys(made.plan.members(group), wide))
    found = made.reconstruct(replace(QUICK, scale_rate=0.02))
    assert found.params[group].scale < 0.7 * wide.scale
    assert found.params[group].zero_point == wide.zero_point
    assert found.params["x"] == made.params["x"]
    assert made.noise(exported(made, found)) < 0.8 * made.noise(made.nearest())


@pytest.mark.parametrize("net", ["relu", "depthwise", "residual", "gemm", "attention"])
def test_weights_of_four_bits_gain_a_lot(net: str, case: Callable[..., Any]) -> None:
    made = case(net, count=48)
    options = replace(QUICK, weight_bits=4, iterations=150)
    # A rate of nothing leaves every rounding at the nearest.
    still = made.reconstruct(
        replace(options, rounding_rate=0.0, bias_rate=0.0, scale_rate=0.0, pressure=0.0, iterations=1),
    )
    found = made.reconstruct(options)
    assert all(np.abs(codes).max() <= 7 for codes in found.codes.values())
    assert set(found.codes) == {n for b in found.blocks for n in b.nodes}
    assert made.noise(exported(made, found)) < 0.8 * made.noise(exported(made, still))


def test_learned_codes_are_at_most_one_step_away(case: Callable[..., Any]) -> None:
    made = case("residual")
    found = made.reconstruct(QUICK)
    assert found.codes
    for node, codes in found.codes.items():
        ratio = weight_of(made, node) / found.scales[node].reshape(-1, 1, 1, 1)
        assert codes.dtype == np.int8
        inside = np.abs(ratio) < 127
        assert (np.abs(codes - ratio) < 1.001)[inside].all()


def test_one_scale_for_all_channels(case: Callable[..., Any], fine: Scheme) -> None:
    plain = fine.model_copy(
        update={"ops": {**fine.ops, "Conv": fine.ops["Conv"].model_copy(update={"weight_axis": None})}}
    )
    made = case("depthwise", using=plain)
    found = made.reconstruct(QUICK)
    assert all(s.shape == () for s in found.scales.values())
    assert made.noise(exported(made, found)) < 0.99 * made.noise(made.nearest())


def test_layer_by_layer(case: Callable[..., Any], fine: Scheme) -> None:
    made = case("residual", using=fine)
    found = made.reconstruct(replace(QUICK, granularity=Granularity.LAYER))
    assert [len(b.nodes) for b in found.blocks] == [1, 1, 1, 1]
    assert made.noise(exported(made, found)) < made.noise(made.nearest())


def test_a_network_with_two_results(case: Callable[..., Any], fine: Scheme) -> None:
    made = case("two", using=fine)
    found = made.reconstruct(QUICK)
    assert [b.name for b in found.blocks] == ["r", "y", "z"]
    assert made.noise(exported(made, found)) < made.noise(made.nearest())


def test_options_of_the_error(case: Callable[..., Any], fine: Scheme) -> None:
    """Random dropping and channels weighed by gradients give something else, and still less noise."""
    made = case("residual", using=fine)
    quick = replace(QUICK, most_layers=3, weight_bits=4)
    plain = made.reconstruct(quick)
    nearest = Reconstruction(made.graph, made.params, dict(plain.scales), {}, (), 0, 0.0)
    for label in plain.codes:
        weight, axes = weight_of(made, label), (-1, 1, 1, 1)
        codes = np.clip(np.round(weight / plain.scales[label].reshape(axes)), -7, 7)
        nearest.codes[label] = codes.astype(np.int8)
    noise = made.noise(exported(made, nearest))
    for change in ({"drop": 0.5}, {"fisher": True}):
        found = made.reconstruct(replace(quick, **change))
        assert not found.notes
        assert made.noise(exported(made, found)) < noise
        assert any(not np.array_equal(found.codes[n], c) for n, c in plain.codes.items())


def same(one: Reconstruction, two: Reconstruction) -> bool:
    return (
        one.params == two.params
        and one.graph.sha256() == two.graph.sha256()
        and one.codes.keys() == two.codes.keys()
        and all(np.array_equal(two.codes[n], c) for n, c in one.codes.items())
        and [(b.name, b.noise_before, b.noise_after, b.note) for b in one.blocks]
        == [(b.name, b.noise_before, b.noise_after, b.note) for b in two.blocks]
    )


def test_the_same_again_and_after_an_interruption(case: Callable[..., Any], tmp_path: Path) -> None:
    made = case("residual")
    options = replace(QUICK, iterations=20, granularity=Granularity.LAYER)
    whole = made.reconstruct(options)
    kept = tmp_path / "state.pt"

    class KilledError(Exception):
        pass

    def kill(text: str) -> None:
        if kept.exists():
            raise KilledError

    with pytest.raises(KilledError):
        made.reconstruct(options, checkpoint=kept, status=kill)
    steps: list[int] = []
    found = made.reconstruct(options, checkpoint=kept, progress=lambda done, total: steps.append(done))
    assert same(whole, found)
    assert steps[:2] == [20, 21]
    assert steps[-1] == 80
    again = made.reconstruct(options, checkpoint=kept)
    assert same(whole, again)


def test_a_checkpoint_of_another_run(case: Callable[..., Any], tmp_path: Path) -> None:
    made = case("relu")
    kept = tmp_path / "state.pt"
    options = replace(QUICK, iterations=2)
    made.reconstruct(options, checkpoint=kept)
    with pytest.raises(UsageError, match="options"):
        made.reconstruct(replace(options, seed=1), checkpoint=kept)
    with pytest.raises(UsageError, match="samples"):
        replace(made, feeds=made.feeds[:8]).reconstruct(options, checkpoint=kept)


def test_nothing_is_left_in_the_folder(case: Callable[..., Any], tmp_path: Path) -> None:
    made = case("relu")
    made.reconstruct(replace(QUICK, iterations=2), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_change_that_helps_nothing_is_taken_back(case: Callable[..., Any]) -> None:
    made = case("relu")
    # So many steps so large leave the weights where chance has them.
    wild = replace(QUICK, iterations=4, rounding_rate=100.0, bias_rate=100.0)
    found = made.reconstruct(wild)
    assert all("held-out" in b.note and b.noise_after == b.noise_before for b in found.blocks)
    assert not found.codes
    assert exported(made, found).sha256() == made.nearest().sha256()


def test_a_limit_of_time(case: Callable[..., Any]) -> None:
    made = case("relu")
    found = made.reconstruct(replace(QUICK, iterations=10**6, seconds=0.3))
    assert all("steps in its share of the time" in b.note or "left as it was" in b.note for b in found.blocks)


def test_few_samples(case: Callable[..., Any]) -> None:
    made = case("relu")
    with pytest.raises(DataError, match="1 samples are too few"):
        replace(made, feeds=made.feeds[:1]).reconstruct(QUICK)
    with pytest.raises(UsageError, match="granularity"):
        ReconstructOptions(granularity="net")  # type: ignore[arg-type]


MEMORY = """
import sys, numpy as np, onnx, onnx_ir as ir
from edgekit.graph import Graph, array
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import all_weight_scales
from edgekit.quantize.qparams import activation_params
from edgekit.quantize.reconstruct.options import ReconstructOptions
from edgekit.quantize.reconstruct.run import reconstruct
from edgekit.registry import load_target
model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["" : 21]> g (float[1,3,96,96] x) =>
  (float[1,16,96,96] y) { a = Conv <pads=[1,1,1,1]> (x, w1) r = Relu(a)
  y = Conv <pads=[1,1,1,1]> (r, w2) }''')
random = np.random.default_rng(0)
for name, shape in (("w1", (16, 3, 3, 3)), ("w2", (16, 16, 3, 3))):
    data = random.standard_normal(shape).astype(np.float32) / 9
    model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
for node in model.graph.node:
    node.name = node.output[0]
graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
scheme = load_target("ort-cpu").scheme
plan = make_plan(graph, scheme)
params = {t: activation_params(-4, 4, scheme.activation) for t in plan.tensors}
def feeds():
    for i in range(int(sys.argv[1])):
        yield {"x": np.random.default_rng(i).standard_normal((1, 3, 96, 96)).astype(np.float32)}
options = ReconstructOptions(iterations=1, fisher=False, memory_bytes=2**26, batch=4)
print(reconstruct(graph, plan, params, scheme, all_weight_scales(graph, scheme), feeds, options).peak_bytes)
"""


def test_memory_does_not_grow_with_the_samples() -> None:
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, n], capture_output=True, text=True, check=True
            ).stdout
        )
        for n in ("8", "72")
    ]
    # 64 more samples, each with 16 x 96 x 96 x 4 bytes in every inner tensor: 36 MiB for each of them.
    assert peaks[1] - peaks[0] < 16 * 2**20
    assert peaks[0] > 2**26
