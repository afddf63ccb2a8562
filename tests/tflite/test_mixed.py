"""Networks that compute in integers and, in places, in float: cut, lowered and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.tflite.dialect import Dialect
from edgekit.tflite.interpreter import Kernels
from edgekit.tflite.lower.lower import lower
from edgekit.tflite.lower.refuse import RefusedNodesError
from edgekit.tflite.model import TfliteModel
from edgekit.tflite.package import open_package, write_package
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.split import split

pytest.importorskip("ai_edge_litert")

Array = np.ndarray[Any, Any]
PADDED = "Conv <pads=[1,1,1,1]>"
CHAIN = f"""a = {PADDED} (x, w1) ar = Relu(a) b = {PADDED} (ar, w2) br = Relu(b) c = {PADDED} (br, w3)
    cr = Relu(c) y = Conv(cr, w4)"""
#: A layer normalization as ``prepare`` writes it.
NORM = """h = MatMul(x, m1) m = ReduceMean(h, last) d = Sub(h, m) q = Mul(d, d) v = ReduceMean(q, last)
    e = Add(v, tiny) s = Sqrt(e) r = Reciprocal(s) n = Mul(d, r) t = MatMul(n, m2) u = Relu(t)
    y = MatMul(u, m3)"""
SHAPES: dict[str, tuple[int, ...]] = {
    "w1": (8, 3, 3, 3),
    "w2": (8, 8, 3, 3),
    "w3": (8, 8, 3, 3),
    "w4": (12, 8, 1, 1),
}
SHAPES |= {"m1": (16, 16), "m2": (16, 16), "m3": (16, 16)}
INPUTS = "float[1,3,8,8] x"


def build(lines: str, inputs: str = INPUTS, outputs: str = "float[a,b,c,d] y") -> Graph:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {lines} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]) / 2)
        if name in lines:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    numbers = {"last": np.array([-1]), "three": np.array([3]), "tiny": np.array(1e-5, np.float32)}
    for name, value in numbers.items():
        if name in lines:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return infer_shapes(Graph(ir.from_proto(model)))


def samples(graph: Graph) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{s.name: rng.normal(size=s.shape).astype(np.float32) for s in graph.inputs} for _ in range(4)]


def quantized(graph: Graph, raised: Sequence[str], target: str = "litert") -> Graph:
    scheme = load_target(target).scheme
    assert scheme is not None
    plan = make_plan(graph, scheme, raised=raised)
    seen = observe(graph, unknown_ranges(graph, scheme, plan, {}), samples(graph), threads=1)
    params = choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX))
    return insert_qdq(graph, plan, params, scheme)


@dataclass(frozen=True)
class Ran:
    """A mixed network, and how far it is from the QDQ graph in ONNX Runtime.

    Attributes:
        model: The model in the file.
        steps: Largest difference, in steps of each output that has codes; of the others as it is.
        front: Operators in the ONNX file before it.
        decoder: Operators in the ONNX file behind it.
    """

    model: TfliteModel
    steps: dict[str, float]
    front: set[str]
    decoder: set[str]

    def ops(self, dtype: str) -> list[str]:
        """Operators whose first output is of a type, in order."""
        return [
            op.op for op in self.model.operators if self.model.tensors[op.outputs[0]].dtype.value == dtype
        ]


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def ran(graph: Graph, kernels: Kernels = Kernels.REFERENCE) -> Ran:
        package = write_package(graph, "net", tmp_path, dialect=Dialect(mixed=True))
        runner = open_package(package.path, kernels=kernels)
        exact = open_runner(graph, threads=1, optimize=False)
        steps = {entry.name: entry.scale for entry in package.io.outputs}
        found: dict[str, float] = {}
        for feed in samples(graph):
            ours, theirs = runner.run(feed), exact.run(feed)
            assert list(ours) == [spec.name for spec in graph.outputs]
            for name, value in ours.items():
                off = float(np.abs(value - theirs[name]).max()) / (steps.get(name) or 1.0)
                found[name] = max(found.get(name, 0.0), off)
                assert np.abs(theirs[name]).max() > 20 * (steps.get(name) or 0.0), "nothing was compared"
        parts = split(graph, mixed=True)
        ends = [
            {n.op_type for n in p.nodes} if p is not None else set() for p in (parts.front, parts.decoder)
        ]
        return Ran(package.model, found, *ends)

    return ran


@pytest.mark.parametrize("kernels", [Kernels.REFERENCE, Kernels.XNNPACK])
def test_an_island_in_the_middle(run: Run, kernels: Kernels) -> None:
    found = run(quantized(build(CHAIN), raised=["br"]), kernels)
    assert found.steps["y"] <= 2.01
    # Two convolutions in float; the ReLU is one with its convolution there too.
    assert found.ops("float32") == ["DEQUANTIZE", "CONV_2D", "CONV_2D"]
    assert found.ops("int8") == ["CONV_2D", "QUANTIZE", "CONV_2D"]
    assert (found.front, found.decoder) == (set(), set())


def test_an_island_at_the_start_takes_float_and_needs_no_front(run: Run) -> None:
    graph = quantized(build(CHAIN), raised=["x"])
    found = run(graph)
    assert found.steps["y"] <= 2.01
    (entry,) = found.model.inputs.values()
    assert found.model.tensors[entry].dtype.value == "float32"
    assert found.ops("float32") == ["CONV_2D"]
    assert found.front == set()


def test_operators_of_an_island_that_no_scheme_has_are_refused_by_name(tmp_path: Path) -> None:
    """Sin has no rule in any scheme and none of its own in the lowering."""
    lines = CHAIN.replace("Conv <pads=[1,1,1,1]> (br, w3)", "Conv <pads=[1,1,1,1]> (bs, w3)")
    lines = lines.replace("c = ", "bs = Sin(br) c = ", 1)
    graph = quantized(build(lines), raised=[])
    with pytest.raises(RefusedNodesError) as caught:
        write_package(graph, "net", tmp_path, dialect=Dialect(mixed=True))
    assert [(node.op, node.node) for node in caught.value.nodes] == [("Sin", "Sin_bs")]
    assert all(node.rule and node.remedy for node in caught.value.nodes)
    assert list(tmp_path.iterdir()) == []


def test_what_tflite_lacks_at_the_start_goes_before_the_file(run: Run) -> None:
    lines = CHAIN.replace("(x, w1)", "(xs, w1)").replace("a = ", "xs = Sin(x) a = ", 1)
    found = run(quantized(build(lines), raised=["xs"]))
    assert found.steps["y"] <= 2.01
    assert found.front == {"Sin"}
    assert found.ops("float32") == ["CONV_2D"]


@pytest.mark.parametrize("raised", [["ar"], ["br"], ["cr"], ["ar", "cr"], ["ar", "br", "cr"], ["x", "ar"]])
def test_islands_anywhere(run: Run, raised: list[str]) -> None:
    found = run(quantized(build(CHAIN), raised=raised))
    assert found.steps["y"] <= 2.01
    assert (found.decoder == {"Conv", "Relu"}) is (raised == ["cr"]), "nothing is quantized behind it"
    if {"ar", "cr"} <= set(raised):
        assert found.ops("int8") == [], "every node has a raised neighbour"


def test_an_island_with_two_ways_out(run: Run) -> None:
    """A residual block: the raised sum is read by a convolution and by the next sum."""
    lines = f"""a = {PADDED} (x, w1) b = {PADDED} (a, w2) s = Add(a, b) c = {PADDED} (s, w3) t = Add(s, c)
        y = Conv(t, w4)"""
    found = run(quantized(build(lines), raised=["s"]))
    assert found.steps["y"] <= 2.01
    assert {"ADD", "CONV_2D", "DEQUANTIZE"} <= set(found.ops("float32"))
    found = run(quantized(build(lines), raised=["a", "s", "t"]))
    assert found.steps["y"] <= 1e-4, "all float but the inputs"


@pytest.mark.parametrize("raised", [["q"], ["s"], ["r"], ["d", "q", "v", "e"]])
def test_a_normalization_as_an_island(run: Run, raised: list[str]) -> None:
    """The root and its reciprocal are one operator in float as well, wherever the raised tensor is."""
    found = run(quantized(build(NORM, "float[1,6,16] x", "float[1,6,16] y"), raised=raised))
    assert found.steps["y"] <= 3.01
    assert [op.op for op in found.model.operators].count("RSQRT") == 1
    assert not {"SQRT", "DIV"} & {op.op for op in found.model.operators}
    assert (found.front, found.decoder) == (set(), set())


def test_an_island_whose_result_also_leaves_the_network(run: Run) -> None:
    """``br`` is read by an integer convolution and by the float end."""
    lines = f"{CHAIN} z = Sigmoid(br)"
    graph = build(lines, outputs="float[a,b,c,d] y, float[e,f,g,h] z")
    found = run(quantized(graph, raised=["br"]))
    assert found.steps["y"] <= 2.01
    assert found.steps["z"] <= 0.02
    assert "Sigmoid" in found.decoder


def test_the_integer_reference_runs_islands_too() -> None:
    from edgekit.tflite.interpreter import LiteRt
    from edgekit.tflite.write import write_model

    graph = build(CHAIN)
    model = lower(split(quantized(graph, raised=["br"]), mixed=True).body).model
    codes = np.random.default_rng(2).integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
    (name,), (out,) = model.inputs, model.outputs
    ours = Reference(model).run({name: codes})[out]
    theirs = LiteRt(write_model(model), Kernels.REFERENCE).run({name: codes})[out]
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert np.ptp(theirs.astype(int)) > 100


def test_without_mixed_an_island_is_refused_with_every_name(tmp_path: Path) -> None:
    graph = quantized(build(CHAIN), raised=["br"])
    with pytest.raises(RefusedNodesError) as caught:
        write_package(graph, "net", tmp_path)
    assert {(node.op, node.node) for node in caught.value.nodes} == {("Conv", "Conv_b"), ("Conv", "Conv_c")}
    text = str(caught.value)
    assert "Conv_b" in text
    assert "Conv_c" in text
    assert all(node.rule and node.remedy for node in caught.value.nodes)
    assert list(tmp_path.iterdir()) == []


def test_without_islands_mixed_changes_nothing(tmp_path: Path) -> None:
    graph = quantized(build(CHAIN), raised=[])
    plain = write_package(graph, "plain", tmp_path)
    mixed = write_package(graph, "mixed", tmp_path, dialect=Dialect(mixed=True))
    assert plain.path.read_bytes() == mixed.path.read_bytes()
    assert plain.model.counts() == {"CONV_2D": 4}


@pytest.mark.parametrize("target", ["ethos-u", "tflm"])
@pytest.mark.parametrize("raised", [["br"], ["x"], ["ar", "br", "cr"]])
def test_targets_that_raise_to_integers_have_no_islands(
    tmp_path: Path, target: str, raised: list[str]
) -> None:
    graph = quantized(build(CHAIN), raised, target)
    package = write_package(graph, "net", tmp_path)
    kinds = {t.dtype.value for t in package.model.tensors.values()}
    assert "float32" not in kinds
    assert "int16" in kinds
    runner = open_package(package.path, kernels=Kernels.REFERENCE)
    exact = open_runner(graph, threads=1, optimize=False)
    scale = package.io.outputs[0].scale
    assert scale is not None
    step = scale * (256 if package.io.outputs[0].dtype.value == "int16" else 1)
    for feed in samples(graph):
        off = np.abs(runner.run(feed)["y"] - exact.run(feed)["y"]).max()
        assert off <= 2.01 * step


def test_the_litert_target_writes_islands_and_says_which_nodes_they_are(tmp_path: Path) -> None:
    target = load_target("litert")
    graph = quantized(build(CHAIN), raised=["br"])
    artifact = target.compile(target.lower(graph), "int8", tmp_path)
    placed = target.placement(artifact.path)
    assert placed.integer_nodes == 2
    assert {left.op for left in placed.left} == {"CONV_2D"}
    assert placed.float_nodes == len(placed.left) == 2
    assert placed.conversions == 2
    assert all(left.reason for left in placed.left)


@pytest.mark.parametrize(
    "name",
    [
        "litert:host-1t",
        "ethos-u:u55-128",
        "tflm",
    ],
)
def test_a_float_end_that_tflite_lacks_is_no_obstacle(tmp_path: Path, name: str) -> None:
    """TopK runs in ONNX Runtime behind the int8 file, and must not keep the float one from being written."""
    pytest.importorskip({"e": "ethosu", "t": "tflite_micro", "l": "ai_edge_litert"}[name[0]])
    target = load_target(name)
    lines = f"{CHAIN.replace('y =', 'z =')} f = Flatten(z) y, i = TopK <axis=1> (f, three)"
    graph = build(lines, outputs="float[1,3] y, int64[1,3] i")
    for kind, made in (("int8", quantized(graph, [], name)), ("float", graph)):
        artifact = target.compile(target.lower(made), kind, tmp_path)
        found = target.open(artifact.path).run(samples(graph)[0])
        expected = open_runner(made, threads=1, optimize=False).run(samples(graph)[0])
        assert list(found) == ["y", "i"]
        np.testing.assert_allclose(found["y"], expected["y"], atol=0.02 * float(np.abs(expected["y"]).max()))
