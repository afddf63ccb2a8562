"""The float network before quantization: what HTP refuses is gone, and the outputs are the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgekit
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.verify import max_difference
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import make_plan
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.registry import load_target
from edgekit.session import open_runner
from edgekit.targets.qnn_htp.prepare import FORMATS, prepare
from edgekit.targets.qnn_htp.rules import check

#: SM8650 and SM8550, v75 and v73.
SOC, OLDER = 57, 43
Feeds = dict[str, np.ndarray[Any, Any]]
IMAGE, TOKENS = "float[1,8,8,8] x", "float[1,6,16] x"
MEAN = "m = ReduceMean(h, last) d = Sub(h, m) q = Pow(d, two) v = ReduceMean(q, last) e = Add(v, epsilon)"
#: Bodies from ``h`` to ``t``, between two layers.
TOKEN_OPS = {
    "gelu": "e = Div(h, root2) f = Erf(e) p = Add(f, one) m = Mul(h, p) t = Mul(m, half)",
    "layer norm": f"{MEAN} s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) t = Add(g, beta)",
    "layer norm of all": "t = LayerNormalization <axis=1> (h, gammas, betas)",
    "rms norm": (
        "q = Mul(h, h) v = ReduceMean(q, last) e = Add(v, epsilon) s = Sqrt(e) n = Div(h, s)"
        " t = Mul(n, gamma)"
    ),
    "l2 norm": "n = ReduceL2(h, last) c = Clip(n, tiny) t = Div(h, c)",
    "cumsum": "t = CumSum(h, first)",
    "einsum": 't = Einsum <equation="btd,bsd->tbs"> (h, h)',
    "mean": "a = Relu(h) t = Mean(h, a, x)",
    "reciprocal": "a = Sigmoid(h) e = Add(a, one) t = Reciprocal(e)",
}
IMAGE_OPS = {
    "dilated pool": "t = MaxPool <kernel_shape=[3,3], dilations=[2,2], pads=[2,2,2,2]> (h)",
    "rounded pool": "t = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (h)",
    "group norm": "t = GroupNormalization <num_groups=2> (h, gamma8, beta8)",
    "mish": "t = Mish(h)",
    "softsign": "t = Softsign(h)",
    "celu": "t = Celu <alpha=1.5> (h)",
    "selu": "t = Selu(h)",
    "thresholded": "t = ThresholdedRelu <alpha=0.3> (h)",
    "prelu": "t = PRelu(h, slopes)",
    "cubes": "t = Pow(h, three)",
    "resize": (
        'r = Resize <coordinate_transformation_mode="half_pixel", nearest_mode="floor"> (h, , scales)'
        " t = Relu(r)"
    ),
    "shuffle": "r = Reshape(h, six) p = Transpose <perm=[0,1,4,2,5,3]> (r) t = Reshape(p, four)",
    "grouped": "t = ConvTranspose <group=2> (h, transposed)",
    "l1": "n = ReduceL1(h, first) t = Div(h, n)",
    "learned bins": "p = Softmax <axis=1> (h) t = Conv(p, bins)",
}
#: The layer behind, where it is not of 16 or 8 channels.
BEHIND = {"einsum": "m3", "shuffle": "w3", "grouped": "w4", "learned bins": "w5"}
BODIES = {
    **{
        n: (TOKENS, f"h = MatMul(x, m1) {b} y = MatMul(t, {BEHIND.get(n, 'm2')})")
        for n, b in TOKEN_OPS.items()
    },
    **{n: (IMAGE, f"h = Conv(x, w1) {b} y = Conv(t, {BEHIND.get(n, 'w2')})") for n, b in IMAGE_OPS.items()},
    "gemm": ("float[6,16] x", "h = Gemm <alpha=0.5, beta=2.0> (x, m1, beta) y = Gemm <transA=1> (h, m3)"),
    "weights first": ("float[16,6] x", "h = MatMul(m1, x) y = Relu(h)"),
}
#: Those of them that HTP refuses, or computes in float, as they are.
REFUSED = (
    *("gelu", "layer norm of all", "einsum", "mean", "dilated pool", "group norm", "mish"),
    *("softsign", "celu", "selu", "thresholded", "l1", "gemm"),
)
#: Those that it takes and computes wrongly.
WRONG = ("cumsum", "rounded pool", "resize", "grouped")
#: Least signal-to-noise ratio of a network of this size, in dB.
FLOOR = {"a8w8": 28, "a16w8": 38}
NUMBERS = {"half": 0.5, "one": 1, "two": 2, "three": 3, "root2": 2**0.5, "epsilon": 1e-5, "tiny": 1e-12}
#: No layer has so few weights that it would count as arithmetic behind the network.
SHAPES = {
    "m1": (16, 16), "m2": (16, 16), "m3": (6, 16), "gamma": (16,), "beta": (16,), "gammas": (6, 16),
    "w1": (8, 8, 3, 3), "w2": (6, 8, 1, 1), "w3": (20, 2, 1, 1), "w4": (12, 4, 1, 1), "betas": (6, 16),
    "gamma8": (8,), "beta8": (8,), "slopes": (8, 1, 1), "transposed": (8, 2, 2, 2),
    "bins": (1, 8, 1, 1), "w5": (40, 1, 1, 1),
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "last": [-1],
    "first": 1,
    "six": [1, 2, 2, 2, 6, 6],
    "four": [1, 2, 12, 12],
    "scales": [1.0, 1.0, 2.0, 2.0],
}


def build(inputs: str, body: str) -> Graph:
    """A captured network from the text form of ONNX."""
    rng = np.random.default_rng(0)
    rank = inputs.count(",") + 1
    output = f"float[{','.join('abcd'[:rank])}] y"
    # ONNX does not infer the shape behind a GroupNormalization; exporters state it.
    known = "<float[1,8,6,6] t>" if "GroupNorm" in body else ""
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    model = onnx.parser.parse_model(f"{header} g ({inputs}) => ({output}) {known} {{ {body} }}")
    arrays: dict[str, Any] = {name: np.float32(value) for name, value in NUMBERS.items()}
    arrays |= {name: (rng.normal(size=s) / 3).astype(np.float32) for name, s in SHAPES.items()}
    arrays |= {name: np.array(v, np.float32 if name == "scales" else np.int64) for name, v in WHOLE.items()}
    arrays["first"] = np.array([1]) if "ReduceL1" in body else arrays["first"]
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & set(arrays)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(arrays[name]), name))
    return infer_shapes(name_nodes(Graph(ir.from_proto(model))))


def samples(graph: Graph) -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{s.name: rng.normal(size=s.shape).astype(np.float32) for s in graph.inputs} for _ in range(4)]


def quantized(graph: Graph, fmt: str, feeds: list[Feeds]) -> Graph:
    """The QDQ form of a prepared network by the target's scheme."""
    scheme = load_target("qnn-htp:v75" if fmt == "a8w8" else f"qnn-htp:v75-{fmt}").scheme
    assert scheme is not None
    plan = make_plan(graph, scheme)
    seen = observe(graph, unknown_ranges(graph, scheme, plan, ()), feeds, threads=1)
    return insert_qdq(
        graph, plan, choose_params(graph, plan, scheme, seen, RangeOptions(Calibrator.MINMAX)), scheme
    )


