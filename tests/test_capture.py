from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.capture import capture
from edgekit.errors import ModelError, UsageError
from edgekit.graph import OPSET, array
from edgekit.passes.edit import static_shape
from edgekit.session import open_runner
from edgekit.sources import Source, read

MODELS = Path(__file__).resolve().parents[1].parent / "shared" / "models"

# What exporters make of x.view(x.shape[0], -1) and an interpolation to a computed size.
DYNAMIC = """g (float[batch,4,height,width] image) => (float[batch,k] scores, float[batch,4,h2,w2] big) {
    shape = Shape(image)
    zero = Constant<value_int=0>() two = Constant<value_ints=[2]>() four = Constant<value_ints=[4]>()
    minus = Constant<value_ints=[-1]>()
    batch0 = Gather<axis=0>(shape, zero) first = Unsqueeze(batch0, axes)
    hw = Slice(shape, two, four) hw2 = Mul(hw, two) bc = Slice(shape, axes, two) to = Concat<axis=0>(bc, hw2)
    big = Resize<mode="nearest">(image, , , to)
    pooled = GlobalAveragePool(image)
    flat_shape = Concat<axis=0>(first, minus)
    flat = Reshape(pooled, flat_shape)
    scores = Gemm<transB=1>(flat, weight, bias)
}"""


def _save(folder: Path, text: Any, opset: Any = 13, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.fixture
def dynamic(tmp_path: Path) -> Any:
    random = np.random.default_rng(0)
    return _save(
        tmp_path,
        DYNAMIC,
        axes=np.array([0], np.int64),
        weight=random.standard_normal((5, 4)).astype(np.float32),
        bias=random.standard_normal(5).astype(np.float32),
    )


def test_shape_chains_fold_away_once_sizes_are_pinned(dynamic: str) -> None:
    found = capture(dynamic, input_shapes={"image": (2, 4, 6, 7)})
    assert [n.op_type for n in found.graph.nodes] == ["Resize", "GlobalAveragePool", "Reshape", "Gemm"]
    assert [o.shape for o in found.graph.outputs] == [(2, 5), (2, 4, 12, 14)]
    assert {"weight", "bias"} <= set(found.graph.model.graph.initializers)
    assert found.difference.value < 1e-5
    assert found.difference.spread["runs"] == 2


def test_open_sizes_are_asked_for(dynamic: str) -> None:
    with pytest.raises(ModelError, match=r"dimension 2 \(height\).*--input-shape image=1,4,N,N"):
        capture(dynamic)


def test_a_shape_that_does_not_fit(dynamic: str) -> None:
    with pytest.raises(UsageError, match="fixed to batchx4xheightxwidth"):
        capture(dynamic, input_shapes={"image": (1, 3, 6, 6)})


def test_the_batch_is_pinned_by_itself_and_recorded(tmp_path: Path) -> None:
    path = _save(tmp_path, "g (float[N,3] x) => (float[N,3] y) { y = Softmax(x) }")
    found = capture(path)
    assert found.graph.inputs[0].shape == (1, 3)
    assert any("batch set to 1" in change.summary for change in found.graph.history)


def test_everything_is_static_named_and_at_one_opset(tmp_path: Path) -> None:
    weights = {f"s{i}": np.linspace(0.5, 1, 4, dtype=np.float32) for i in range(4)}
    path = _save(
        tmp_path,
        """g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
            c = Conv(x, w) n = BatchNormalization(c, s0, s1, s2, s3) d = Dropout(n) i = Identity(d)
            dead = Neg(i) y = Softmax<axis=1>(i) }""",
        opset=11,
        w=np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32),
        unused=np.zeros(9, np.float32),
        **weights,
    )
    graph = capture(path).graph
    assert [n.op_type for n in graph.nodes] == ["Conv", "Flatten", "Softmax", "Reshape"]
    assert graph.model.opset_imports == {"": OPSET}
    assert all(static_shape(v) is not None for v in graph.values().values())
    assert len({n.name for n in graph.nodes}) == 4
    assert all(n.name for n in graph.nodes)
    assert set(graph.model.graph.initializers) == {"w", "w.bias", "y.shape"}
    assert [c.pass_name for c in graph.history] == [
        "weight_inputs", "widen_floats", "fold_constants", "upgrade_opset", "remove_identities",
        "fold_batchnorm", "remove_unused", "strip_notes", "name_nodes", "infer_shapes", "mean_to_pool",
    ]  # fmt: skip
    onnx.checker.check_model(graph.to_proto(), full_check=True)


@pytest.mark.parametrize("fold", [True, False])
def test_normalizations_can_stay(tmp_path: Path, fold: bool) -> None:
    text = """g (float[1,2,4,4] x) => (float[1,3,4,4] y) {
        a = Conv(x, w, zero) y = BatchNormalization(a, gamma, beta, mean, var)
    }"""
    random = np.random.default_rng(0)
    numbers = {
        name: random.uniform(0.5, 1, 3).astype(np.float32) for name in ("gamma", "beta", "mean", "var")
    }
    weight = random.standard_normal((3, 2, 1, 1)).astype(np.float32)
    path = _save(tmp_path, text, 17, w=weight, zero=np.zeros(3, np.float32), **numbers)
    nodes = list(capture(path, fold=fold).graph.nodes)
    assert [node.op_type for node in nodes] == (["Conv"] if fold else ["Conv", "BatchNormalization"])
    assert len([v for v in nodes[0].inputs if v is not None]) == (3 if fold else 2)


