"""The same codes in every runtime, and a file that computes something else is found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.target import CodeDifference, RuntimeParity
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.interpreter import Kernels
from edgekit.tflite.model import TfliteModel
from edgekit.tflite.package import Package, open_package, write_package
from edgekit.tflite.parity import INTEGER, ONNX, XNNPACK, compare_runtimes

pytest.importorskip("ai_edge_litert")

Array = np.ndarray[Any, Any]
IMAGE = "float[1,3,8,8] x"
MAP = "float[a,b,c,d] y"
CONVS = """a = Conv <pads=[1,1,1,1]> (x, w1) b = Relu(a) c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)
    d = Conv <pads=[1,1,1,1]> (c, w2) e = Conv(d, w3) y = Conv(e, w5)"""
CLASSES = f"{CONVS.replace('y =', 'z =')} p = GlobalAveragePool(z) f = Flatten(p) y = Gemm(f, w4, b4)"
SHAPES = {
    "w1": (8, 3, 3, 3),
    "w2": (8, 8, 3, 3),
    "w3": (12, 8, 1, 1),
    "w5": (16, 12, 1, 1),
    "w4": (16, 6),
    "b4": (6,),
    "m1": (12, 16),
    "m2": (16, 8),
    "c1": (16,),
}


def build(lines: str, inputs: str = IMAGE, output: str = MAP) -> Graph:
    """A graph from the text form of ONNX; weights are normal and keep the size of what they multiply."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({output}) {{ {lines} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])
        if name in lines:
            array = np.asarray(values, np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    if "tiny" in lines:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.01, np.float32), "tiny"))
    if "axes" in lines:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "axes"))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return infer_shapes(Graph(ir.from_proto(model)))


def samples(graph: Graph, count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [
        {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in graph.inputs}
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Made:
    """A quantized network, its file and samples for it."""

    graph: Graph
    package: Package
    feeds: Sequence[Mapping[str, Array]]
    mixed: bool

    def compare(self, **options: Any) -> RuntimeParity:
        return compare_runtimes(
            self.package.path, self.graph, self.feeds, dialect=Dialect(mixed=self.mixed), **options
        )

    def errors(self) -> dict[str, float]:
        """Largest difference of LiteRT's reference kernels from ONNX Runtime, in steps of each output."""
        runner = open_package(self.package.path, kernels=Kernels.REFERENCE)
        exact = open_runner(self.graph, threads=1, optimize=False)
        steps = {entry.name: entry.scale for entry in self.package.io.outputs}
        found: dict[str, float] = {}
        for feed in self.feeds:
            ours, theirs = runner.run(feed), exact.run(feed)
            for name, value in ours.items():
                off = float(np.abs(value - theirs[name]).max()) / (steps[name] or 1.0)
                found[name] = max(found.get(name, 0.0), off)
        return found


Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(graph: Graph, target: str = "litert", raised: Sequence[str] = (), mixed: bool = False) -> Made:
        scheme = load_target(target).scheme
        assert scheme is not None
        feeds = samples(graph)
        plan = make_plan(graph, scheme, raised=raised)
        seen = observe(graph, unknown_ranges(graph, scheme, plan, {}), feeds, threads=1)
        params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX))
        quantized = insert_qdq(graph, plan, params, scheme)
        return Made(
            quantized, write_package(quantized, "net", tmp_path, dialect=Dialect(mixed=mixed)), feeds, mixed
        )

    return made


def worst(rows: Sequence[CodeDifference]) -> int:
    return max(row.max_steps for row in rows)


def rewritten(made: Made, changed: Callable[[TfliteModel], TfliteModel]) -> None:
    """Another content of the file, by way of the reader and the writer."""
    from edgekit.tflite.read import read_model
    from edgekit.tflite.write import write_model

    path = made.package.path
    path.write_bytes(write_model(changed(read_model(path.read_bytes()))))


# Networks of integers alone


@pytest.mark.parametrize("target", ["litert", "ethos-u", "tflm"])
def test_the_integer_reference_computes_the_codes_of_litert(make: Make, target: str) -> None:
    found = make(build(CONVS), target).compare()
    assert found.ok
    assert found.samples == 4
    assert found.reference == "LiteRT, reference kernels"
    assert [row.tensor for row in found.outputs[INTEGER]] == ["y"]
    assert worst(found.outputs[INTEGER]) == worst(found.layers[INTEGER]) == 0
    assert {"x", "b", "c", "d", "y"} <= {row.tensor for row in found.layers[INTEGER]}
    assert all(row.different == row.rms_steps == 0 for row in found.layers[INTEGER])


def test_other_kernels_round_differently_and_stay_in_the_budget(make: Make) -> None:
    found = make(build(CONVS)).compare()
    for runtime in (XNNPACK, ONNX):
        assert [row.tensor for row in found.outputs[runtime]] == ["y"]
        assert worst(found.outputs[runtime]) <= found.budget_steps == 2
    ops = {row.tensor: row.op for row in found.layers[ONNX]}
    assert (ops["b"], ops["c"], ops["y"]) == ("CONV_2D", "MAX_POOL_2D", "CONV_2D")
    # Feeds are rounded half to even on both sides.
    assert next(row for row in found.layers[ONNX] if row.tensor == "x").different == 0


