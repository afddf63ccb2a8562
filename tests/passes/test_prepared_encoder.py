"""A transformer encoder as exporters write it, through all passes before quantization to integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.capture import clean
from edgekit.graph import Graph
from edgekit.passes.bound_masks import bound_masks
from edgekit.passes.decompose_layernorm import Squares, decompose_layernorm
from edgekit.passes.fold_scales import fold_scales
from edgekit.passes.fuse_gelu import fuse_gelu
from edgekit.passes.fuse_hard_swish import fuse_hard_swish
from edgekit.passes.fuse_layernorm import fuse_layernorm
from edgekit.passes.remove_expands import remove_expands
from edgekit.passes.simplify_powers import simplify_powers
from edgekit.session import open_runner
from edgekit.train.executor import Executor

WORDS, TOKENS, WIDTH, HEADS = 40, 6, 16, 2

NORM = """
    {0}m = ReduceMean({1}, last) {0}d = Sub({1}, {0}m) {0}q = Pow({0}d, two)
    {0}v = ReduceMean({0}q, last) {0}w = Add({0}v, epsilon) {0}s = Sqrt({0}w) {0}n = Div({0}d, {0}s)
    {0}g = Mul({0}n, {0}gamma) {0} = Add({0}g, {0}beta) """
LINEAR = "{0}x = MatMul({1}, {0}w) {0} = Add({0}x, {0}b) "
SPLIT = "{0}r = Reshape({0}, heads) {0}h = Transpose<perm={1}>({0}r) "


def _body() -> str:
    return (
        """embedded = Gather(words, ids) placed = Add(embedded, places)
        mask1 = Unsqueeze(keep, middle) full = Expand(mask1, square) kept = Cast<to=9>(full)
        mask = Where(kept, zero, never) """
        + NORM.format("l0", "placed")
        + "".join(LINEAR.format(name, "l0") for name in ("query", "key", "value"))
        + SPLIT.format("query", [0, 2, 1, 3])
        + SPLIT.format("key", [0, 2, 3, 1])
        + SPLIT.format("value", [0, 2, 1, 3])
        + """scores = MatMul(queryh, keyh) scaled = Div(scores, root) masked = Add(scaled, mask)
        soft = Softmax(masked) bad = IsNaN(soft) p = Where(bad, zero, soft) mixed = MatMul(p, valueh)
        joined = Transpose<perm=[0, 2, 1, 3]>(mixed) flat = Reshape(joined, rows) """
        + LINEAR.format("out", "flat")
        + "sum1 = Add(out, l0) "
        + NORM.format("l1", "sum1")
        + LINEAR.format("up", "l1")
        + """half1 = Div(up, root2) e = Erf(half1) e1 = Add(e, one) u = Mul(up, e1) gelu = Mul(u, half) """
        + LINEAR.format("down", "gelu")
        + "sum2 = Add(down, l1) "
        + NORM.format("l2", "sum2")
    )


def _encoder(make: Callable[..., Graph]) -> Graph:
    random = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    arrays: dict[str, Any] = {"words": floats(WORDS, WIDTH) * 6, "places": floats(1, TOKENS, WIDTH)}
    sizes = {
        "query": (16, 16),
        "key": (16, 16),
        "value": (16, 16),
        "out": (16, 16),
        "up": (16, 64),
        "down": (64, 16),
    }
    for name, size in sizes.items():
        arrays[f"{name}w"], arrays[f"{name}b"] = floats(*size), floats(size[1])
    for name in ("l0", "l1", "l2"):
        arrays[f"{name}gamma"], arrays[f"{name}beta"] = 1 + floats(WIDTH), floats(WIDTH)
    numbers = {"two": 2, "epsilon": 1e-12, "root": 8**0.5, "root2": 2**0.5, "one": 1, "half": 0.5, "zero": 0}
    arrays |= {name: np.array(value, np.float32) for name, value in numbers.items()}
    arrays |= {"never": np.array(-np.inf, np.float32), "last": np.array([-1]), "middle": np.array([1, 2])}
    arrays |= {"heads": np.array([1, TOKENS, HEADS, 8]), "rows": np.array([1, TOKENS, WIDTH])}
    arrays["square"] = np.array([1, 1, TOKENS, TOKENS])
    text = f"""g (int64[1,{TOKENS}] ids, int64[1,{TOKENS}] keep) => (float[1,{TOKENS},{WIDTH}] l2) {{
        {_body()} }}"""
    return clean(make(text, arrays))


def _prepare(graph: Graph, squares: Squares) -> Graph:
    graph = remove_expands(bound_masks(graph))
    graph = fuse_layernorm(fuse_hard_swish(fuse_gelu(graph)))
    graph = fold_scales(simplify_powers(graph))
    return decompose_layernorm(graph, squares=squares)


@pytest.mark.parametrize("squares", list(Squares))
def test_nothing_is_left_that_integers_cannot_do(
    make_graph: Callable[..., Graph], check_rewrite: Callable[..., None], squares: Squares
) -> None:
    graph = _encoder(make_graph)
    after = _prepare(graph, squares)
    integer = {
        "Add", "Sub", "Mul", "MatMul", "ReduceMean", "Sqrt", "Reciprocal", "Reshape", "Transpose", "Softmax",
        "Gelu",
    }  # fmt: skip
    # Looking up the words and making the mask come before the first layer, in float.
    front = ["Gather", "Unsqueeze", "Cast", "Where"]
    assert [n.op_type for n in after.nodes if n.op_type not in integer] == front
    assert not [n for n in after.nodes if n.op_type == "Mul" and n.outputs[0].name == "scaled"]
    check_rewrite(graph, after, 2e-5)
    ids = np.arange(TOKENS)[None] % WORDS
    for length in (1, 3, TOKENS):
        feeds = {"ids": ids, "keep": (np.arange(TOKENS) < length).astype(np.int64)[None]}
        results = [open_runner(g, threads=1).run(feeds)["l2"] for g in (graph, after)]
        assert np.abs(results[0] - results[1]).max() < 2e-5
        tensors = {name: torch.from_numpy(values) for name, values in feeds.items()}
        trained = Executor(after).eval()(tensors)["l2"].detach().numpy()
        assert np.abs(results[0] - trained).max() < 2e-5
