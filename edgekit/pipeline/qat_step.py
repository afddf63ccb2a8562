"""Training on top of a quantization: the last rung of the ladder, and the ``qat`` pass."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data.base import Samples
from edgekit.graph import Graph, array
from edgekit.pipeline.distill_step import epochs_json, training_options
from edgekit.progress import Reporter
from edgekit.quantize.quantize import QuantizeResult, Rung
from edgekit.recipe import QatSection

if TYPE_CHECKING:
    from edgekit.data.preprocess import Preprocess
    from edgekit.train.qat import QatResult

#: Time of a training for which neither epochs nor seconds are given.
SECONDS = 120.0
#: Share of zeros from which a weight counts as pruned: its zeros stay.
SPARSE = 0.3


def refine(
    result: QuantizeResult,
    teacher: Graph,
    samples: Samples,
    section: QatSection,
    *,
    preprocess: Preprocess | None = None,
    folder: Path | None = None,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[QuantizeResult, dict[str, Any]]:
    """Train what was quantized to answer as the float network does.

    Args:
        result: What :func:`~edgekit.quantize.quantize.quantize` made.
        teacher: The float network.
        samples: Unlabelled inputs.
        section: How.
        preprocess: How images become inputs.
        folder: What names in ``section`` are relative to.
        checkpoint: A file that the training is kept in while it runs.
        reporter: Tells how far it is.

    Returns:
        The trained quantization with one more rung, and the ``qat`` part of a report.

    Raises:
        DataError: There are no samples, or labels or the checkpoint cannot be used.
        ModelError: A node cannot be trained through, or the networks do not fit.
    """
    from edgekit.train.qat import QatOptions, qat

    reporter = reporter or Reporter()
    if section.epochs is None and section.seconds is None:
        section = section.model_copy(update={"seconds": SECONDS})
    start, before = time.perf_counter(), result.quantization
    trained = qat(
        before.work,
        before.plan,
        before.params,
        before.scheme,
        before.scales,
        teacher,
        samples,
        QatOptions(training_options(section, preprocess, folder), learn_scales=section.learn_scales),
        progress=reporter.update,
        status=reporter.status,
        checkpoint=checkpoint,
        hold=_zeros(before.work) or None,
    )
    after = replace(before, work=trained.graph, params=trained.params, scales=trained.scales)
    db = result.judge.score(trained.quantized).db
    text = (
        f"trained for {len(trained.history)} epochs: held-out difference {trained.start:.4g} → "
        f"{trained.best:.4g}"
    )
    rung = Rung("qad" if section.labels is None else "qat", db, time.perf_counter() - start, text)
    reporter.status(f"{rung.name}: {db:.1f} dB, {text}")
    changed = replace(
        result,
        graph=trained.quantized,
        params=dict(trained.params),
        db=db,
        rungs=(*result.rungs, (rung.name, db)),
        ladder=(*result.ladder, rung),
        seconds={**result.seconds, rung.name: rung.seconds},
        quantization=after,
    )
    return changed, _json(trained, rung)


def _zeros(work: Graph) -> dict[str, np.ndarray[Any, Any]]:
    """Where pruned weights are not zero, by name."""
    found = {}
    for name, value in work.model.graph.initializers.items():
        weight = array(value)
        if weight is not None and weight.dtype.kind == "f" and weight.ndim > 1:
            mask = weight != 0
            if 1 - mask.mean() >= SPARSE:
                found[name] = mask
    return found


def _json(trained: QatResult, rung: Rung) -> dict[str, Any]:
    return {
        "kinds": {name: str(kind) for name, kind in trained.kinds.items()},
        "epochs": epochs_json(trained.history),
        "best_epoch": trained.best_epoch,
        "start": trained.start,
        "best": trained.best,
        "seconds": rung.seconds,
        "notes": list(trained.notes),
    }
