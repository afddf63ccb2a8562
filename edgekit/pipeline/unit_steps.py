"""The steps that only targets with a unit of their own have: what runs on it, and what its emulator says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ToolError
from edgekit.pipeline.assess import artifacts, evaluation_key, measure_task
from edgekit.pipeline.state import Product
from edgekit.pipeline.steps import Context, comparison_samples, full_name, run_step
from edgekit.target import Covers, Emulates

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec
    from edgekit.session import Arrays, Runner
    from edgekit.target import Coverage, Target

#: Samples that the emulator runs where the recipe names no number.
EMULATED = 8


def coverage_step(context: Context, target: Target, compiled: Product) -> Product | None:
    """Which nodes of the int8 artifact run on the unit; None for a target that does not tell."""
    path = artifacts(compiled).get("int8")
    if not isinstance(target, Covers) or path is None:
        return None
    covers = target

    def make(folder: Path) -> dict[str, Any]:
        return coverage_json(covers.coverage(path))

    return run_step(context, f"coverage on {full_name(target)}", compiled.key, make, name="coverage")


def coverage_json(found: Coverage) -> dict[str, Any]:
    """As the report has it."""
    return {**asdict(found), "nodes": found.nodes, "on_unit": found.on_unit}


def emulation_step(
    context: Context, target: Target, compiled: Product, inputs: tuple[TensorSpec, ...]
) -> Product | None:
    """The task metric of the int8 artifact in the unit's emulator, beside this machine's on the same samples.

    None for a target without an emulator, or where the recipe wants no sample emulated.
    """
    path = artifacts(compiled).get("int8")
    section = context.job.evaluate
    count = EMULATED if section.emulated is None else section.emulated
    if not isinstance(target, Emulates) or path is None or count == 0:
        return None
    emulator = target

    def make(folder: Path) -> dict[str, Any]:
        few = section.model_copy(update={"limit": min(count, section.limit or count)})
        job = context.job
        samples = (
            comparison_samples(replace(job, evaluate=few), inputs)[0]
            if section.images is None
            else job.samples(inputs, section.images, few.limit)
        )
        feeds = [sample.feeds for sample, _ in zip(samples, range(count), strict=False)]
        began = time.perf_counter()
        try:
            found = emulator.emulate(path, feeds)
        except ToolError as error:
            return {"emulator": {"unmeasured": error.what}}
        seconds = time.perf_counter() - began
        runners: dict[str, Runner] = {
            "float": target.open(artifacts(compiled)["float"]),
            "int8": target.open(path),
            "emulator": Recorded(feeds, found),
        }
        task = measure_task(context, runners, inputs, few)
        kept = {k: task[k] for k in ("name", "images", *runners) if k in task}
        return {"emulator": {**kept, "samples": len(feeds), "seconds": seconds}}

    parts = [compiled.key, full_name(target), count, evaluation_key(context)]
    return run_step(
        context, f"{section.task} in the emulator of {full_name(target)}", parts, make, name="emulation"
    )


class Recorded:
    """A :class:`~edgekit.session.Runner` that gives the outputs which were computed before."""

    def __init__(
        self, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]], outputs: Sequence[Arrays]
    ) -> None:
        self._known = {_digest(feed): found for feed, found in zip(feeds, outputs, strict=True)}

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs of a sample.

        Raises:
            KeyError: It was not among those that were run.
        """
        return self._known[_digest(feeds)]


def _digest(feeds: Mapping[str, np.ndarray[Any, Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(feeds):
        found.update(name.encode())
        found.update(np.ascontiguousarray(feeds[name]).tobytes())
    return found.hexdigest()
