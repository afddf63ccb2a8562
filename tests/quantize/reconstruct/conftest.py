"""Small networks that are quantized as calibration leaves them, for the tests of reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgekit.graph import Graph
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.observe import observe
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.qdq import all_weight_scales, insert_qdq
from edgekit.quantize.qparams import QParams
from edgekit.quantize.ranges import RangeOptions, choose_params, unknown_ranges
from edgekit.quantize.reconstruct.network import Network
from edgekit.quantize.reconstruct.options import Reconstruction, ReconstructOptions
from edgekit.quantize.reconstruct.run import reconstruct
from edgekit.quantize.scheme import Scheme
from edgekit.session import open_runner

Array = np.ndarray[Any, Any]
Feeds = Sequence[Mapping[str, Array]]

NETS = {
    "relu": "a = Conv(x, w1, b1) r = Relu(a) y = Conv <pads=[1,1,1,1]> (r, w3, b2)",
    "depthwise": """a = Conv(x, w1, b1) r = Relu(a) d = Conv <group=8, pads=[1,1,1,1]> (r, wd, b1)
                    e = Relu(d) y = Conv(e, w2, b2)""",
    "residual": """a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w8, b1) e = Relu(c)
                   g = Conv <pads=[1,1,1,1]> (e, w9, b1) s = Add(g, r) y = Conv(s, w2, b2)""",
    "silu": "a = Conv(x, w1, b1) i = Sigmoid(a) r = Mul(a, i) y = Conv(r, w2, b2)",
    "no bias": "a = Conv(x, w1) r = Relu(a) y = Conv(r, w2)",
    "two": "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2, b2) z = Conv(r, w8, b1)",
    "gemm": "a = Conv(x, w1, b1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, wg, b2)",
}
OUTPUTS = {"gemm": "float[1,16] y", "two": "float[1,16,6,6] y, float[1,8,6,6] z"}
ATTENTION = """
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    t = Transpose <perm=[0,2,1]> (k) s = MatMul(q, t) m = Mul(s, part) p = Softmax <axis=-1> (m)
    o = MatMul(p, v) h = MatMul(o, wo) u = Add(h, x) y = MatMul(u, wz)
"""
SHAPES = {
    "w1": (8, 3, 1, 1), "b1": (8,), "w2": (16, 8, 1, 1), "b2": (16,), "w3": (16, 8, 3, 3), "wd": (8, 1, 3, 3),
    "w8": (8, 8, 1, 1), "w9": (8, 8, 3, 3), "wg": (8, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 16),
    "wo": (16, 16), "wz": (16, 8),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A float network, and how it is quantized."""

    graph: Graph
    scheme: Scheme
    plan: Plan
    params: dict[str, QParams]
    scales: dict[str, Array]
    feeds: Feeds
    unseen: Feeds

    def reconstruct(self, options: ReconstructOptions, **more: Any) -> Reconstruction:
        return reconstruct(
            self.graph,
            self.plan,
            self.params,
            self.scheme,
            self.scales,
            lambda: iter(self.feeds),
            options,
            **more,
        )

    def network(self, options: ReconstructOptions) -> Network:
        """As it is before any block has been reconstructed."""
        return Network.start(self.graph, self.plan, self.params, self.scheme, self.scales, options)

    def nearest(self) -> Graph:
        return insert_qdq(self.graph, self.plan, self.params, self.scheme, self.scales)

    def noise(self, quantized: Graph) -> float:
        """Error over signal of the outputs on unseen samples."""
        goal, found = (open_runner(g, threads=1, optimize=False) for g in (self.graph, quantized))
        error = signal = 0.0
        for feed in self.unseen:
            wanted, given = goal.run(feed), found.run(feed)
            error += sum(float(((given[k] - wanted[k]) ** 2).sum()) for k in wanted)
            signal += sum(float((wanted[k] ** 2).sum()) for k in wanted)
        return error / signal


@pytest.fixture(scope="session")
def case(build: Callable[..., Graph], scheme: Scheme) -> Callable[..., Case]:
    """A network by its name in ``NETS`` or "attention": ``case(name, count=…, scheme=…)``."""

    def make(name: str, *, count: int = 40, using: Scheme | None = None) -> Case:
        random = np.random.default_rng(3)
        text = ATTENTION if name == "attention" else NETS[name]
        constants: dict[str, Any] = {}
        for key, shape in SHAPES.items():
            fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
            constants[key] = random.standard_normal(shape) / (np.sqrt(fan_in) if len(shape) > 1 else 10)
        constants["part"] = np.float32(0.25)
        used = {k: v for k, v in constants.items() if k in text.replace(",", " ").replace(")", " ").split()}
        head = "float[1,10,16] x" if name == "attention" else "float[1,3,6,6] x"
        tail = "float[1,10,8] y" if name == "attention" else OUTPUTS.get(name, "float[1,16,6,6] y")
        graph = build(f"g ({head}) => ({tail}) {{ {text} }}", used)
        feeds = _feeds(graph, count + 16)
        return _quantized(graph, using or scheme, feeds[:count], feeds[count:])

    return make


def _feeds(graph: Graph, count: int) -> Feeds:
    """Samples whose channels depend on each other, as those of images do."""
    random = np.random.default_rng(5)
    (spec,) = graph.inputs
    base = random.standard_normal((count, *spec.shape))
    return [{spec.name: (b + b.mean(1, keepdims=True) * 2).astype(np.float32)} for b in base]


def _quantized(graph: Graph, scheme: Scheme, feeds: Feeds, unseen: Feeds) -> Case:
    plan = make_plan(graph, scheme)
    calibration = observe(graph, unknown_ranges(graph, scheme, plan, ()), feeds, threads=1)
    params = choose_params(graph, plan, scheme, calibration, RangeOptions(Calibrator.MINMAX))
    return Case(graph, scheme, plan, params, all_weight_scales(graph, scheme), feeds, unseen)
