"""Tensors that refitting asks for, in passes over the samples, with the memory there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.passes.verify import max_difference
from edgekit.prune.refit import refit
from edgekit.prune.refit_stream import Stream
from edgekit.session import open_runner


def test_little_memory_gives_the_same_weights(nets: Any) -> None:
    """Nothing can be kept between layers; they run again from the inputs, and fewer rows fit."""
    teacher = nets.wide_then_narrow(redundant=False)
    student = nets.disturbed(teacher, "a", "b")
    feeds = nets.feeds_for(teacher, 30)
    rich = refit(student, teacher, None, feeds, positions=20)
    stream = Stream(student, feeds, {"p": 3, "r": 3}, memory=0)
    first = list(stream.at(1, ["p"]))
    again = list(stream.at(3, ["r"]))
    assert stream.reruns == 1
    kept = Stream(student, feeds, {"p": 3, "r": 3}, memory=2**30)
    assert all(np.array_equal(a["p"], b["p"]) for a, b in zip(first, kept.at(1, ["p"]), strict=True))
    assert all(np.allclose(a["r"], b["r"], atol=1e-5) for a, b in zip(again, kept.at(3, ["r"]), strict=True))
    assert kept.reruns == 0
    poor = refit(student, teacher, None, feeds, positions=20, memory_mb=16)
    assert max_difference(rich.graph, poor.graph) < 1e-4


@pytest.mark.parametrize("memory", [0, 10_000, 2**30])
def test_a_tensor_that_is_asked_for_again_later(nets: Any, memory: int) -> None:
    """Two layers read the input; between them nothing runs that either needs."""
    teacher = nets.residual()
    feeds = nets.feeds_for(teacher, 3)
    whole = Stream(teacher, feeds, {"x": 1, "p": 3, "r": 3, "s": 4}, memory=memory)
    found = [list(whole.at(at, names)) for at, names in ((0, ["x"]), (1, ["x"]), (3, ["p", "r"]), (4, ["s"]))]
    runner = open_runner(teacher, threads=1, extra_outputs=["p", "r", "s"])
    for index, feed in enumerate(feeds):
        wanted = {**feed, **runner.run(feed)}
        for step in found:
            for name, value in step[index].items():
                assert np.allclose(value, wanted[name], atol=1e-5), name
    assert (whole.reruns == 0) == (memory == 2**30)
