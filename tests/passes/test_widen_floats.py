from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.errors import ModelError
from edgekit.graph import array
from edgekit.passes.infer_shapes import infer_shapes
from edgekit.passes.widen_floats import widen_floats
from edgekit.session import open_runner


def _held(value: Any) -> Any:
    return array(value)


def test_float16_becomes_float32(make_graph: Callable[..., Any]) -> None:
    graph = make_graph(
        """g (float16[2] x) => (float16[2] y) {
            a = Add(x, w) b = Cast<to=1>(a) c = Cast<to=10>(b)
            d = Constant<value = double[1] {2.0}>() k = Cast<to=10>(d) y = Mul(c, k) }""",
        {"w": np.array([1, 2], np.float16)},
    )
    before = graph.to_bytes()
    wide = infer_shapes(widen_floats(graph))
    assert {v.dtype for v in wide.values().values()} == {ir.DataType.FLOAT}
    assert wide.inputs[0].dtype == np.float32
    assert _held(wide.values()["w"]).dtype == np.float32
    assert widen_floats(graph).history[-1].details["interface"] == ["x", "y"]
    assert graph.to_bytes() == before
    result = open_runner(wide, threads=1).run({"x": np.array([0.5, 1], np.float32)})
    assert result["y"].tolist() == [3, 6]


def test_float64_too_large_is_refused(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (double[1] x) => (double[1] y) { y = Add(x, w) }", {"w": np.array([1e300])})
    with pytest.raises(ModelError, match=r"'w'.*float32 cannot hold"):
        widen_floats(graph)


def test_infinity_stays_infinity(make_graph: Callable[..., Any]) -> None:
    graph = make_graph("g (double[1] x) => (double[1] y) { y = Add(x, w) }", {"w": np.array([-np.inf])})
    assert np.isneginf(_held(widen_floats(graph).values()["w"])).all()
