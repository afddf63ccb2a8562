"""Rows for refitting, drawn where the outputs depend on them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgekit.errors import ModelError
from edgekit.passes.verify import max_difference
from edgekit.prune.refit import RefitOptions, refit
from edgekit.prune.refit_focus import Focus, find_focus
from edgekit.prune.refit_layers import find_layers
from edgekit.train.match import Match, OutputKind


def test_rows_drawn_where_it_matters(nets: Any) -> None:
    """Only the left half of a tensor reaches the output: no row comes from the right."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Sin", ["c"], ["n"], name="bend"),
        helper.make_node("Mul", ["n", "half"], ["h"], name="left"),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], name="pool"),
    ]
    half = np.zeros((1, 1, 1, 8), np.float32)
    half[..., :4] = 1
    teacher = nets.build(
        nodes,
        {"x": (1, 3, 8, 8)},
        "y",
        {"w": nets.normal(1, 4, 3, 1, 1), "b": nets.normal(2, 4), "half": half},
    )
    layers = find_layers(teacher, teacher, None).layers
    feeds = nets.feeds_for(teacher, 6)
    focus = find_focus(teacher, layers, feeds, share=1.0, match=None, seed=0)
    assert len(focus.chances["conv"]) == 6
    for sample, chances in enumerate(focus.chances["conv"]):
        assert chances.sum() == pytest.approx(1, abs=1e-5)
        assert chances.reshape(8, 8)[:, 4:].sum() == 0
        drawn = focus.draw("conv", sample, 50, np.random.default_rng(0))
        assert (drawn % 8 < 4).all()
    even = replace(focus, share=0.0).draw("conv", 0, 5000, np.random.default_rng(0))
    assert np.bincount(even, minlength=64).min() > 40
    student = nets.disturbed(teacher, "w")
    found = refit(student, teacher, None, feeds, focus=0.9, options=RefitOptions(ridge=1e-7, search=False))
    assert max_difference(teacher, found.graph) < 1e-3


def test_detectors_draw_where_the_outputs_depend_on_it(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("edgekit.prune.refit")
    shares: list[float] = []

    def spy(*args: Any, share: float, **kwargs: Any) -> Focus:
        shares.append(share)
        return find_focus(*args, share=share, **kwargs)

    monkeypatch.setattr(module, "find_focus", spy)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], name="conv"),
        helper.make_node("Reshape", ["c", "shape"], ["y"], name="cells"),
    ]
    arrays = {"a": nets.normal(1, 6, 3, 1, 1), "shape": np.array([1, 6, 64])}
    teacher = nets.build(nodes, {"x": (1, 3, 8, 8)}, "y", arrays)
    student = nets.disturbed(teacher, "a")
    feeds = nets.feeds_for(teacher, 6)
    refit(student, teacher, None, feeds, match=Match(teacher, {"y": OutputKind.REGRESSION}))
    assert shares == []
    match = Match(teacher, {"y": OutputKind.DETECTOR})
    refit(student, teacher, None, feeds, match=match)
    assert shares == [0.9]
    refit(student, teacher, None, feeds, match=match, focus=0.0)
    assert shares == [0.9]

    def fail(*args: Any, **kwargs: Any) -> Focus:
        raise ModelError("no kernel")

    monkeypatch.setattr(module, "find_focus", fail)
    found = refit(student, teacher, None, feeds, match=match)
    assert found.notes == ("rows were drawn evenly, not where the outputs depend on them: no kernel",)
    with pytest.raises(ModelError, match="no kernel"):
        refit(student, teacher, None, feeds, match=match, focus=0.5)
