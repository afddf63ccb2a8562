"""Every construct that is known to break pruning tools: prune at random, compare with the masked original."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgekit.capture import capture, clean
from edgekit.graph import Graph
from edgekit.passes.verify import max_difference
from edgekit.prune.apply import apply, verify
from edgekit.prune.groups import Groups, find_groups
from edgekit.prune.plan import PruningPlan, compose, make_plan
from edgekit.stats import count


@dataclass
class Net:
    """A graph written as ONNX text, with random weights by shape and constants by value."""

    text: str
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> Graph:
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {self.text}')
        rng = np.random.default_rng(0)
        arrays = {name: np.asarray(value, np.int64) for name, value in self.constants.items()}
        for name, shape in self.weights.items():
            fan = max(int(np.prod(shape[1:])), 1)
            values = rng.normal(size=shape) / np.sqrt(fan)
            if name.startswith(("var", "gamma")):
                values = np.abs(values) + 0.5
            arrays[name] = values.astype(np.float32)
        for name, array in arrays.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        onnx.checker.check_model(model)
        return clean(Graph(ir.from_proto(model)))


def random_plan(graph: Graph, groups: Groups, seed: int, share: float = 0.6) -> PruningPlan:
    """Prune most groups, each by a random number of random units; some down to one."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups.groups:
        if rng.random() < 0.85:
            left = 1 if rng.random() < 0.15 else max(1, round(group.size * (1 - share * rng.random())))
            keep[group.name] = rng.choice(group.size, left, replace=False).tolist()
    return make_plan(graph, groups, keep)


def check(graph: Graph, *, seeds: int = 3, heads: bool = True) -> Groups:
    """Prune and compare; prune the pruned again and compare with the composed plan."""
    groups = find_groups(graph, heads=heads)
    assert groups.groups, [f"{r.where}: {r.reason}" for r in groups.locked]
    for seed in range(seeds):
        plan = random_plan(graph, groups, seed)
        pruned = apply(graph, plan)
        assert verify(graph, plan, seeds=(seed, seed + 1)) <= 1e-4
        assert pruned.outputs == graph.outputs
        assert pruned.inputs == graph.inputs
        again = find_groups(pruned, heads=heads)
        if again.groups:
            second = random_plan(pruned, again, seed + 100)
            assert verify(pruned, second, seeds=(seed,)) <= 1e-4
            both = apply(graph, compose(plan, second))
            assert max_difference(both, apply(pruned, second)) == 0
    return groups


def sizes(groups: Groups) -> list[tuple[int, str]]:
    return sorted((group.size, str(group.kind)) for group in groups.groups)


def channels(*counts: int) -> list[tuple[int, str]]:
    return sorted((count, "channels") for count in counts)


C2F = Net(
    """c2f (float[1,3,8,8] x) => (float[1,5,8,8] y) {
        a = Conv(x, w0, b0)   r = Relu(a)
        c = Conv(r, w1)       left, right = Split<axis=1, num_outputs=2>(c)
        m = Conv<pads=[1,1,1,1]>(right, w2)  n = Conv<pads=[1,1,1,1]>(m, w3)
        s = Add(right, n)     j = Concat<axis=1>(left, right, s)
        y = Conv(j, w4)
    }""",
    {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (12, 8, 1, 1), "w2": (4, 6, 3, 3), "w3": (6, 4, 3, 3),
     "w4": (5, 18, 1, 1)},
)  # fmt: skip

GROUPED = Net(
    """grouped (float[1,4,6,6] x) => (float[1,6] y) {
        a = Conv(x, w0)  g = Conv<group=3>(a, w1, b1)  r = Relu(g)  e = Conv(r, w2)
        p = GlobalAveragePool(e)  f = Flatten(p)  y = Gemm<transB=1>(f, w3, b3)
    }""",
    {"w0": (12, 4, 1, 1), "w1": (18, 4, 1, 1), "b1": (18,), "w2": (8, 18, 1, 1), "w3": (6, 8), "b3": (6,)},
)

