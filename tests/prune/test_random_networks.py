"""Networks grown from random blocks: prune them at random, twice, and compare with the masked original."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.capture import clean
from edgekit.graph import Graph
from edgekit.passes.verify import max_difference
from edgekit.prune.apply import apply, verify
from edgekit.prune.groups import Groups, find_groups
from edgekit.prune.plan import PruningPlan, compose, make_plan


def random_plan(graph: Graph, groups: Groups, seed: int) -> PruningPlan:
    """Prune most groups, each by a random number of random units; some down to one."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups.groups:
        if rng.random() < 0.85:
            left = 1 if rng.random() < 0.15 else rng.integers(1, group.size + 1)
            keep[group.name] = rng.choice(group.size, left, replace=False).tolist()
    return make_plan(graph, groups, keep)


class Builder:
    """A network grown block by block from drawn numbers."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.constants: dict[str, list[int]] = {}
        self.current, self.channels, self.side = "x", 3, 8

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def name(self) -> str:
        return f"t{len(self.lines)}"

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return name

    def constant(self, *values: int) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = list(values)
        return name

    def node(self, call: str, *inputs: str, outputs: int = 1) -> str:
        names = [f"{self.name()}_{i}" for i in range(outputs)]
        self.lines.append(f"{', '.join(names)} = {call}({', '.join(inputs)})")
        return names[0]

    def conv(self, source: str, into: int, out: int, *, group: int = 1, kernel: int = 1) -> str:
        weight = self.weight(out, into // group, kernel, kernel)
        pad = kernel // 2
        inputs = [source, weight] + ([self.weight(out)] if self.draw(st.booleans()) else [])
        return self.node(f"Conv<group={group}, pads=[{pad},{pad},{pad},{pad}]>", *inputs)

    def plain(self) -> None:
        out = self.number(2, 12)
        self.current = self.conv(self.current, self.channels, out, kernel=self.draw(st.sampled_from([1, 3])))
        self.channels = out
        self.current = self.node(self.draw(st.sampled_from(["Relu", "HardSwish", "Tanh"])), self.current)

    def grouped(self) -> None:
        group, each, out = self.number(2, 3), self.number(1, 4), self.number(1, 4)
        self.current = self.conv(self.current, self.channels, group * each)
        self.current = self.conv(self.current, group * each, group * out, group=group)
        self.channels = group * out

    def depthwise(self) -> None:
        multiple = self.number(1, 2)
        weight = self.weight(self.channels * multiple, 1, 3, 3)
        self.current = self.node(f"Conv<group={self.channels}, pads=[1,1,1,1]>", self.current, weight)
        self.channels *= multiple
        self.current = self.node("PRelu", self.current, self.weight(self.channels, 1, 1))

    def residual(self) -> None:
        middle = self.number(2, 8)
        inner = self.node("Relu", self.conv(self.current, self.channels, middle))
        inner = self.conv(inner, middle, self.channels, kernel=3)
        self.current = self.node(self.draw(st.sampled_from(["Add", "Sub", "Max"])), self.current, inner)

    def split(self) -> None:
        left, right = self.number(1, 6), self.number(2, 6)
        whole = self.conv(self.current, self.channels, left + right)
        sizes = self.constant(left, right)
        a = self.node("Split<axis=1>", whole, sizes, outputs=2)
        b = a[:-1] + "1"
        c = self.node("Add", b, self.conv(b, right, right)) if self.draw(st.booleans()) else b
        self.current = self.node("Concat<axis=1>", a, c, b)
        self.channels = left + 2 * right

    def dense(self) -> None:
        grown = self.number(1, 4)
        new = self.conv(self.current, self.channels, grown)
        self.current, self.channels = self.node("Concat<axis=1>", self.current, new), self.channels + grown

    def gate(self) -> None:
        pooled = self.node("GlobalAveragePool", self.current)
        middle = self.node("Relu", self.conv(pooled, self.channels, 3))
        scale = self.node("Sigmoid", self.conv(middle, 3, self.channels))
        self.current = self.node("Mul", scale, self.current)

    def glu(self) -> None:
        half = self.number(2, 6)
        both = self.conv(self.current, self.channels, 2 * half)
        a = self.node("Split<axis=1, num_outputs=2>", both, outputs=2)
        self.current = self.node("Mul", self.node("Sigmoid", a), a[:-1] + "1")
        self.channels = half

    def shuffle(self) -> None:
        group, each, side = self.number(2, 3), self.number(2, 4), self.side
        flat = self.conv(self.current, self.channels, group * each)
        parts = self.node("Reshape", flat, self.constant(0, group, each, side, side))
        turned = self.node("Transpose<perm=[0,2,1,3,4]>", parts)
        self.current = self.node("Reshape", turned, self.constant(1, -1, side, side))
        self.channels = group * each

    def depth_to_space(self) -> None:
        if self.side > 8:
            return
        out, mode = self.number(2, 3), self.draw(st.sampled_from(["DCR", "CRD"]))
        wide = self.conv(self.current, self.channels, 4 * out)
        self.current = self.node(f'DepthToSpace<blocksize=2, mode="{mode}">', wide)
        self.channels, self.side = out, 2 * self.side

    def space_to_depth(self) -> None:
        if self.channels > 12 or self.side % 2:
            return
        self.current = self.node("SpaceToDepth<blocksize=2>", self.current)
        self.channels, self.side = 4 * self.channels, self.side // 2

    def pool_and_resize(self) -> None:
        if self.side % 2:
            return
        small = self.node("MaxPool<kernel_shape=[2,2], strides=[2,2]>", self.current)
        sizes = self.constant(1, self.channels, self.side, self.side)
        large = self.node('Resize<mode="nearest">', small, "", "", sizes)
        self.current, self.channels = self.node("Concat<axis=1>", large, self.current), 2 * self.channels

    def pick(self) -> None:
        step, start = self.number(1, 2), self.number(0, self.channels - 2)
        limits = (start, self.channels, 1, step) if self.draw(st.booleans()) else (-1, -100, 1, -step)
        self.current = self.node("Slice", self.current, *(self.constant(value) for value in limits))
        first, last, _, stride = limits
        self.channels = len(range(self.channels)[first:last:stride])
        if self.channels < 2:
            self.plain()

    def pad(self) -> None:
        before, after = self.number(0, 2), self.number(0, 2)
        pads = self.constant(0, before, 0, 0, 0, after, 0, 0)
        padded = self.node("Pad", self.current, pads)
        total = self.channels + before + after
        self.current = self.node("Add", padded, self.conv(self.current, self.channels, total))
        self.channels = total

    def attention(self) -> None:
        if self.side > 8:
            return
        heads, size, pixels = self.number(2, 3), self.number(1, 3), self.side**2
        width = heads * size
        flat = self.node("Reshape", self.current, self.constant(1, self.channels, pixels))
        tokens = self.node("Transpose<perm=[0,2,1]>", flat)
        shape = self.constant(1, pixels, heads, size)
        parts = []
        for order in ("0,2,1,3", "0,2,3,1", "0,2,1,3"):
            part = self.node("MatMul", tokens, self.weight(self.channels, width))
            parts.append(self.node(f"Transpose<perm=[{order}]>", self.node("Reshape", part, shape)))
        scores = self.node("Softmax", self.node("MatMul", parts[0], parts[1]))
        mixed = self.node("Transpose<perm=[0,2,1,3]>", self.node("MatMul", scores, parts[2]))
        joined = self.node("Reshape", mixed, self.constant(1, pixels, width))
        out = self.node("MatMul", joined, self.weight(width, self.channels))
        back = self.node("Transpose<perm=[0,2,1]>", self.node("Add", out, tokens))
        self.current = self.node("Reshape", back, self.constant(1, self.channels, self.side, self.side))

    def upward(self) -> None:
        out = self.number(2, 6)
        weight = self.weight(self.channels, out, 3, 3)
        self.current = self.node("ConvTranspose<pads=[1,1,1,1]>", self.current, weight, self.weight(out))
        self.channels = out

    def norm(self) -> None:
        kind = self.draw(st.sampled_from(["LRN", "Softmax", "Instance", "Scale"]))
        if kind == "LRN":
            self.current = self.node("LRN<size=3>", self.current)
        elif kind == "Softmax":
            self.current = self.node("Softmax<axis=1>", self.current)
        elif kind == "Scale":
            self.current = self.node("Mul", self.current, self.weight(1, self.channels, 1, 1))
        else:
            params = self.weight(self.channels), self.weight(self.channels)
            self.current = self.node("InstanceNormalization", self.current, *params)

    def finish(self) -> Graph:
        side, channels = self.side, self.channels
        end = self.draw(st.sampled_from(["conv", "flatten", "mean"]))
        if end == "conv":
            self.current = self.conv(self.current, channels, 2)
            shape = f"1,2,{side},{side}"
        elif end == "flatten":
            flat = self.node("Flatten", self.current)
            self.current, shape = self.node("Gemm", flat, self.weight(channels * side**2, 2)), "1,2"
        else:
            mean = self.node("ReduceMean<keepdims=0>", self.current, self.constant(2, 3))
            self.current, shape = self.node("MatMul", mean, self.weight(channels, 2)), "1,2"
        self.lines.append(f"y = Identity({self.current})")
        body = "\n".join(self.lines)
        text = f"net (float[1,3,8,8] x) => (float[{shape}] y) {{ {body} }}"
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
        rng = np.random.default_rng(0)
        for name, values in self.constants.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        for name, sizes in self.weights.items():
            drawn = rng.normal(size=sizes) / np.sqrt(math.prod(sizes[1:]))
            model.graph.initializer.append(onnx.numpy_helper.from_array(drawn.astype(np.float32), name))
        return clean(Graph(ir.from_proto(model)))


BLOCKS = [
    Builder.plain,
    Builder.grouped,
    Builder.depthwise,
    Builder.residual,
    Builder.split,
    Builder.dense,
    Builder.gate,
    Builder.glu,
    Builder.shuffle,
    Builder.depth_to_space,
    Builder.space_to_depth,
    Builder.pool_and_resize,
    Builder.pick,
    Builder.pad,
    Builder.attention,
    Builder.upward,
    Builder.norm,
]


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    builder = Builder(draw)
    builder.plain()
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=2, max_size=7)):
        block(builder)
    return builder.finish()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graph=networks(), seed=st.integers(0, 1000), heads=st.booleans())
def test_networks_nobody_thought_of(graph: Graph, seed: int, heads: bool) -> None:
    groups = find_groups(graph, heads=heads)
    plan = random_plan(graph, groups, seed)
    assert verify(graph, plan, seeds=(seed,)) <= 1e-4
    pruned = apply(graph, plan)
    assert pruned.outputs == graph.outputs
    for group in groups.groups:
        assert len(plan.groups.get(group.name, range(group.size))) >= 1
    second = random_plan(pruned, find_groups(pruned, heads=heads), seed + 1)
    both = compose(plan, second)
    assert max_difference(apply(graph, both), apply(pruned, second)) == 0
    assert verify(graph, both, seeds=(seed,)) <= 1e-4
