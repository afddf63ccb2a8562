"""Codes that are given take the place of the nearest ones in the QDQ graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.graph import array
from edgekit.quantize.qdq import insert_qdq
from edgekit.quantize.qparams import weight_codes


def test_codes_are_written(case: Callable[..., Any]) -> None:
    made = case("relu")
    weight = np.asarray(made.graph.values()["w3"].const_value.numpy())
    nearest = weight_codes(weight, made.scales["y.node"], 0, made.scheme.weight)
    given = np.clip(nearest + 1, -127, 127).astype(np.int8)
    found = insert_qdq(made.graph, made.plan, made.params, made.scheme, made.scales, {"y.node": given})
    values = found.values()
    assert np.array_equal(np.asarray(array(values["w3_quantized"])), given)
    plain = made.nearest().values()
    assert np.array_equal(np.asarray(array(values["w1_quantized"])), np.asarray(array(plain["w1_quantized"])))
    same = insert_qdq(made.graph, made.plan, made.params, made.scheme, made.scales, {"y.node": nearest})
    assert same.sha256() == made.nearest().sha256()


def test_codes_that_do_not_fit(case: Callable[..., Any]) -> None:
    made = case("relu")
    codes = {"y.node": np.zeros((2, 2), np.int8)}
    with pytest.raises(ModelError, match=r"node 'y.node'.*shape \[2, 2\]"):
        insert_qdq(made.graph, made.plan, made.params, made.scheme, made.scales, codes)
    # A step of the input so small that the bias needs larger scales.
    params = {t: replace(p, scale=p.scale * 1e-9) for t, p in made.params.items()}
    codes = {"y.node": np.zeros((16, 8, 3, 3), np.int8)}
    with pytest.raises(ModelError, match="larger weight scales"):
        insert_qdq(made.graph, made.plan, params, made.scheme, made.scales, codes)