SHUFFLE = Net(
    """shuffle (float[1,4,4,4] x) => (float[1,3,4,4] y) {
        a = Conv(x, w0)  g = Conv<group=2>(a, w1)
        v = Reshape(g, s5)  t = Transpose<perm=[0,2,1,3,4]>(v)  u = Reshape(t, s4)
        d = Conv<group=16, pads=[1,1,1,1]>(u, w2)  h = Conv<group=2>(d, w3)  y = Conv(h, w4)
    }""",
    {"w0": (12, 4, 1, 1), "w1": (16, 6, 1, 1), "w2": (16, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (3, 8, 1, 1)},
    {"s5": [1, 2, 8, 4, 4], "s4": [1, 16, 4, 4]},
)

PRELU_DEPTHWISE = Net(
    """mobile (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        a = Conv(x, w0, b0)  p = PRelu(a, slope)
        d = Conv<group=10, pads=[1,1,1,1], strides=[2,2]>(p, w1, b1)
        q = PRelu(d, slope2)  y = Conv(q, w2)
    }""",
    {"w0": (10, 3, 1, 1), "b0": (10,), "slope": (10, 1, 1), "w1": (20, 1, 3, 3), "b1": (20,),
     "slope2": (20, 1, 1), "w2": (4, 20, 1, 1)},
)  # fmt: skip

FOCUS = Net(
    """focus (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        i = Conv(x, w0)
        a = Slice(i, z2, b2, ax, s2)  b = Slice(i, o2, b2, ax, s2)
        c = Concat<axis=1>(a, b)  d = Conv(c, w1)  e = SpaceToDepth<blocksize=2>(i)  f = Conv(e, w2)
        g = Add(d, f)  h = DepthToSpace<blocksize=2>(g)  k = Conv(h, w3)
        l = Conv(g, w5)  m = DepthToSpace<blocksize=2, mode="CRD">(l)  n = Conv(m, w4)
        o = Add(k, n)  y = SpaceToDepth<blocksize=2>(o)
    }""",
    {"w0": (6, 3, 1, 1), "w1": (12, 12, 1, 1), "w2": (12, 24, 1, 1), "w3": (1, 3, 1, 1), "w4": (1, 2, 1, 1),
     "w5": (8, 12, 1, 1)},
    {"z2": [0, 0], "o2": [1, 1], "b2": [8, 8], "ax": [2, 3], "s2": [2, 2]},
)  # fmt: skip

SPACE_RESHAPE = Net(
    """pixels (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, w0)  v = Reshape(a, s6)  t = Transpose<perm=[0,3,5,1,2,4]>(v)  u = Reshape(t, s4)
        b = Conv(u, w1)  c = Reshape(b, r6)  d = Transpose<perm=[0,1,4,2,5,3]>(c)  e = Reshape(d, r4)
        y = Conv(e, w2)
    }""",
    {"w0": (6, 3, 1, 1), "w1": (20, 24, 1, 1), "w2": (2, 5, 1, 1)},
    {"s6": [1, 6, 2, 2, 2, 2], "s4": [1, 24, 2, 2], "r6": [1, 5, 2, 2, 2, 2], "r4": [1, 5, 4, 4]},
)

ATTENTION = Net(
    """attention (float[1,5,8] x) => (float[1,5,3] y) {
        e = MatMul(x, w0)
        q0 = MatMul(e, wq)  q1 = Add(q0, bq)  k0 = MatMul(e, wk)  v0 = MatMul(e, wv)
        q2 = Reshape(q1, sh)  q = Transpose<perm=[0,2,1,3]>(q2)
        k2 = Reshape(k0, sh)  k = Transpose<perm=[0,2,3,1]>(k2)
        v2 = Reshape(v0, sv)  v = Transpose<perm=[0,2,1,3]>(v2)
        s0 = MatMul(q, k)  s1 = Add(s0, bias)  s = Softmax<axis=-1>(s1)
        o0 = MatMul(s, v)  o1 = Transpose<perm=[0,2,1,3]>(o0)  o2 = Reshape(o1, so)
        o = MatMul(o2, wo)  r = Add(e, o)  y = MatMul(r, w1)
    }""",
    {"w0": (8, 10), "wq": (10, 12), "bq": (12,), "wk": (10, 12), "wv": (10, 20), "bias": (1, 4, 5, 5),
     "wo": (20, 10), "w1": (10, 3)},
    {"sh": [1, 5, 4, 3], "sv": [1, 5, 4, 5], "so": [1, 5, 20]},
)  # fmt: skip

FUSED_QKV = Net(
    """fused (float[1,5,8] x) => (float[1,5,3] y) {
        p = MatMul(x, w0)  h = LayerNormalization<axis=-1>(p, gamma, beta)
        f = MatMul(h, wqkv)  g = Add(f, bqkv)  v5 = Reshape(g, s5)  t5 = Transpose<perm=[2,0,3,1,4]>(v5)
        q0, k0, v0 = Split<axis=0, num_outputs=3>(t5)
        q = Squeeze(q0, zero)  k1 = Squeeze(k0, zero)  v = Squeeze(v0, zero)
        k = Transpose<perm=[0,1,3,2]>(k1)  s0 = MatMul(q, k)  s = Softmax(s0)  o0 = MatMul(s, v)
        o1 = Transpose<perm=[0,2,1,3]>(o0)  o2 = Reshape(o1, so)  o = MatMul(o2, wo)  r = Add(p, o)
        n = LayerNormalization<axis=-1>(r, gamma2, beta2)  m0 = MatMul(n, w1)  m1 = Gelu(m0)
        m2 = MatMul(m1, w2)  r2 = Add(r, m2)  y = MatMul(r2, w3)
    }""",
    {"w0": (8, 12), "gamma": (12,), "beta": (12,), "wqkv": (12, 36), "bqkv": (36,), "wo": (12, 12),
     "gamma2": (12,), "beta2": (12,), "w1": (12, 24), "w2": (24, 12), "w3": (12, 3)},
    {"s5": [1, 5, 3, 4, 3], "zero": [0], "so": [1, 5, 12]},
)  # fmt: skip

SPLIT_QKV = Net(
    """split (float[5,8] x) => (float[5,3] y) {
        f = Gemm(x, wqkv, bqkv)  q0, k0, v0 = Split<axis=1>(f, parts)
        q1 = Reshape(q0, sh)  q = Transpose<perm=[1,0,2]>(q1)
        k1 = Reshape(k0, sh)  k = Transpose<perm=[1,2,0]>(k1)
        v1 = Reshape(v0, sh)  v = Transpose<perm=[1,0,2]>(v1)
        s0 = MatMul(q, k)  s = Softmax(s0)  o0 = MatMul(s, v)  o1 = Transpose<perm=[1,0,2]>(o0)
        o2 = Reshape(o1, so)  y = Gemm(o2, wo)
    }""",
    {"wqkv": (8, 36), "bqkv": (36,), "wo": (12, 3)},
    {"parts": [12, 12, 12], "sh": [5, 4, 3], "so": [5, 12]},
)

EINSUM = Net(
    """einsum (float[1,5,8] x) => (float[1,5,3] y) {
        q = Einsum<equation="btc,chd->bthd">(x, wq)  k = Einsum<equation="btc,chd->bthd">(x, wk)
        s0 = Einsum<equation="bqhd,bkhd->bhqk">(q, k)  s = Softmax(s0)
        v = Einsum<equation="btc,chd->bthd">(x, wv)  o = Einsum<equation="bhqk,bkhd->bqhd">(s, v)
        y = Einsum<equation="bqhd,hdc->bqc">(o, wo)
    }""",
    {"wq": (8, 4, 3), "wk": (8, 4, 3), "wv": (8, 4, 5), "wo": (4, 5, 3)},
)

MERGED_HEADS = Net(
    """merged (float[1,5,8] x) => (float[1,5,3] y) {
        q = Einsum<equation="btc,chd->bhtd">(x, wq)  s0 = Einsum<equation="bhtd,bhud->bhtu">(q, q)
        s = Softmax(s0)  v = Einsum<equation="btc,chd->bhtd">(x, wv)  o = MatMul(s, v)
        t = Transpose<perm=[0,2,1,3]>(o)  r = Reshape(t, so)  y = MatMul(r, wo)
    }""",
    {"wq": (8, 4, 3), "wv": (8, 4, 5), "wo": (20, 3)},
    {"so": [1, 5, 20]},
)

FLATTEN = Net(
    """flatten (float[1,2,6,6] x) => (float[1,5] y) {
        a = Conv(x, w0)  b = BatchNormalization(a, gamma, beta, mean, var)  r = Relu(b)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  f = Flatten(m)
        g = Gemm(f, w1, b1)  h = Relu(g)  y = Gemm<transB=1, alpha=0.5>(h, w2)
    }""",
    {"w0": (7, 2, 3, 3), "gamma": (7,), "beta": (7,), "mean": (7,), "var": (7,), "w1": (28, 9), "b1": (9,),
     "w2": (5, 9)},
)  # fmt: skip

SHARED = Net(
    """shared (float[1,3,4,4] x) => (float[1,2,4,4] y, float[1,2,2,2] z) {
        a = Conv(x, w0)  b = Conv<strides=[2,2]>(a, w1)
        c = Conv(a, ws, bs)  d = Conv(b, ws, bs)  y = Conv(c, w2)  z = Conv(d, w2)
    }""",
    {"w0": (8, 3, 1, 1), "w1": (8, 8, 1, 1), "ws": (6, 8, 1, 1), "bs": (6,), "w2": (2, 6, 1, 1)},
)

TRANSPOSED = Net(
    """transposed (float[1,3,4,4] x) => (float[1,2,10,10] y) {
        a = Conv(x, w0)  b = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(a, w1, b1)  r = Relu(b)
        c = ConvTranspose<group=6, kernel_shape=[3,3]>(r, w2)
        d = ConvTranspose<group=2, kernel_shape=[1,1]>(c, w3, b3)  y = Conv(d, w4)
    }""",
    {"w0": (5, 3, 1, 1), "w1": (5, 6, 2, 2), "b1": (6,), "w2": (6, 2, 3, 3), "w3": (12, 4, 1, 1), "b3": (8,),
     "w4": (2, 8, 1, 1)},
)  # fmt: skip

SQUEEZE_EXCITE = Net(
    """se (float[1,3,6,6] x) => (float[1,4,6,6] y) {
        a = Conv(x, w0)  m = ReduceMean<keepdims=0>(a, hw)  l = Gemm(m, w1, b1)  r = Relu(l)
        e = Gemm(r, w2)  s = HardSigmoid(e)  u = Unsqueeze(s, hw)  g = Mul(a, u)  y = Conv(g, w3)
    }""",
    {"w0": (8, 3, 1, 1), "w1": (8, 4), "b1": (4,), "w2": (4, 8), "w3": (4, 8, 1, 1)},
    {"hw": [2, 3]},
)

FPN = Net(
    """fpn (float[1,3,8,8] x) => (float[1,4,8,8] y, float[1,4,4,4] z) {
        a = Conv<kernel_shape=[1,1]>(x, w0)  b = Conv<strides=[2,2]>(a, w1)  c = Conv(b, w2)
        u = Resize<mode="nearest">(c, , , to)  j = Concat<axis=1>(u, a)  y = Conv(j, w3)
        p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)  k = Concat<axis=1>(p, c)  z = Conv(k, w4)
    }""",
    {"w0": (6, 3, 1, 1), "w1": (7, 6, 1, 1), "w2": (5, 7, 1, 1), "w3": (4, 11, 1, 1), "w4": (4, 11, 1, 1)},
    {"to": [1, 5, 8, 8]},
)

SHUFFLENET = Net(
    """shufflenet (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        i = Conv(x, w0)
        l, r = Split<axis=1, num_outputs=2>(i)  a = Conv(r, w1)  b = Conv<group=8, pads=[1,1,1,1]>(a, w2)
        c = Conv(b, w3)  j = Concat<axis=1>(l, c)
        v = Reshape(j, s5)  t = Transpose<perm=[0,2,1,3,4]>(v)  u = Reshape(t, s4)
        l2, r2 = Split<axis=1, num_outputs=2>(u)  d = Conv(r2, w4)  k = Concat<axis=1>(l2, d)  y = Conv(k, w5)
    }""",
    {"w0": (16, 3, 1, 1), "w1": (8, 8, 1, 1), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 8, 1, 1),
     "w5": (2, 16, 1, 1)},
    {"s5": [1, 2, 8, 4, 4], "s4": [1, 16, 4, 4]},
)  # fmt: skip