def test_float16_models_become_float32(tmp_path: Path) -> None:
    path = _save(
        tmp_path,
        "g (float16[1,4] x) => (float16[1,3] y) { a = MatMul(x, w) y = Relu(a) }",
        w=np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16),
    )
    found = capture(path)
    assert found.graph.inputs[0].dtype == np.float32
    weight = array(found.graph.values()["w"])
    assert weight is not None
    assert weight.dtype == np.float32
    assert 0 < found.difference.value < 0.01
    assert any("x, y" in change.summary for change in found.graph.history)


def test_integer_inputs_and_outputs(tmp_path: Path) -> None:
    path = _save(
        tmp_path,
        """g (int64[1,6] ids) => (int64[1,6] best, float[1,6,3] e) {
            e = Gather(w, ids) best = ArgMax<axis=2, keepdims=0>(e) }""",
        w=np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32),
    )
    assert capture(path).difference.value == 0


def test_control_flow_is_refused(tmp_path: Path) -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        [gate] y = If (c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                   else_branch = e () => (float[2] b) { b = Relu(x) }> }"""
    with pytest.raises(ModelError, match="node 'gate': If depends on the input"):
        capture(_save(tmp_path, text))


def test_control_flow_that_is_known_folds(tmp_path: Path) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) {
        s = Shape(x) n = Gather(s, one) c = Equal(n, two)
        y = If (c) <then_branch = t () => (float[N,2] a) { a = Neg(x) },
                    else_branch = e () => (float[N,2] b) { b = Relu(x) }> }"""
    graph = capture(_save(tmp_path, text, one=np.int64(1), two=np.int64(2))).graph
    assert "Neg" in {n.op_type for n in graph.nodes}
    assert "Relu" not in {n.op_type for n in graph.nodes}


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_an_old_opset_is_refused(tmp_path: Path, opset: Any) -> None:
    with pytest.raises(ModelError, match=f"opset {opset} is too old"):
        capture(_save(tmp_path, "g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset))


def test_a_model_that_bakes_its_size_in(tmp_path: Path) -> None:
    path = _save(
        tmp_path, "g (float[N,3] x) => (float[M,3] y) { y = Reshape(x, s) }", s=np.array([2, 3], np.int64)
    )
    assert capture(path, input_shapes={"x": (2, 3)}).graph.outputs[0].shape == (2, 3)
    with pytest.raises(ModelError, match=r"x 1x3.*--input-shape|do not fit"):
        capture(path)


def test_a_conversion_that_went_wrong_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: Any, shapes: Any, folder: Path) -> Any:
        origin = read(source, shapes, folder)
        return Source(
            origin.graph, origin.sha256, lambda feeds: {"y": origin.run(feeds)["y"] + 0.01}, "a wrong runner"
        )

    monkeypatch.setattr("edgekit.capture.read", wrong)
    with pytest.raises(ModelError, match=r"output 'y': .*differs from the original by 0.01"):
        capture(_save(tmp_path, "g (float[2] x) => (float[2] y) { y = Tanh(x) }"))


def test_a_result_that_is_not_a_number_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: Any, shapes: Any, folder: Path) -> Any:
        origin = read(source, shapes, folder)
        return Source(
            origin.graph, origin.sha256, lambda feeds: {"y": np.full(2, np.nan, np.float32)}, "a wrong runner"
        )

    monkeypatch.setattr("edgekit.capture.read", wrong)
    with pytest.raises(ModelError, match=r"output 'y': .*differs from the original by nan"):
        capture(_save(tmp_path, "g (float[2] x) => (float[2] y) { y = Tanh(x) }"))


def test_capturing_twice_gives_the_same_bytes(dynamic: str) -> None:
    shapes = {"image": (1, 4, 6, 6)}
    assert (
        capture(dynamic, input_shapes=shapes).graph.to_bytes()
        == capture(dynamic, input_shapes=shapes).graph.to_bytes()
    )


def test_a_captured_graph_is_captured_unchanged(dynamic: str, tmp_path: Path) -> None:
    first = capture(dynamic, input_shapes={"image": (1, 4, 6, 6)})
    first.graph.save(tmp_path / "again.onnx")
    assert capture(str(tmp_path / "again.onnx")).graph.to_bytes() == first.graph.to_bytes()


@pytest.mark.parametrize(
    ("name", "input_shape", "parameters"),
    [("yolox_nano", (1, 3, 416, 416), 904_467), ("mobilefacenet", (1, 3, 112, 112), 990_016)],
)
def test_real_models(name: Any, input_shape: Any, parameters: Any) -> None:
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    from edgekit.stats import count

    found = capture(str(path))
    assert found.graph.inputs[0].shape == input_shape
    assert found.graph.model.opset_imports == {"": OPSET}
    assert found.difference.spread["max_relative"] < 1e-4
    assert all(static_shape(v) is not None for v in found.graph.values().values())
    assert "Constant" not in {n.op_type for n in found.graph.nodes}
    assert abs(count(found.graph).parameters - parameters) < 100
    open_runner(found.graph, threads=1)
