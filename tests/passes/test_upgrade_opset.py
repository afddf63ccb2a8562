from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.errors import ModelError
from edgekit.graph import OPSET
from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.upgrade_opset import ADAPTERS, OLDEST, upgrade_opset
from edgekit.passes.verify import max_difference
from edgekit.session import open_runner

# Versions between OLDEST and OPSET that change an attribute, its default or the inputs without changing what
# a node written before means: what is new is optional, and its default is what the operator did before.
COMPATIBLE = {
    ("ArgMax", 12), ("ArgMin", 12), ("AveragePool", 19), ("Cast", 19), ("CastLike", 19), ("Constant", 12),
    ("DequantizeLinear", 13), ("DequantizeLinear", 21), ("GRU", 14), ("GatherND", 12), ("LSTM", 14),
    ("LpPool", 18),
    ("OptionalHasElement", 18), ("Pad", 18), ("QuantizeLinear", 13), ("QuantizeLinear", 19),
    ("QuantizeLinear", 21),
    ("RNN", 14), ("Reshape", 14), ("Resize", 18), ("ScatterElements", 16), ("ScatterND", 16), ("Shape", 15),
}  # fmt: skip


def test_every_changed_operator_has_an_adapter() -> None:
    changed = set()
    versions: dict[str, dict[int, Any]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions[schema.name][schema.since_version] = schema
    for name, history in versions.items():
        steps = sorted(history)
        for before, after in pairwise(steps):
            if OLDEST < after <= OPSET and _form(history[before]) != _form(history[after]):
                changed.add((name, after))
    assert changed - COMPATIBLE == set(ADAPTERS)


def _form(schema: Any) -> Any:
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString())
        for name, a in schema.attributes.items()
    }
    # Inputs may be renamed (BatchNormalization calls its mean input_mean now), but not added.
    return [i.option for i in schema.inputs], [o.option for o in schema.outputs], attributes