RESNET = Net(
    """resnet (float[1,3,8,8] x) => (float[1,5] y) {
        a = Conv(x, w0)  r0 = Relu(a)
        b = Conv<pads=[1,1,1,1]>(r0, w1)  r1 = Relu(b)  c = Conv<pads=[1,1,1,1]>(r1, w2)  s = Add(c, r0)
        r2 = Relu(s)  d = Conv<strides=[2,2], pads=[1,1,1,1]>(r2, w3)  e = Conv<pads=[1,1,1,1]>(d, w4)
        h = Slice(r2, z2, e2, ax, s2)  i = Pad(h, pads)  t = Add(e, i)  r3 = Relu(t)
        p = GlobalAveragePool(r3)  q = Squeeze(p)  u = Unsqueeze(q, zero)  y = MatMul(u, w5)
    }""",
    {"w0": (6, 3, 1, 1), "w1": (4, 6, 3, 3), "w2": (6, 4, 3, 3), "w3": (7, 6, 3, 3), "w4": (12, 7, 3, 3),
     "w5": (12, 5)},
    {"z2": [0, 0], "e2": [8, 8], "ax": [2, 3], "s2": [2, 2], "pads": [0, 3, 0, 0, 0, 3, 0, 0], "zero": [0]},
)  # fmt: skip