def network(name: str, fmt: str, *, rewrite: bool = True) -> bytes:
    """One of the networks, quantized."""
    graph = build(*BODIES[name])
    return quantized(prepare(graph, fmt=fmt) if rewrite else graph, fmt, samples(graph)).to_bytes()


def signal_to_noise(name: str, outputs: Any) -> float:
    """Of what HTP computes for a network, in dB."""
    graph = build(*BODIES[name])
    runner = open_runner(graph, threads=1)
    wanted = np.stack([runner.run(f)["y"] for f in samples(graph)])
    found = np.stack([o["y"] for o in outputs])
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", BODIES)
def test_outputs_stay(name: str, fmt: str) -> None:
    graph = build(*BODIES[name])
    before = graph.sha256()
    prepared = prepare(graph, fmt=fmt)
    assert graph.sha256() == before, "the graph that was given stays as it is"
    assert (prepared is graph) is ((name, fmt) == ("prelu", "a8w8"))
    assert prepared.history[: len(graph.history)] == graph.history
    assert (prepared.inputs, prepared.outputs) == (graph.inputs, graph.outputs)
    assert max(max_difference(graph, prepared, seed) for seed in range(2)) < 5e-5
    assert prepare(prepared, fmt=fmt) is prepared
    values = [v for node in prepared.nodes for v in node.outputs if v.name]
    assert all(v.shape is not None and v.shape.is_static() and v.dtype is not None for v in values)
    onnx.checker.check_model(prepared.to_proto(), full_check=True)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)",
        "a = Conv(x, w1) s = Sigmoid(a) b = Mul(a, s) y = Conv(b, w2)",
        "a = Conv(x, w1) b = MaxPool <kernel_shape=[5,5], pads=[2,2,2,2]> (a) y = Concat <axis=1> (a, b)",
        "a = Conv(x, w1) y = Softmax <axis=1> (a)",
    ],
)
def test_what_htp_takes_is_returned_as_the_very_same_object(body: str, fmt: str) -> None:
    graph = build(IMAGE, body)
    assert prepare(graph, fmt=fmt) is graph


