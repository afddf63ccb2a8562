"""Where the windows of a pooling lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.graph import Graph
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.name_nodes import name_nodes
from edgekit.passes.windows import Window, is_ceil, windows


def _windows(make: Callable[..., Graph], attributes: str) -> tuple[Window, ...]:
    text = f"g (float[1,2,7,8] x) => (float[a,b,c,d] y) {{ y = MaxPool <{attributes}> (x) }}"
    found = windows(next(iter(infer_shapes(name_nodes(make(text))).nodes)))
    assert found is not None
    return found


def test_by_the_attributes(make_graph: Callable[..., Graph]) -> None:
    text = "kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,0], dilations=[1,3]"
    rows, columns = _windows(make_graph, text)
    assert rows == Window(7, 3, 2, 1, 1, 1, 4)
    assert rows.starts == (-1, 1, 3, 5)
    assert rows.inside == ((0, 1), (1, 2, 3), (3, 4, 5), (5, 6))
    assert rows.overhang == 1
    assert columns.inside == tuple((i, i + 3) for i in range(5))
    assert columns.overhang == 0


@pytest.mark.parametrize(("mode", "before"), [("SAME_UPPER", 0), ("SAME_LOWER", 1)])
def test_by_auto_pad(make_graph: Callable[..., Graph], mode: str, before: int) -> None:
    rows, columns = _windows(make_graph, f'kernel_shape=[3,2], strides=[2,1], auto_pad="{mode}"')
    assert (rows.before, rows.after, rows.count) == (1, 1, 4)
    assert (columns.before, columns.after, columns.count) == (before, 1 - before, 8)


def test_rounded_up(make_graph: Callable[..., Graph]) -> None:
    attributes = "kernel_shape=[2,3], strides=[2,2], ceil_mode=1"
    rows, columns = _windows(make_graph, attributes)
    assert (rows.count, rows.overhang, columns.count, columns.overhang) == (4, 1, 4, 1)
    graph = make_graph(f"g (float[1,2,7,8] x) => (float[1,2,4,4] y) {{ y = MaxPool <{attributes}> (x) }}")
    node = next(iter(graph.nodes))
    assert is_ceil(node)
    node.inputs[0].shape = None  # type: ignore[union-attr]
    assert windows(node) is None