def test_every_output_is_compared_in_every_runtime(make: Make) -> None:
    """A classifier: its Gemm writes [1, 1, 1, 6], which a RESHAPE brings into the shape of the output."""
    found = make(build(CLASSES, output="float[1,6] y")).compare()
    assert {runtime: [row.tensor for row in rows] for runtime, rows in found.outputs.items()} == {
        INTEGER: ["y"],
        XNNPACK: ["y"],
        ONNX: ["y"],
    }


def test_a_classifier_is_exact_in_the_integer_reference(make: Make) -> None:
    made = make(build(CLASSES, output="float[1,6] y"))
    found = made.compare()
    assert worst(found.outputs[INTEGER]) == worst(found.layers[INTEGER]) == 0
    # A code of the small range behind the mean that falls on the other side counts several times.
    assert made.errors()["y"] <= 4.01


# A file that computes something else


def other_weight(model: TfliteModel, layer: int = 0, by: int = 90) -> TfliteModel:
    """One weight of a convolution, changed by so many steps."""
    conv = [operator for operator in model.operators if operator.op == "CONV_2D"][layer]
    tensor = model.tensors[str(conv.inputs[1])]
    assert tensor.data is not None
    data = tensor.data.copy()
    place = np.unravel_index(int(np.abs(data.astype(int)).argmin()), data.shape)
    data[place] += by
    return replace(model, tensors={**model.tensors, tensor.name: replace(tensor, data=data)})


def test_one_wrong_weight_is_found_and_located(make: Make) -> None:
    made = make(build(CONVS))
    rewritten(made, lambda model: other_weight(model, layer=1))
    found = made.compare()
    assert not found.ok
    # The graph says something else than the file, in whatever kernels the file runs.
    assert worst(found.outputs[INTEGER]) > found.budget_steps
    assert worst(found.outputs[ONNX]) > found.budget_steps
    assert worst(found.outputs[XNNPACK]) <= found.budget_steps
    off = {row.tensor: row.max_steps for row in found.layers[INTEGER]}
    assert off["x"] == off["b"] == off["c"] == 0
    assert off["d"] > 2
    assert 0 < next(row for row in found.layers[INTEGER] if row.tensor == "d").different < 0.5


def test_the_last_layer_counts_too(make: Make) -> None:
    made = make(build(CONVS))
    rewritten(made, lambda model: other_weight(model, layer=3))
    found = made.compare()
    assert not found.ok
    (row,) = found.outputs[INTEGER]
    assert 0 < row.different <= 1 / 16, "one of 16 channels"
    assert row.rms_steps < row.max_steps


def test_rewriting_changes_nothing_by_itself(make: Make) -> None:
    made = make(build(CONVS))
    before = made.compare()
    rewritten(made, lambda model: model)
    assert made.compare() == before


def test_the_budget_is_what_is_asked_for(make: Make) -> None:
    made = make(build(CONVS))
    rewritten(made, lambda model: other_weight(model, layer=3))
    largest = worst(made.compare().outputs[INTEGER])
    assert made.compare(budget_steps=max(largest, worst(made.compare().outputs[ONNX]))).ok
    assert not made.compare(budget_steps=largest - 1).ok


@pytest.mark.parametrize(("steps", "ok"), [((0, 2), True), ((3, 0), False), ((0, 3), False), ((), True)])
def test_one_output_beyond_the_budget_is_enough(steps: tuple[int, ...], ok: bool) -> None:
    rows = tuple(CodeDifference(f"y{i}", "", 0.5, 1.0, step) for i, step in enumerate(steps))
    assert RuntimeParity("r", 2, 1, {"a": (), "b": rows}, {"a": (CodeDifference("z", "", 1, 9, 9),)}).ok is ok


def test_a_file_that_is_no_package_is_refused(make: Make) -> None:
    made = make(build(CONVS))
    rewritten(made, lambda model: replace(model, metadata={}))
    with pytest.raises(ModelError, match=r"edgekit\.io"):
        made.compare()
    made.package.path.unlink()
    with pytest.raises(ModelError, match=r"net\.tflite"):
        made.compare()


# Nodes that are computed as one


TOKENS = "float[1,10,12] x"


def test_a_matmul_with_its_bias_is_one_fully_connected(make: Make) -> None:
    lines = "a = MatMul(x, m1) b = Add(a, c1) y = MatMul(b, m2)"
    made = make(build(lines, TOKENS, "float[1,10,8] y"))
    counts = made.package.model.counts()
    assert counts["FULLY_CONNECTED"] == 2
    assert "ADD" not in counts
    assert "BATCH_MATMUL" not in counts
    first = next(op for op in made.package.model.operators if op.op == "FULLY_CONNECTED")
    bias = made.package.model.tensors[str(first.inputs[2])]
    assert bias.data is not None
    assert bias.data.shape == (16,)
    assert np.count_nonzero(bias.data) > 10
    assert made.errors()["y"] <= 2.01
    found = made.compare()
    assert worst(found.outputs[INTEGER]) == worst(found.layers[INTEGER]) == 0