DENSENET = Net(
    """dense (float[1,3,4,4] x) => (float[1,3] y) {
        a = Conv(x, w0)
        n1 = BatchNormalization(a, gamma1, beta1, mean1, var1)  b = Conv(n1, w1)  j1 = Concat<axis=1>(a, b)
        n2 = BatchNormalization(j1, gamma2, beta2, mean2, var2)  c = Conv(n2, w2)  j2 = Concat<axis=1>(j1, c)
        n3 = BatchNormalization(j2, gamma3, beta3, mean3, var3)  g = GlobalMaxPool(n3)  f = Flatten(g)
        y = Gemm(f, w3)
    }""",
    {"w0": (6, 3, 1, 1), "w1": (4, 6, 1, 1), "w2": (4, 10, 1, 1), "w3": (14, 3),
     **{f"{p}{i}": (n,) for i, n in ((1, 6), (2, 10), (3, 14)) for p in ("gamma", "beta", "mean", "var")}},
)  # fmt: skip

GLU = Net(
    """glu (float[1,5,6] x) => (float[1,5,2] y) {
        a = MatMul(x, w0)  l, g = Split<axis=2, num_outputs=2>(a)  s = Sigmoid(g)  m = Mul(l, s)
        c = Slice(m, one, most, two)  d = Slice(m, last, first, two, back)  e = Gather<axis=2>(m, pick)
        j = Concat<axis=2>(c, d, e)  y = MatMul(j, w1)
    }""",
    {"w0": (6, 16), "w1": (18, 2)},
    {"one": [1], "most": [7], "two": [2], "last": [-1], "first": [-100], "back": [-1], "pick": [6, 0, 3, 3]},
)

