"""Parity: a model equals itself, a planted error is found where it is, and the comparison is bounded in
memory."""

import itertools
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import DataError, ModelError
from edgekit.graph import Graph
from edgekit.measure import parity as module
from edgekit.measure.parity import compare_layers, runner_parity
from edgekit.session import Arrays, open_runner

SHAPE = (1, 4, 8, 8)


def _samples(count: int = 3) -> list[Arrays]:
    return [{"x": np.random.default_rng(i).normal(size=SHAPE).astype(np.float32)} for i in range(count)]


def _graph(
    *, wrong: int | None = None, steps: dict[str, float] | None = None, suffix: str = "_dequantized"
) -> Graph:
    """Four convolutions ``t1`` … ``t4`` with ReLU ``r1`` … ``r4`` between; the output is ``r4``.

    Args:
        wrong: Number of the convolution whose weights are 1 % off.
        steps: Tensors that are quantized to int8, with their step size.
        suffix: Of the names of the dequantized tensors.
    """
    random = np.random.default_rng(7)
    nodes = []
    constants: dict[str, np.ndarray[Any, Any]] = {}
    steps = steps or {}
    view = "x"
    for i in range(1, 5):
        weight = random.normal(size=(4, 4, 3, 3)).astype(np.float32) * 0.2
        constants[f"w{i}"] = weight * np.float32(1.01) if i == wrong else weight
        nodes.append(helper.make_node("Conv", [view, f"w{i}"], [f"t{i}"], pads=[1, 1, 1, 1], name=f"conv{i}"))
        name = view = f"r{i}" if f"r{i}" not in steps or i < 4 else "raw"
        nodes.append(helper.make_node("Relu", [f"t{i}"], [name], name=f"relu{i}"))
        if f"r{i}" in steps:
            constants |= {f"s{i}": np.array(steps[f"r{i}"], np.float32), f"z{i}": np.array(-128, np.int8)}
            view = f"r{i}{suffix}" if i < 4 else "r4"
            nodes.append(helper.make_node("QuantizeLinear", [name, f"s{i}", f"z{i}"], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [view]))
    graph = helper.make_graph(
        nodes,
        "four",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("r4", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


def _one_op(op: str, *, inputs: int = 1) -> Graph:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"] * inputs, ["y"])],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    return Graph(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    )


def test_a_model_equals_itself() -> None:
    result = compare_layers(_graph(), _graph(), _samples(), threads=1)
    assert (result.samples, result.layer_samples, len(result.layers)) == (3, 3, 8)
    for row in (*result.outputs, *result.layers):
        assert (row.cosine, row.cosine_min, row.sqnr_db, row.max_abs) == (1.0, 1.0, None, 0.0)
        assert row.identical
    assert not result.warnings
    assert not result.skipped


def test_a_planted_error_is_found_in_its_layer() -> None:
    result = compare_layers(_graph(), _graph(wrong=3), _samples(), threads=1)
    changed = [row for row in result.layers if not row.identical]
    assert [row.name for row in result.layers] == ["t1", "r1", "t2", "r2", "t3", "r3", "t4", "r4"]
    assert (changed[0].name, changed[0].op, changed[0].node) == ("t3", "Conv", "conv3")
    # All weights are 1 % off: the direction stays, and the noise is 40 dB below the signal.
    assert changed[0].cosine == pytest.approx(1.0, abs=1e-6)
    assert changed[0].sqnr_db == pytest.approx(40.0, abs=0.01)
    assert not result.outputs[0].identical


@pytest.mark.parametrize("suffix", ["_dequantized", "_any_other_name"])
def test_a_quantized_tensor_is_compared_in_its_dequantized_view(suffix: str) -> None:
    int8 = _graph(steps={"r2": 0.05}, suffix=suffix)
    rows = {row.name: row for row in compare_layers(_graph(), int8, _samples(), threads=1).layers}
    assert rows["t2"].identical
    assert rows["r1"].max_steps is None
    # Rounding to the nearest of 256 steps, none of which is exceeded: never more than half a step.
    assert 0.4 < (rows["r2"].max_steps or 0.0) <= 0.5001
    assert rows["r2"].max_abs == pytest.approx(0.05 * (rows["r2"].max_steps or 0.0))


def test_a_quantized_output_is_counted_in_its_steps() -> None:
    result = compare_layers(_graph(), _graph(steps={"r4": 0.05}), _samples(), threads=1)
    assert 0.4 < (result.outputs[0].max_steps or 0.0) <= 0.51
    assert result.kernels[0].name == "r4"
    assert result.kernels[0].max_steps is not None


def test_a_small_memory_limit_gives_the_same_rows_in_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counted(*args: Any, extra_outputs: list[str] | tuple[str, ...] = (), **options: Any) -> Any:
        opened.append(len(extra_outputs))
        return open_runner(*args, extra_outputs=extra_outputs, **options)

    monkeypatch.setattr(module, "open_runner", counted)
    int8 = _graph(steps={"r1": 0.05, "r3": 0.05})
    whole = compare_layers(_graph(), int8, _samples(), threads=1)
    assert max(opened) == 8
    opened.clear()
    parts = compare_layers(_graph(), int8, _samples(), threads=1, run_bytes=3 * 2 * 4 * 256)
    assert max(opened) <= 3
    assert parts == whole


def test_samples_are_read_once_and_no_further_than_the_limit() -> None:
    read = []

    def endless() -> Iterator[Arrays]:
        for number in itertools.count():
            read.append(number)
            yield _samples(1)[0]

    done: list[tuple[int, int]] = []
    result = compare_layers(
        _graph(),
        _graph(),
        endless(),
        threads=1,
        limit=5,
        layer_limit=2,
        progress=lambda a, b: done.append((a, b)),
    )
    assert (result.samples, result.layer_samples, read) == (5, 2, [0, 1, 2, 3, 4])
    assert done[-1] == (5, 5)


def test_sample_objects_are_accepted_as_well_as_mappings() -> None:
    wrapped = [SimpleNamespace(feeds=feeds) for feeds in _samples()]
    assert compare_layers(_graph(), _graph(wrong=1), wrapped, threads=1) == compare_layers(
        _graph(), _graph(wrong=1), _samples(), threads=1
    )


def test_without_layers_only_the_outputs_are_there() -> None:
    content = compare_layers(_graph(), _graph(), _samples(), layers=False, threads=1).to_json()
    assert content.keys() == {"samples", "outputs"}
    assert content["outputs"][0].keys() == {
        "name", "cosine", "cosine_min", "sqnr_db", "max_abs", "max_steps", "identical", "not_finite",
    }  # fmt: skip


def test_the_json_has_no_nan_or_infinity_and_says_where_they_were() -> None:
    feeds = {"x": np.array([-1.0, 0.0, 1.0, 2.0], np.float32)}
    result = compare_layers(_one_op("Log"), _one_op("Abs"), [feeds], threads=1)
    json.dumps(result.to_json(), allow_nan=False)
    assert result.outputs[0].not_finite == {"float": 2, "int8": 0}
    assert "output 'y' holds NaN or infinity (2 in float)" in result.warnings[0]


def test_tensors_without_a_counterpart_are_listed() -> None:
    other = _graph()
    for value in other.values().values():
        if value.name == "t2":
            value.name = "renamed"
    result = compare_layers(_graph(), other, _samples(1), threads=1)
    assert [name for name, _ in result.skipped] == ["t2"]
    assert len(result.layers) == 7


def test_no_samples_and_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        compare_layers(_graph(), _graph(), [])
    with pytest.raises(DataError, match="sample 1 has inputs"):
        compare_layers(
            _graph(), _graph(), [*_samples(1), {"x": np.zeros((1, 4, 9, 9), np.float32)}], threads=1
        )
    with pytest.raises(DataError, match="sample 0 has inputs"):
        compare_layers(_graph(), _graph(), [{"y": _samples(1)[0]["x"]}], threads=1)


def test_graphs_with_other_inputs_or_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match="different inputs"):
        compare_layers(_graph(), _one_op("Abs"), _samples())


def test_two_runners_are_compared_by_the_names_of_their_outputs() -> None:
    feeds = {"x": np.array([-1.0, 0.0, 1.0, 2.0], np.float32)}
    rows, count = runner_parity(open_runner(_one_op("Abs")), open_runner(_one_op("Relu")), [feeds, feeds])
    assert count == 2
    assert (rows[0].name, rows[0].max_abs) == ("y", 1.0)
    with pytest.raises(ModelError, match="no output 'r4'"):
        runner_parity(_FourThenAbs(), open_runner(_one_op("Abs")), [feeds], ["r4"])


class _FourThenAbs:
    """A runner that has an output called ``r4`` whatever goes in."""

    def run(self, feeds: object) -> Arrays:
        return {"r4": np.zeros(4, np.float32)}