I64 = np.int64
CASES = {
    "dropout": (11, "float[2,3] y", "y = Dropout<ratio=0.3>(x)", (2, 3), {}),
    "softmax default axis": (11, "float[2,3,4] y", "y = Softmax(x)", (2, 3, 4), {}),
    "softmax axis 0": (12, "float[2,3,4] y", "y = Softmax<axis=0>(x)", (2, 3, 4), {}),
    "softmax last axis": (11, "float[2,3,4] y", "y = Softmax<axis=-1>(x)", (2, 3, 4), {}),
    "softmax over ones": (11, "float[2,3,1,1] y", "y = Softmax<axis=1>(x)", (2, 3, 1, 1), {}),
    "softmax inside": (11, "float[2,3,4] y", "a = Relu(x) b = Softmax<axis=1>(a) y = Neg(b)", (2, 3, 4), {}),
    "log softmax": (11, "float[2,3,4] y", "y = LogSoftmax<axis=1>(x)", (2, 3, 4), {}),
    "hardmax": (11, "float[2,3,4] y", "y = Hardmax<axis=1>(x)", (2, 3, 4), {}),
    "squeeze": (11, "float[2,3] y", "y = Squeeze<axes=[1,3]>(x)", (2, 1, 3, 1), {}),
    "squeeze all": (11, "float[2,3] y", "y = Squeeze(x)", (2, 1, 3, 1), {}),
    "unsqueeze": (11, "float[1,2,3,1] y", "y = Unsqueeze<axes=[0,3]>(x)", (2, 3), {}),
    "reduce sum": (12, "float[2,4] y", "y = ReduceSum<axes=[1], keepdims=0>(x)", (2, 3, 4), {}),
    "reduce sum all": (11, "float[1,1,1] y", "y = ReduceSum(x)", (2, 3, 4), {}),
    "split sizes": (11, "float[1,3] y, float[4,3] z", "y, z = Split<axis=0, split=[1,4]>(x)", (5, 3), {}),
    "split even": (11, "float[2,3] y, float[2,3] z", "y, z = Split<axis=0>(x)", (4, 3), {}),
    "split even 13": (13, "float[2,3] y, float[2,3] z", "y, z = Split<axis=0>(x)", (4, 3), {}),
    "resize scales": (
        11, "float[1,2,6,6] y", 'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, roi, scales)', (1, 2, 3, 3),
        {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize sizes": (
        11, "float[1,2,5,7] y", 'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">'
        "(x, none, none, sizes)", (1, 2, 3, 3),
        {"none": np.zeros(0, np.float32), "sizes": np.array([1, 2, 5, 7], I64)},
    ),
    "batch norm": (
        11, "float[1,2,3] y", "y = BatchNormalization(x, s, s, s, s)", (1, 2, 3),
        {"s": np.array([1, 2], np.float32)},
    ),
    "reduce mean": (13, "float[2,1,4] y", "y = ReduceMean<axes=[1]>(x)", (2, 3, 4), {}),
    "reduce max": (12, "float[2,3] y", "y = ReduceMax<axes=[-1], keepdims=0>(x)", (2, 3, 4), {}),
    "reduce l2": (11, "float[2,3] y", "y = ReduceL2<axes=[2], keepdims=0>(x)", (2, 3, 4), {}),
    "roi align": (
        11, "float[1,2,2,2] y", "y = RoiAlign<output_height=2, output_width=2>(x, rois, batch)", (1, 2, 8, 8),
        {"rois": np.array([[1, 1, 6, 6]], np.float32), "batch": np.zeros(1, I64)},
    ),
    "grid sample": (
        16, "float[1,2,2,2] y", 'y = GridSample<mode="bicubic">(x, grid)', (1, 2, 4, 4),
        {"grid": np.linspace(-0.9, 0.9, 8, dtype=np.float32).reshape(1, 2, 2, 2)},
    ),
    "grid sample default": (
        16, "float[1,2,2,2] y", "y = GridSample(x, grid)", (1, 2, 4, 4),
        {"grid": np.linspace(-0.9, 0.9, 8, dtype=np.float32).reshape(1, 2, 2, 2)},
    ),
    "dft": (17, "float[1,6,3,2] y", "y = DFT(x)", (1, 6, 3, 1), {}),
    "clip and pad": (
        11, "float[4,5] y", 'a = Clip(x, lo, hi) y = Pad<mode="constant">(a, pads)', (2, 3),
        {"lo": np.float32(-0.1), "hi": np.float32(0.2), "pads": np.ones(4, I64)},
    ),
    "slice and top k": (
        11, "float[2,2] y, int64[2,2] i", "a = Slice(x, one, three) y, i = TopK(a, two)", (4, 3),
        {"one": np.array([1], I64), "three": np.array([3], I64), "two": np.array([2], I64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_change_keeps_the_result(make_graph: Callable[..., Any], case: Any) -> None:
    opset, outputs, body, shape, constants = CASES[case]
    sizes = ",".join(map(str, shape))
    graph = infer_shapes(
        make_graph(f"g (float[{sizes}] x) => ({outputs}) {{ {body} }}", constants, opset=opset)
    )
    before = graph.to_bytes()
    upgraded = infer_shapes(upgrade_opset(graph))
    assert graph.to_bytes() == before
    onnx.checker.check_model(upgraded.to_proto(), full_check=True)
    assert upgraded.model.opset_imports[""] == OPSET
    assert [o.name for o in upgraded.outputs] == [o.name for o in graph.outputs]
    assert max_difference(graph, upgraded) < 1e-5


def test_group_normalization_repeats_its_scales(make_graph: Callable[..., Any]) -> None:
    # ONNX Runtime has no kernel for the old form, so the result is worked out here.
    scale, bias = np.array([2, 3], np.float32), np.array([1, -1], np.float32)
    graph = infer_shapes(
        make_graph(
            "g (float[1,4,2] x) => (float[1,4,2] y) { y = GroupNormalization<num_groups=2>(x, s, b) }",
            {"s": scale, "b": bias},
            opset=18,
        )
    )
    x = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    found = open_runner(upgrade_opset(graph), threads=1).run({"x": x})["y"]
    groups = x.reshape(2, 4)
    normal = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    assert found == pytest.approx((normal * scale[:, None] + bias[:, None]).reshape(1, 4, 2), abs=1e-5)


def test_dropping_unused_training_outputs(make_graph: Callable[..., Any]) -> None:
    text = "g (float[1,2,3] x) => ({}) {{ y, m, v, sm, sv = BatchNormalization(x, s, s, s, s) }}"
    ones = {"s": np.ones(2, np.float32)}
    kept = upgrade_opset(make_graph(text.format("float[1,2,3] y"), ones, opset=11))
    assert [len(n.outputs) for n in kept.nodes] == [1]
    with pytest.raises(ModelError, match="training outputs"):
        upgrade_opset(make_graph(text.format("float[1,2,3] y, float[2] m"), ones, opset=11))


@pytest.mark.parametrize("opset", [1, 9, 10])
def test_too_old_is_refused(make_graph: Callable[..., Any], opset: Any) -> None:
    with pytest.raises(ModelError, match=rf"opset {opset} is too old.*valid: 11"):
        upgrade_opset(make_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }", opset=opset))


def test_a_coordinate_rule_that_is_gone_is_refused(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        """g (float[1,1,2,2] x) => (float[1,1,4,4] y) {
            [up] y = Resize<coordinate_transformation_mode="tf_half_pixel_for_nn">(x, r, s) }""",
        {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)},
        opset=11,
    )
    with pytest.raises(ModelError, match=r"Resize 'up'.*tf_half_pixel_for_nn"):
        upgrade_opset(graph)


def test_softmax_of_unknown_rank_is_refused(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[N,3] x) => (float[N,3] y) { [s] y = Softmax(x) }", opset=11)
    with pytest.raises(ModelError, match="Softmax 's'"):
        upgrade_opset(graph)


def test_the_same_opset_changes_nothing(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    assert upgrade_opset(graph).to_bytes() == graph.to_bytes()


def test_a_higher_opset_is_lowered_where_nothing_changed(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        "g (float[1,4] x) => (float[1,4] y) { a = Relu(x) y = Reshape(a, s) }",
        {"s": np.array([1, 4], I64)},
        opset=24,
    )
    lowered = upgrade_opset(graph)
    assert lowered.model.opset_imports[""] == OPSET
    assert max_difference(graph, lowered) == 0


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        ("[n] y = RMSNormalization(x, x)", 23, "RMSNormalization node 'n'.*no such operator"),
        ('[n] y = Cast<to=1, round_mode="up">(x)', 24, "Cast node 'n'.*differently"),
    ],
)
def test_a_higher_opset_with_new_things_is_refused(
    make_graph: Callable[..., Any], body: Any, opset: Any, message: Any
) -> None:
    with pytest.raises(ModelError, match=message):
        upgrade_opset(make_graph(f"g (float[1,4] x) => (float[1,4] y) {{ {body} }}", opset=opset))


def test_what_was_rewritten_is_counted(make_graph: Callable[..., Any]) -> None:
    graph = infer_shapes(
        make_graph(
            "g (float[2,3] x) => (float[2,3] y) { a = Dropout<ratio=0.1>(x) y = Softmax(a) }", opset=11
        )
    )
    change = upgrade_opset(fold_constants(graph)).history[-1]
    assert change.summary == "opset 11 to 21: 1 Dropout, 1 Softmax rewritten"
    assert change.details == {"from": 11, "adapted": {"Dropout": 1, "Softmax": 1}}
