"""Blocks that are done, on disk, so that a run that was killed goes on behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.graph import Graph
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import Plan
from edgekit.quantize.qparams import QParams
from edgekit.quantize.reconstruct.options import BlockResult, ReconstructOptions
from edgekit.quantize.scheme import Scheme
from edgekit.train.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Done:
    """What a block changed.

    Attributes:
        result: For the user.
        codes: New codes by node.
        shifts: What is added to biases, by node.
        steps: New activation scales by same-scale group.
    """

    result: BlockResult
    codes: Mapping[str, Array] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)


def fingerprint(
    work: Graph,
    teacher: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    scheme: Scheme,
    scales: Mapping[str, Array],
    options: ReconstructOptions,
    samples: str,
) -> dict[str, str]:
    """What a run was made with; ``samples`` is the hash of what it is fed."""
    stated = hashlib.sha256()
    for name in sorted(scales):
        stated.update(name.encode())
        stated.update(np.ascontiguousarray(scales[name]).tobytes())
    return {
        "network": work.sha256(),
        "teacher": teacher.sha256(),
        "quantized nodes": _hash(
            sorted(plan.integer_nodes), sorted(plan.groups.items()), sorted(plan.wide_nodes)
        ),
        "activation ranges": _hash(sorted((t, repr(p)) for t, p in params.items())),
        "scheme": _hash(scheme.model_dump_json()),
        "weight scales": stated.hexdigest(),
        "options": repr(options),
        "samples": samples,
    }


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def save(path: Path, done: Sequence[Done], stamp: Mapping[str, str]) -> None:
    """Write the blocks that are done.

    Raises:
        OutputError: The file cannot be written.
    """
    save_checkpoint(path, {"blocks": [_packed(d) for d in done]}, stamp)


def load(path: Path, stamp: Mapping[str, str]) -> list[Done]:
    """The blocks that are done.

    Raises:
        DataError: The file is damaged.
        UsageError: It belongs to another run.
    """
    return [_unpacked(d) for d in load_checkpoint(path, stamp)["blocks"]]


def _packed(done: Done) -> dict[str, Any]:
    result = done.result
    arrays = {"codes": done.codes, "shifts": done.shifts}
    return {
        "result": [
            result.name,
            list(result.nodes),
            result.noise_before,
            result.noise_after,
            result.seconds,
            result.note,
        ],
        "steps": {k: float(v) for k, v in done.steps.items()},
        **{
            key: {n: torch.from_numpy(np.array(a)) for n, a in found.items()} for key, found in arrays.items()
        },
    }


def _unpacked(state: Mapping[str, Any]) -> Done:
    name, nodes, before, after, seconds, note = state["result"]
    arrays = {key: {n: t.numpy() for n, t in state[key].items()} for key in ("codes", "shifts")}
    return Done(
        BlockResult(name, tuple(nodes), before, after, seconds, note), steps=dict(state["steps"]), **arrays
    )
