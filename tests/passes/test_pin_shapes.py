from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import ModelError, UsageError
from edgekit.passes.edit import static_shape
from edgekit.passes.pin_shapes import pin_shapes

OPEN = "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { h = Relu(x) y = Relu(h) }"
BATCH = "g (float[N,3] x, float[N,4] z) => (float[N,3] y, float[N,4] v) { y = Relu(x) v = Relu(z) }"
FIXED = "g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }"


def _shapes(graph: Any) -> Any:
    return {str(v.name): static_shape(v) for v in graph.model.graph.inputs}


def test_given_shapes_are_taken(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(OPEN)
    pinned = pin_shapes(graph, {"x": (2, 3, 8, 9)})
    assert _shapes(pinned) == {"x": (2, 3, 8, 9)}
    assert _shapes(graph) == {"x": None}
    assert pinned.history[-1].details == {"inputs": {"x": [2, 3, 8, 9]}}
    assert pinned.values()["y"].shape is None, "what was declared for the open sizes is out of date"


def test_an_open_batch_becomes_one(make_graph: Callable[..., Any]) -> None:
    pinned = pin_shapes(make_graph(BATCH))
    assert _shapes(pinned) == {"x": (1, 3), "z": (1, 4)}
    assert "batch set to 1" in pinned.history[-1].summary


def test_an_unnamed_batch_becomes_one(make_graph: Callable[..., Any]) -> None:
    assert _shapes(pin_shapes(make_graph("g (float[?,3] x) => (float[?,3] y) { y = Relu(x) }"))) == {
        "x": (1, 3)
    }


def test_inputs_share_symbols(make_graph: Callable[..., Any]) -> None:
    pinned = pin_shapes(make_graph(BATCH), {"x": (5, 3)})
    assert _shapes(pinned) == {"x": (5, 3), "z": (5, 4)}
    assert "batch" not in pinned.history[-1].summary


def test_static_inputs_need_nothing(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(FIXED)
    assert pin_shapes(graph) is graph
    assert pin_shapes(graph, {"x": (1, 3)}) is graph


def test_open_sizes_are_all_named_with_an_example(make_graph: Callable[..., Any]) -> None:
    with pytest.raises(ModelError) as caught:
        pin_shapes(make_graph(OPEN))
    for part in ("'x' dimension 2 (H)", "'x' dimension 3 (W)", "--input-shape x=1,3,N,N"):
        assert part in str(caught.value)


def test_an_input_of_unknown_rank_is_named(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(FIXED)
    graph.model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="'x' is of unknown rank"):
        pin_shapes(graph)
    assert _shapes(pin_shapes(graph, {"x": (4, 3)})) == {"x": (4, 3)}


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (FIXED, {"q": (1, 3)}, r"no input 'q' \(valid: x\)"),
        (FIXED, {"x": (1, 3, 4)}, "has 2 dimensions, not 3"),
        (FIXED, {"x": (2, 3)}, "fixed to 1x3.*2x3 does not fit"),
        (OPEN, {"x": (1, 4, 8, 8)}, r"fixed to Nx3xHxW"),
        (OPEN, {"x": (0, 3, 8, 8)}, "below 1"),
        (BATCH, {"x": (2, 3), "z": (3, 4)}, "'z' sets 'N' to 3, another input sets it to 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    make_graph: Callable[..., Any], text: Any, shapes: Any, message: Any
) -> None:
    with pytest.raises(UsageError, match=message):
        pin_shapes(make_graph(text), shapes)