@pytest.mark.parametrize("mixed", [False, True])
def test_a_matmul_with_bias_and_relu_stays_on_integers(make: Make, mixed: bool) -> None:
    lines = "a = MatMul(x, m1) b = Add(a, c1) c = Relu(b) y = MatMul(c, m2)"
    made = make(build(lines, TOKENS, "float[1,10,8] y"), mixed=mixed)
    assert not {"DEQUANTIZE", "QUANTIZE"} & set(made.package.model.counts())
    assert {t.dtype.value for t in made.package.model.tensors.values()} <= {"int8", "int32"}
    assert made.errors()["y"] <= 2.01


def test_an_addition_that_is_no_bias_stays_one(make: Make) -> None:
    lines = "a = MatMul(x, m1) b = Add(a, a) y = MatMul(b, m2)"
    made = make(build(lines, TOKENS, "float[1,10,8] y"))
    assert made.package.model.counts()["ADD"] == 1
    assert made.errors()["y"] <= 2.01


@pytest.mark.parametrize("target", ["litert", "ethos-u"])
def test_a_reciprocal_square_root_is_one_operator(make: Make, target: str) -> None:
    norm = "q = Mul(b, b) m = ReduceMean(q, axes) e = Add(m, tiny) s = Sqrt(e) r = Reciprocal(s)"
    lines = f"b = MatMul(x, m1) {norm} n = Mul(b, r) y = MatMul(n, m2)"
    made = make(build(lines, TOKENS, "float[1,10,8] y"), target)
    counts = made.package.model.counts()
    assert counts["RSQRT"] == 1
    assert not {"SQRT", "DIV"} & set(counts)
    found = made.compare()
    assert worst(found.outputs[INTEGER]) == worst(found.layers[INTEGER]) == 0
    # One step of the root moves the whole row; what is asked is that both runtimes mean the same function.
    assert made.errors()["y"] <= 3.01
    assert {"r", "n"} <= {row.tensor for row in found.layers[ONNX]}
    assert next(row for row in found.layers[ONNX] if row.tensor == "r").max_steps <= 2


# Networks that compute in more than one format


def test_a_float_island_is_compared_as_well(make: Make) -> None:
    made = make(build(CONVS), raised=["d"], mixed=True)
    assert made.package.model.counts()["DEQUANTIZE"] >= 1
    found = made.compare()
    assert found.ok
    assert [row.tensor for row in found.outputs[INTEGER]] == ["y"]
    # Float sums are taken in another order: a code may fall on the other side, no more.
    assert worst(found.outputs[INTEGER]) <= 1
    assert "d" not in {row.tensor for row in found.layers[INTEGER]}, "it has no codes"
    rewritten(made, lambda model: other_weight(model, layer=0))
    assert not made.compare().ok


def test_an_output_without_codes_is_not_compared_as_if_it_had_some(make: Make) -> None:
    """``d`` is float and is read by the float end too, so that the file returns it."""
    made = make(build(f"{CONVS} z = Sigmoid(d)", output=f"{MAP}, float[e,f,g,h] z"), raised=["d"], mixed=True)
    assert {entry.name: entry.scale for entry in made.package.io.outputs}["d"] is None

    def shifted(model: TfliteModel) -> TfliteModel:
        bias = next(t for t in model.tensors.values() if t.name == "Conv_d/bias")
        assert bias.data is not None
        return replace(model, tensors={**model.tensors, bias.name: replace(bias, data=bias.data + 0.02)})

    rewritten(made, shifted)
    rows = {row.tensor: row for row in made.compare().outputs[INTEGER]}
    assert "d" not in rows or rows["d"].different == 1


def test_sixteen_bits_within_eight_are_exact(make: Make) -> None:
    made = make(build(CONVS), "ethos-u", raised=["d"])
    assert {"int8", "int16"} <= {t.dtype.value for t in made.package.model.tensors.values()}
    found = made.compare()
    assert found.ok
    assert worst(found.outputs[INTEGER]) == worst(found.layers[INTEGER]) == 0
    assert "d" in {row.tensor for row in found.layers[ONNX]}
    assert made.errors()["y"] <= 2.01


def test_an_output_of_sixteen_bits_has_a_budget_that_fits_it(make: Make) -> None:
    """One step of 8 bits before the output is 256 of its own; both runtimes are right."""
    made = make(build(CONVS), "ethos-u", raised=["d", "e", "y"])
    assert made.package.io.outputs[0].dtype.value == "int16"
    assert made.errors()["y"] <= 256
    assert made.compare().ok