STRIDED = Net(
    """strided (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, w0)  b = Slice(a, zero, end, one, two)  c = Slice(a, one, end, one, two)
        d = Sub(b, c)  e = Concat<axis=1>(b, d)  t = Tile(e, times)  y = Conv(t, w1)
    }""",
    {"w0": (12, 3, 1, 1), "w1": (2, 24, 1, 1)},
    {"zero": [0], "one": [1], "two": [2], "end": [12], "times": [1, 2, 1, 1]},
)

NORMS = Net(
    """norms (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[1,12,4,4] g> {
        a = Conv(x, w0)  g = GroupNormalization<num_groups=4>(a, gamma, beta)  b = Conv(g, w1)
        i = InstanceNormalization(b, gamma2, beta2)  c = Conv(i, w2)
        v = Reshape(c, s3)  n = InstanceNormalization(v, gamma3, beta3)  u = Reshape(n, s4)
        s = Mul(u, scale)  p = Greater(s, u)  t = Where(p, s, u)  y = Conv(t, w3)
    }""",
    {"w0": (12, 3, 1, 1), "gamma": (12,), "beta": (12,), "w1": (6, 12, 1, 1), "gamma2": (6,), "beta2": (6,),
     "w2": (8, 6, 1, 1), "gamma3": (2,), "beta3": (2,), "scale": (8, 1, 1), "w3": (2, 8, 1, 1)},
    {"s3": [1, 2, -1], "s4": [1, 8, 4, 4]},
)  # fmt: skip

