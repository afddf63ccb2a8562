"""Blocks hold every node once, have one result, and can run one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.graph import Graph
from edgekit.quantize.reconstruct.blocks import Block, find_blocks
from edgekit.quantize.reconstruct.options import Granularity

CONV = "Conv({}, w)"
RESIDUAL = "a = Conv(x, w) b = Conv(a, w) c = Conv(b, w) s = Add(c, a) y = Conv(s, w)"
#: Two residual blocks in a row.
CHAIN = """a = Conv(x, w) b = Conv(a, w) s = Add(b, a) c = Conv(s, w) d = Relu(c) e = Conv(d, w) t = Add(e, s)
           y = Conv(t, w)"""
SILU = "a = Conv(x, w) i = Sigmoid(a) r = Mul(a, i) y = Conv(r, w)"
#: A long region without a cut: two branches of three layers each.
WIDE = """a = Conv(x, w) b = Conv(a, w) c = Conv(b, w) d = Conv(c, w) e = Conv(a, w) f = Conv(e, w)
          g = Conv(f, w) s = Add(d, g) y = Conv(s, w)"""
HEADS = "a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = Relu(c) d = Conv(b, w) z = Relu(d)"


@pytest.fixture(scope="module")
def cut(build: Callable[..., Graph]) -> Callable[..., list[str]]:
    """Blocks of a net as strings of their nodes, which are called like what they give."""

    def run(text: str, **options: object) -> list[str]:
        return ["".join(n[0] for n in b.nodes) for b in blocks_of(build, text, **options)]

    return run


def blocks_of(build: Callable[..., Graph], text: str, **options: object) -> tuple[Block, ...]:
    import numpy as np

    second = ", float[1,4,5,5] z" if "z =" in text else ""
    graph = build(
        f"g (float[1,4,5,5] x) => (float[1,4,5,5] y{second}) {{ {text} }}", {"w": np.ones((4, 4, 1, 1))}
    )
    weighted = [str(n.name) for n in graph.nodes if n.op_type == "Conv"]
    return find_blocks(graph, weighted, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        (RESIDUAL, 6, ["abcsy"]),
        (RESIDUAL, 3, ["abcs", "y"]),
        (RESIDUAL, 2, ["a", "bcs", "y"]),
        (CHAIN, 2, ["abs", "cdet", "y"]),
        (CHAIN, 3, ["abs", "cdety"]),
        (SILU, 1, ["air", "y"]),
        (SILU, 2, ["airy"]),
        (HEADS, 6, ["ab", "cy", "dz"]),
    ],
)
def test_blocks(cut: Callable[..., list[str]], text: str, most: int, expected: list[str]) -> None:
    assert cut(text, most=most) == expected


def test_layers(cut: Callable[..., list[str]]) -> None:
    assert cut(RESIDUAL, granularity=Granularity.LAYER) == ["a", "b", "cs", "y"]
    assert cut(SILU, granularity=Granularity.LAYER) == ["air", "y"]


def test_a_region_that_is_too_large_says_so(build: Callable[..., Graph]) -> None:
    found = blocks_of(build, WIDE, most=2)
    inside = {n[0]: b.uncut for b in found for n in b.nodes if len(b.weighted) == 1}
    assert all(uncut == 6 for node, uncut in inside.items() if node in "bcdefgs")
    assert inside.get("y", 0) == 0
    assert all(len(b.weighted) <= 2 for b in found)


@pytest.mark.parametrize("seed", range(30))
def test_any_net(seed: int, random_net: Callable[[int], Graph]) -> None:
    graph = random_net(seed)
    nodes = {str(n.name): n for n in graph.nodes}
    weighted = {name for name, n in nodes.items() if n.op_type in ("Conv", "Gemm", "MatMul")}
    for most in (1, 2, 6):
        blocks = find_blocks(graph, weighted, most=most)
        assert sorted(n for b in blocks for n in b.nodes) == sorted(nodes)
        done: set[str] = {v.name or "" for v in graph.model.graph.inputs}
        done |= set(graph.model.graph.initializers)
        for block in blocks:
            assert len(block.weighted) <= most
            assert set(block.weighted) == weighted & set(block.nodes)
            assert len(block.outputs) == 1
            made = {str(v.name) for n in block.nodes for v in nodes[n].outputs}
            read = {str(v.name) for n in block.nodes for v in nodes[n].inputs if v is not None and v.name}
            assert read <= done | made
            done |= set(block.outputs)  # only a block's results are there for the others
