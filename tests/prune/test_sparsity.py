"""Zeros in the right number and the right places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.graph import Graph, array
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.prune.sparsity import (
    SparsifyOptions,
    apply_masks,
    block_mask,
    cubic,
    find_weights,
    sparsify,
)

Array = np.ndarray[Any, Any]


def net() -> Graph:
    """x [1, 4, 8, 8]: conv 8, depthwise conv, grouped conv 8, transposed conv 4, pool, gemm 5."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    arrays = {
        "a": weight(8, 4, 3, 3), "bias": weight(8), "d": weight(8, 1, 3, 3), "g": weight(8, 4, 1, 1),
        "t": weight(8, 4, 2, 2), "f": weight(5, 4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["1"], name="first"),
        helper.make_node("Conv", ["1", "d"], ["2"], name="depthwise", group=8),
        helper.make_node("Conv", ["2", "g"], ["3"], name="grouped", group=2),
        helper.make_node("ConvTranspose", ["3", "t"], ["4"], name="up"),
        helper.make_node("GlobalAveragePool", ["4"], ["5"], name="pool"),
        helper.make_node("Flatten", ["5"], ["6"], name="flat"),
        helper.make_node("Gemm", ["6", "f"], ["y"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(v, n) for n, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return infer_shapes(Graph(ir.from_proto(model)))


def weights(graph: Graph) -> dict[str, Array]:
    found = {n: array(v) for n, v in graph.model.graph.initializers.items()}
    return {n: v for n, v in found.items() if v is not None and n in "adgtf"}


TOTAL = sum(v.size for v in weights(net()).values())


@given(st.floats(0.001, 0.999))
def test_as_many_zeros_as_asked_for(share: float) -> None:
    result = sparsify(net(), SparsifyOptions(sparsity=share))
    zeros = sum(int((v == 0).sum()) for v in weights(result.graph).values())
    assert abs(zeros - share * TOTAL) <= 0.5
    assert result.sparsity == pytest.approx(zeros / TOTAL)


def test_global_takes_the_smallest_anywhere() -> None:
    graph = net()
    before = weights(graph)
    result = sparsify(graph, SparsifyOptions(sparsity=0.5))
    after = weights(result.graph)
    gone = max(np.abs(before[n])[after[n] == 0].max() for n in before)
    left = min(np.abs(after[n])[after[n] != 0].min() for n in after)
    assert gone <= left
    for name, mask in result.masks.items():
        assert (mask == (after[name] != 0)).all()
        assert (after[name] == before[name] * mask).all()
        assert result.layers[name] == pytest.approx(1 - mask.mean())
    assert (weights(graph)["a"] == before["a"]).all()
    bias = array(result.graph.model.graph.initializers["bias"])
    assert bias is not None
    assert (bias != 0).all()


def test_by_layer_all_get_the_same() -> None:
    result = sparsify(net(), SparsifyOptions(sparsity=0.6, scope="layer"))
    for name, mask in result.masks.items():
        assert abs(int((~mask).sum()) - 0.6 * mask.size) <= 0.5, name


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:2", 1, 2), ("1:4", 1, 4)])
def test_blocks_lie_along_the_input_channels(pattern: str, n: int, m: int) -> None:
    result = sparsify(net(), SparsifyOptions(pattern=pattern))
    after = weights(result.graph)
    for name, axis in (("a", 1), ("g", 1), ("t", 0), ("f", 1)):
        blocks = np.moveaxis(after[name], axis, -1).reshape(-1, m)
        assert ((blocks != 0).sum(1) == n).all(), name
    assert [(r.where, r.reason) for r in result.refused] == [
        ("d", f"has 1 input channel for each output: no blocks of {m}")
    ]
    assert result.sparsity == 1 - n / m
    assert result.graph.history[-1].refused == result.refused


@given(
    st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(n + 1, 6))),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.data(),
)
def test_a_block_mask_keeps_exactly_n_of_m_and_the_largest(
    pattern: tuple[int, int], shape: list[int], data: st.DataObject
) -> None:
    kept, block = pattern
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape = [*shape]
    shape[axis] *= block
    # Few different values, so that there are ties.
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 4, shape).astype(np.float32)
    mask = np.moveaxis(block_mask(scores, kept, block, axis), axis, -1).reshape(-1, block)
    values = np.moveaxis(scores, axis, -1).reshape(-1, block)
    assert (mask.sum(1) == kept).all()
    for keep, value in zip(mask, values, strict=True):
        assert value[keep].min() >= value[~keep].max()


def test_cubic_schedule() -> None:
    assert cubic(0, 8, 0.1, 0.9) == pytest.approx(0.1)
    assert cubic(8, 8, 0.1, 0.9) == pytest.approx(0.9)
    # Equation 1 of the paper at half time: 0.9 + (0.1 - 0.9) / 8.
    assert cubic(4, 8, 0.1, 0.9) == pytest.approx(0.8)
    steps = [cubic(i, 8, 0.0, 0.9) for i in range(9)]
    assert (np.diff(steps) > 0).all()
    assert (np.diff(steps, 2) < 0).all()
    with pytest.raises(UsageError, match="0 to 8"):
        cubic(9, 8, 0.0, 0.9)
    with pytest.raises(UsageError, match="1 or more"):
        cubic(0, 0, 0.0, 0.9)


