"""Chunks exported as sequences become Split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import Graph
from edgekit.passes.fold_constants import fold_constants
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.verify import max_difference

_TEXT = """g (float[1, 7, 4] x) => (float[1, ?, 4] a, float[1, ?, 4] b) {
    r = Relu(x)
    first = SplitToSequence<axis=1>(r, sizes)
    second = SplitToSequence<axis=1>(r, sizes)
    p = SequenceAt(first, zero)
    q = SequenceAt(second, last)
    a = Neg(p)
    b = Neg(q)
}""".replace("?", "N")


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("sizes", [np.array([3, 4]), np.array(4), np.array([1, 2, 4])])
def test_parts_are_outputs_of_one_split(
    make_graph: Callable[..., Graph], opset: int, sizes: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> None:
    weights = {"sizes": sizes.astype(np.int64), "zero": np.array(0, np.int64), "last": np.array(-1, np.int64)}
    graph = name_nodes(make_graph(_TEXT, weights, opset=opset))
    after = fold_constants(graph)
    ops = [n.op_type for n in after.nodes]
    assert ops.count("Split") == 1, "both sequences are parts of the same tensor"
    assert not [op for op in ops if "Sequence" in op]
    assert max_difference(graph, after) == 0.0


def test_a_place_that_is_not_constant_is_refused(make_graph: Callable[..., Graph]) -> None:
    text = """g (float[1, 4, 4] x, int64 i) => (float[1, N, 4] a) {
        s = SplitToSequence<axis=1>(x, sizes)
        p = SequenceAt(s, i)
        a = Neg(p)
    }"""
    graph = make_graph(text, {"sizes": np.array([2, 2], np.int64)})
    with pytest.raises(ModelError, match="not known in advance"):
        fold_constants(graph)