GATES = Net(
    """gates (float[1,3,4,4] x, float[1,4] v) => (float[1,2,4,4] y) {
        a = Conv(x, w0)  k = MatMul(v, w1)  r = Reshape(k, s4)  e = Expand(r, s5)  m = Mul(a, e)
        n = ReduceMax<keepdims=1>(m, ch)  o = ReduceMean<keepdims=1>(m, ch)  j = Concat<axis=1>(n, o)
        f = Conv<pads=[1,1,1,1]>(j, w2)  y = Conv(f, w3)
    }""",
    {"w0": (8, 3, 1, 1), "w1": (4, 8), "w2": (6, 2, 3, 3), "w3": (2, 6, 1, 1)},
    {"s4": [1, 8, 1, 1], "s5": [1, 1, 4, 4], "ch": [1]},
)

TOKENS = Net(
    """tokens (float[1,5,6] x) => (float[1,3] y) {
        a = MatMul(x, w0)  j = Concat<axis=1>(token, a)  p = Add(j, place)  b = MatMul(p, w1)
        k = Concat<axis=1>(p, b)  f = Gather<axis=1>(k, one)  y = Gemm(f, w2)
    }""",
    {"w0": (6, 8), "token": (1, 1, 8), "place": (1, 6, 8), "w1": (8, 8), "w2": (8, 3)},
    {"one": 6},
)

IN_PART = Net(
    """part (float[1,3,4,4] x) => (float[1,2] y) {
        a = Conv(x, w0)  j = Concat<axis=1>(x, a)  b = Conv(x, w1)  s = Add(j, b)  c = Conv(s, w2)
        p = GlobalAveragePool(c)  f = Flatten(p)  g = Gather<axis=1>(f, two)  u = Unsqueeze(g, zero)
        h = Gemm(f, w3)  y = Add(h, u)
    }""",
    {"w0": (5, 3, 1, 1), "w1": (8, 3, 1, 1), "w2": (6, 8, 1, 1), "w3": (6, 2)},
    {"two": 2, "zero": [0]},
)