def test_gradual_with_recovery_keeps_what_is_zero() -> None:
    seen: list[float] = []
    previous: list[Mapping[str, Array]] = []

    def recover(graph: Graph, masks: Mapping[str, Array]) -> Graph:
        """Brings every weight back, which must not last, and makes them larger."""
        for name, value in weights(graph).items():
            assert (value[~masks[name]] == 0).all()
        for old in previous:
            assert all((masks[n] <= old[n]).all() for n in masks)
        previous.append(masks)
        seen.append(1 - sum(m.sum() for m in masks.values()) / TOTAL)
        full = net().copy()
        return apply_masks(full, {n: np.ones(v.shape, bool) for n, v in weights(full).items()})

    result = sparsify(net(), SparsifyOptions(sparsity=0.8, steps=4), recover=recover)
    assert seen == pytest.approx([cubic(i, 4, 0, 0.8) for i in (1, 2, 3)], abs=1 / TOTAL)
    assert result.schedule == pytest.approx((*seen, 0.8), abs=1 / TOTAL)
    assert result.sparsity == pytest.approx(0.8, abs=1 / TOTAL)
    assert all((result.masks[n] <= previous[-1][n]).all() for n in result.masks)


def test_gradual_blocks() -> None:
    schedule = sparsify(net(), SparsifyOptions(pattern="1:4", steps=3)).schedule
    assert schedule == (0.5, 0.75, 0.75)


def test_activation_criterion_spares_strong_inputs() -> None:
    """The first input is 100 times as strong as the others: its weights stay."""
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(4)]
    for feed in feeds:
        feed["x"][:, 0] *= 100
    options: dict[str, Any] = {"sparsity": 0.5, "scope": "layer"}
    plain = sparsify(net(), SparsifyOptions(**options))
    felt = sparsify(net(), SparsifyOptions(**options, criterion="activation"), feeds)
    assert felt.masks["a"][:, 0].mean() > 0.97 > plain.masks["a"][:, 0].mean()
    for name in plain.masks:
        assert abs(int(felt.masks[name].sum()) - int(plain.masks[name].sum())) <= 1
    with pytest.raises(DataError, match="criterion = activation"):
        sparsify(net(), SparsifyOptions(**options, criterion="activation"))


def test_activation_criterion_is_the_share_of_the_output_that_is_lost() -> None:
    """By hand for the grouped convolution: each output reads the four channels of its own group."""
    from edgekit.session import open_runner

    graph = net()
    feed = {"x": np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    tensors = open_runner(graph, threads=1, extra_outputs=["2", "3"]).run(feed)
    rms = np.sqrt((tensors["2"].astype(np.float64) ** 2).mean((0, 2, 3)))
    scores = np.abs(weights(graph)["g"][:, :, 0, 0]) * np.repeat(rms.reshape(2, 4), 4, axis=0)
    order = np.sort(scores.reshape(-1))
    options = SparsifyOptions(sparsity=0.5, scope="layer", criterion="activation")
    mask = sparsify(graph, options, [feed]).masks["g"][:, :, 0, 0]
    assert (mask == (scores > order[15])).all()


def test_exclude_by_weight_and_node_name() -> None:
    result = sparsify(net(), SparsifyOptions(sparsity=0.5, exclude=("a", "den*")))
    assert set(result.masks) == {"d", "g", "t"}
    with pytest.raises(UsageError, match=r"\['nix\*'\] match no weight"):
        sparsify(net(), SparsifyOptions(sparsity=0.5, exclude=("nix*",)))
    with pytest.raises(ModelError, match="no weight can be made sparse"):
        sparsify(net(), SparsifyOptions(sparsity=0.5, exclude=("*",)))


def test_quantized_weights_are_refused() -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), np.int8), "q")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq"),
        helper.make_node("Gemm", ["x", "w"], ["y"], name="dense", transB=1),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, k)) for n, k in (("x", 3), ("y", 2)))
    model = helper.make_model(helper.make_graph(nodes, "net", [x], [y], [weight, scale]), ir_version=10)
    graph = infer_shapes(Graph(ir.from_proto(model)))
    with pytest.raises(ModelError, match=r"w: is computed, not constant"):
        sparsify(graph, SparsifyOptions(sparsity=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"sparsity: says nothing \(valid: a share between 0 and 1\)"),
        ({"sparsity": 0.0}, "sparsity: is 0.0 .*between 0 and 1"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"pattern": "4:2"}, r"'4:2' is no pattern \(valid: unstructured, 2:4"),
        ({"pattern": "half"}, "'half' is no pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "2:4 makes it 0.5"),
        ({"sparsity": 0.5, "scope": "world"}, r"'world' is unknown \(valid: global, layer\)"),
        ({"sparsity": 0.5, "criterion": "luck"}, r"'luck' is unknown \(valid: magnitude, activation\)"),
        ({"sparsity": 0.5, "steps": 0}, r"steps: is 0 \(valid: 1 or more\)"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SparsifyOptions(**options)


def test_wrong_masks() -> None:
    with pytest.raises(UsageError, match="no weight 'nix'"):
        apply_masks(net(), {"nix": np.ones(1, bool)})
    with pytest.raises(UsageError, match=r"mask is \[1\], the weight"):
        apply_masks(net(), {"a": np.ones(1, bool)})
    with pytest.raises(UsageError, match="5 weights do not make blocks of 4"):
        block_mask(np.ones(5), 2, 4, 0)


def test_weights_are_found_in_order() -> None:
    found, _ = find_weights(net(), SparsifyOptions(sparsity=0.5))
    assert [w.name for w in found] == ["a", "d", "g", "t", "f"]
    assert [w.axis for w in found] == [1, 1, 1, 0, 1]
