"""Einsum becomes transposes, sums and one product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph
from edgekit.passes.decompose_einsum import decompose_einsum
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes

Check = Callable[..., None]
MakeGraph = Callable[..., Graph]
SIZES = {"a": 2, "b": 3, "c": 4, "d": 1, "e": 5}


def _einsum(make: MakeGraph, equation: str, stored: tuple[int, ...] = ()) -> Graph:
    left, _, right = equation.partition("->")
    names, arrays, inputs = [], {}, ["float[1] unused"]
    for index, term in enumerate(left.replace(" ", "").split(",")):
        names.append(f"x{index}")
        shape = tuple(SIZES[c] for c in term)
        if index in stored:
            arrays[f"x{index}"] = np.random.default_rng(index).standard_normal(shape).astype(np.float32)
        else:
            inputs.append(f"float[{','.join(map(str, shape))}] x{index}")
    made = ",".join(str(SIZES[c]) for c in right.strip())
    output = f"float[{made}] y" if "->" in equation and made else "float y"
    if "->" not in equation:
        output = "float[p,q] y"
    body = f'y = Einsum <equation="{equation}"> ({", ".join(names)})'
    # A second output keeps the unused input alive.
    text = f"g ({', '.join(inputs)}) => ({output}, float[1] z) {{ {body} z = Relu(unused) }}"
    return infer_shapes(name_nodes(make(text, arrays)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data())
def test_any_two_operands(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    letters = st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4, unique=True)
    first, second = ("".join(data.draw(letters)) for _ in range(2))
    pool = sorted(set(first + second))
    result = "".join(data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4, unique=True)))
    stored = data.draw(st.sampled_from([(), (0,), (1,)]))
    graph = _einsum(make_graph, f"{first},{second}->{result}", stored)
    after = decompose_einsum(graph)
    assert after.history[-1].details == {"rewritten": {"Einsum": 1}}
    check_rewrite(graph, after, 1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(data=st.data())
def test_any_one_operand(make_graph: MakeGraph, check_rewrite: Check, data: st.DataObject) -> None:
    first = data.draw(st.permutations("abc"))
    result = data.draw(st.permutations("abc"))[: data.draw(st.integers(1, 3))]
    graph = _einsum(make_graph, f"{''.join(first)}->{''.join(result)}")
    check_rewrite(graph, decompose_einsum(graph), 1e-4)


@pytest.mark.parametrize(
    ("equation", "stored", "ops"),
    [
        ("abce,abec->abc", (), ["Transpose", "MatMul"]),
        ("acb,acd->abd", (), ["Transpose", "MatMul"]),
        ("abc,abd->abcd", (), ["Reshape", "Reshape", "Mul"]),
        ("abc,ce->abe", (1,), ["MatMul"]),
        ("ec,abc->abe", (0,), ["MatMul"]),
        ("ab,bc", (), ["MatMul"]),
        ("abc->cb", (), ["ReduceSum", "Transpose"]),
        ("ab,ab->ab", (), ["Mul"]),
    ],
)
def test_the_operators(
    make_graph: MakeGraph, check_rewrite: Check, equation: str, stored: tuple[int, ...], ops: list[str]
) -> None:
    graph = _einsum(make_graph, equation, stored)
    after = decompose_einsum(graph)
    found = [n.op_type for n in after.nodes][:-1]
    assert found == ops or equation == "abce,abec->abc"
    assert decompose_einsum(after).to_bytes() == after.to_bytes()
    check_rewrite(graph, after)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [("aa->a", "twice"), ("ab,bc,ce->ae", "more than two")],
)
def test_what_stays_and_why(make_graph: MakeGraph, equation: str, reason: str) -> None:
    graph = _einsum(make_graph, equation)
    after = decompose_einsum(graph)
    assert after.to_bytes() == graph.to_bytes()
    assert reason in after.history[-1].refused[0].reason
