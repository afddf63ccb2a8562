"""Whether two graphs compute the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import ModelError
from edgekit.graph import Graph, TensorSpec

Feeds = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Difference:
    """How far one output of two networks is apart.

    Attributes:
        output: Its name.
        max_absolute: Largest absolute difference; NaN where one side is NaN and the other is not.
        magnitude: Largest absolute value of the first network's output.
        mismatched: Share of the elements that differ, for integer and boolean outputs; otherwise 0.
    """

    output: str
    max_absolute: float
    magnitude: float
    mismatched: float = 0.0

    @property
    def relative(self) -> float:
        """Largest difference over largest value; for integers the share of elements that differ."""
        if self.mismatched:
            return self.mismatched
        return self.max_absolute / self.magnitude if self.magnitude > 0 else self.max_absolute


def max_difference(a: Graph, b: Graph, seed: int = 0) -> float:
    """Largest absolute difference of any output on one seeded random input.

    Raises:
        ModelError: The graphs have other inputs or outputs, or one of them does not run.
    """
    from edgekit.session import open_runner

    feeds = random_feeds(a.inputs, seed)
    outputs = []
    for graph in (a, b):
        runner = open_runner(graph, threads=1)
        if set(runner.input_names) != set(feeds):
            raise ModelError(
                f"the graphs have other inputs: {sorted(feeds)} and {sorted(runner.input_names)}"
            )
        outputs.append(runner.run(feeds))
    if list(outputs[0]) != list(outputs[1]):
        raise ModelError(f"the graphs have other outputs: {list(outputs[0])} and {list(outputs[1])}")
    found = [compare(name, outputs[0][name], outputs[1][name]).max_absolute for name in outputs[0]]
    return max(found, default=0.0)


def random_feeds(specs: Iterable[TensorSpec], seed: int) -> Feeds:
    """Inputs to compare networks with.

    Floats are standard normal for even seeds and uniform in [0, 1) for odd ones. Integers are 0 or 1, which
    every embedding and mask knows, and always 1 for odd seeds, so that no mask hides everything.
    """
    random = np.random.default_rng(seed)
    feeds: Feeds = {}
    values: np.ndarray[Any, Any]
    for spec in specs:
        if np.issubdtype(spec.dtype, np.floating):
            values = random.standard_normal(spec.shape) if seed % 2 == 0 else random.random(spec.shape)
        else:
            values = random.integers(0, 2, spec.shape) if seed % 2 == 0 else np.ones(spec.shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def compare(name: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Difference:
    """Compare one output; equal infinities and NaNs in the same place count as equal.

    Raises:
        ModelError: The shapes differ.
    """
    if a.shape != b.shape:
        raise ModelError(f"has shape {b.shape}, the original's has {a.shape}", where=f"output '{name}'")
    if a.size == 0:
        return Difference(name, 0.0, 0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    apart = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    finite = np.abs(x[np.isfinite(x)])
    magnitude = float(finite.max()) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        delta = float(np.abs(x[apart] - y[apart]).max()) if apart.any() else 0.0
    exact = not np.issubdtype(a.dtype, np.floating) and a.dtype.kind in "iub"
    return Difference(name, delta, magnitude, float(apart.mean()) if exact else 0.0)


def worst(runs: Sequence[Mapping[str, Difference]]) -> list[Difference]:
    """For each output the run in which it was furthest off."""
    names = list(runs[0]) if runs else []
    # A NaN is further off than any number, and max() alone would let it pass.
    return [
        max((run[name] for run in runs), key=lambda d: np.inf if np.isnan(d.relative) else d.relative)
        for name in names
    ]