def test_formats() -> None:
    graph = build(*BODIES["prelu"])
    ops = {fmt: {n.op_type for n in prepare(graph, fmt=fmt).nodes} for fmt in FORMATS}
    assert "PRelu" in ops["a8w8"]
    assert "PRelu" not in ops["a16w8"]
    with pytest.raises(UsageError, match="'int4'"):
        prepare(graph, fmt="int4")


@pytest.mark.parametrize("op", ["ReduceLogSum", "ReduceLogSumExp"])
def test_logarithms_of_sums_are_refused_in_16_bits(op: str) -> None:
    """They become a Log, which 16-bit kernels compute wrongly."""
    graph = build(IMAGE, f"a = Relu(x) b = Exp(a) c = {op}(b, last) y = Conv(c, w2)")
    assert [item.op for item in check(prepare(graph, fmt="a16w8"), "a16w8")] == ["Log"]
    assert check(prepare(graph), "a8w8") == ()


def test_what_has_no_integer_form_stays() -> None:
    """NonMaxSuppression and what it feeds: leaving it out would change what the network returns."""
    text = """g (float[1,8,6,6] x, float[1,36,4] boxes) => (int64[n,3] y) {
        a = Conv(x, w2) s = ReduceMax <keepdims=1> (a, axes) r = Reshape(s, shape)
        y = NonMaxSuppression(boxes, r, most) }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    arrays = {"w2": np.ones((4, 8, 1, 1), np.float32), "axes": np.array([1]), "shape": np.array([1, 1, 36])}
    for name, values in {**arrays, "most": np.array([5])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    graph = infer_shapes(name_nodes(Graph(ir.from_proto(model))))
    assert prepare(graph) is graph


@pytest.mark.parametrize("fmt", FORMATS)
def test_htp_takes_all_of_it(fmt: str) -> None:
    """Each network, quantized as the target does it, is compiled with every node on HTP in integers."""
    pytest.importorskip("onnxruntime_qnn")
    from edgekit.targets.qnn_htp.many import compile_many

    models = {name: network(name, fmt) for name in BODIES}
    trials = compile_many(models, SOC, feeds={n: samples(build(*BODIES[n])) for n in BODIES})
    problems = {n: t.error or t.float_nodes for n, t in trials.items() if not t.placed or t.float_nodes}
    assert not problems
    noise = {n: signal_to_noise(n, t.outputs) for n, t in trials.items()}
    assert {n: round(db) for n, db in noise.items() if db < FLOOR[fmt]} == {}


def test_without_it_htp_refuses_or_is_wrong() -> None:
    """What the rewrites are for: as they are, these networks do not compile, or go wrong."""
    pytest.importorskip("onnxruntime_qnn")
    from edgekit.targets.qnn_htp.many import compile_many

    models = {name: network(name, "a8w8", rewrite=False) for name in (*REFUSED, *WRONG)}
    trials = compile_many(models, SOC, feeds={n: samples(build(*BODIES[n])) for n in WRONG})
    assert [n for n in REFUSED if trials[n].placed and not trials[n].float_nodes] == []
    assert all(trials[n].placed for n in WRONG)
    assert {n for n in WRONG if signal_to_noise(n, trials[n].outputs) > FLOOR["a8w8"]} == set()


WORDS, LENGTH, WIDTH, HEADS, LAYERS = 120, 16, 32, 2, 2


def sentence(seed: int) -> Feeds:
    """Random words in a sentence of random length."""
    random = np.random.default_rng(seed)
    kept = (np.arange(LENGTH) < random.integers(4, LENGTH + 1)).astype(np.int64)[None]
    return {"input_ids": random.integers(0, WORDS, (1, LENGTH)) * kept, "attention_mask": kept}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A BERT of two layers as PyTorch exports it, captured."""
    import torch
    from torch import Tensor, nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            def heads(y: Tensor) -> Tensor:
                return y.view(1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)

            query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
            weights = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask).softmax(-1)
            x = self.norm1(x + self.out((weights @ value).transpose(1, 2).reshape(1, LENGTH, WIDTH)))
            found: Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
            return found

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.pool, self.classify = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
            self.register_buffer("ids", torch.arange(LENGTH)[None])

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            mask = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            x = self.norm(self.words(input_ids) + self.places(self.ids))
            for layer in self.layers:
                x = layer(x, mask)
            found: Tensor = self.classify(torch.tanh(self.pool(x[:, 0])))
            return found

    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    example = tuple(torch.from_numpy(v) for v in sentence(0).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns about its own modules
        torch.onnx.export(
            Encoder().eval(), example, path, input_names=list(sentence(0)), output_names=["logits"],
            dynamo=True, opset_version=21, verbose=False,
        )  # fmt: skip
    return edgekit.load(path)


def test_an_encoder_is_layers_norms_and_gelus(encoder: Graph) -> None:
    prepared = prepare(encoder)
    counts = {
        op: sum(n.op_type == op for n in prepared.nodes)
        for op in ("Gemm", "LayerNormalization", "Gelu", "Where")
    }
    assert counts == {
        "Gemm": 6 * LAYERS + 2,
        "LayerNormalization": 2 * LAYERS + 1,
        "Gelu": LAYERS,
        "Where": 1,
    }
    assert not {"Erf", "Pow", "Sub"} & {n.op_type for n in prepared.nodes}
    for seed in range(3):
        wanted, found = (open_runner(g, threads=1).run(sentence(seed))["logits"] for g in (encoder, prepared))
        assert np.abs(wanted - found).max() < 1e-5


@pytest.mark.parametrize(
    ("fmt", "soc", "floor"), [("a8w8", SOC, 20), ("a8w8", OLDER, 20), ("a16w8", SOC, 30)]
)
def test_an_encoder_runs_on_htp(encoder: Graph, fmt: str, soc: int, floor: float) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from edgekit.targets.qnn_htp.many import compile_many

    graph = quantized(prepare(encoder, fmt=fmt), fmt, [sentence(i) for i in range(12)])
    feeds = [sentence(1000 + i) for i in range(4)]
    trial = compile_many({"encoder": graph.to_bytes()}, soc, feeds={"encoder": feeds})["encoder"]
    assert trial.placed, trial.error or trial.refused
    assert trial.float_nodes == ()
    runner = open_runner(encoder, threads=1)
    wanted = np.stack([runner.run(f)["logits"] for f in feeds])
    found = np.stack([o["logits"] for o in trial.outputs])
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > floor