CASES: dict[str, tuple[Net, list[tuple[int, str]]]] = {
    "c2f": (C2F, channels(8, 6, 6, 4)),
    "grouped": (GROUPED, channels(4, 6, 8)),
    "shuffle": (SHUFFLE, channels(6, 4, 4)),
    "prelu and depthwise": (PRELU_DEPTHWISE, channels(10)),
    "focus": (FOCUS, channels(6, 3, 2)),
    "pixels by reshape": (SPACE_RESHAPE, channels(6, 5)),
    "attention": (ATTENTION, [*channels(10), (4, "heads")]),
    "fused qkv": (FUSED_QKV, [(4, "heads"), (24, "channels")]),
    "split qkv": (SPLIT_QKV, [(4, "heads")]),
    "einsum": (EINSUM, [*channels(3, 5), (4, "heads")]),
    "merged heads": (MERGED_HEADS, [(3, "channels"), (4, "heads")]),
    "gemm after flatten": (FLATTEN, channels(7, 9)),
    "shared weights": (SHARED, channels(8, 6)),
    "transposed convolution": (TRANSPOSED, channels(5, 3, 4)),
    "squeeze and excite": (SQUEEZE_EXCITE, channels(8, 4)),
    "fpn": (FPN, channels(6, 7, 5)),
    "shufflenet": (SHUFFLENET, channels(4, 4, 8, 8, 8)),
    "resnet": (RESNET, channels(6, 4, 7, 6)),
    "densenet": (DENSENET, channels(6, 4, 4)),
    "glu": (GLU, channels(4, 2)),
    "strided slices": (STRIDED, channels(6)),
    "normalizations": (NORMS, channels(4, 6, 2)),
    "tokens": (TOKENS, channels(8)),
    "stays in part": (IN_PART, channels(5, 5)),
    "gates": (GATES, channels(6)),
}


@pytest.mark.parametrize("name", CASES)
def test_random_units_can_go(name: str) -> None:
    net, expected = CASES[name]
    groups = check(net.graph())
    assert sizes(groups) == sorted(expected), [(g.name, g.size, g.kind) for g in groups.groups]


@pytest.mark.parametrize("name", ["attention", "fused qkv", "split qkv", "einsum"])
def test_channels_inside_the_heads(name: str) -> None:
    """Without whole heads as units, the same channels of every head are: two computed tensors lose them."""
    groups = check(CASES[name][0].graph(), heads=False)
    assert "heads" not in {str(group.kind) for group in groups.groups}


MODELS = Path(__file__).parents[3] / "shared" / "models"


@pytest.mark.parametrize(
    ("source", "groups_found", "locked"),
    [("mobilefacenet.onnx", 21, 1), ("yolox_nano.onnx", 67, 6), ("edgekit.models.yolo:build", 59, 6)],
)
def test_real_networks(source: str, groups_found: int, locked: int) -> None:
    if source.endswith(".onnx"):
        path = MODELS / source
        if not path.exists():
            pytest.skip(f"{path} is not there")
        graph = capture(str(path)).graph
    else:
        graph = capture(source, input_shapes={"images": (1, 3, 256, 256)}).graph
    groups = find_groups(graph)
    assert (len(groups.groups), len(groups.locked)) == (groups_found, locked)
    rng = np.random.default_rng(0)
    keep = {g.name: rng.choice(g.size, max(1, round(0.7 * g.size)), replace=False) for g in groups.groups}
    plan = make_plan(graph, groups, {name: units.tolist() for name, units in keep.items()})
    assert verify(graph, plan, seeds=(0,)) <= 1e-4
    assert count_macs(apply(graph, plan)) < 0.62 * count_macs(graph)


def count_macs(graph: Graph) -> int:
    return count(graph).macs


def test_a_network_of_300_nodes_is_planned_within_a_second() -> None:
    """Residual blocks of a wide network; also what the sites of all its tensors cost."""
    lines, net = ["c = Conv(x, w)"], Net("", {"w": (256, 3, 1, 1)})
    current = "c"
    for index in range(60):
        net.weights |= {f"a{index}": (128, 256, 1, 1), f"b{index}": (256, 128, 1, 1)}
        lines += [
            f"p{index} = Conv({current}, a{index})",
            f"q{index} = Relu(p{index})",
            f"r{index} = Conv(q{index}, b{index})",
            f"s{index} = Add({current}, r{index})",
            f"o{index} = Relu(s{index})",
        ]
        current = f"o{index}"
    lines.append(f"y = GlobalAveragePool({current})")
    net.text = f"net (float[1,3,4,4] x) => (float[1,256,1,1] y) {{ {' '.join(lines)} }}"
    graph = net.graph()
    assert sum(1 for _ in graph.nodes) == 302
    start = time.perf_counter()
    groups = find_groups(graph)
    seconds = time.perf_counter() - start
    assert len(groups.groups) == 60
    assert seconds < 1
