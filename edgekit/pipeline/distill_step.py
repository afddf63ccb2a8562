"""The ``distill`` step: training against the teacher, or weights that such a training left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, array
from edgekit.pipeline.material import Held, Json, Material, sizes
from edgekit.recipe import DistillSection, QatSection

if TYPE_CHECKING:
    from edgekit.data.preprocess import Preprocess
    from edgekit.train.loop import EpochStats
    from edgekit.train.options import DistillOptions


def distill_graph(
    material: Material,
    section: DistillSection,
    graph: Graph,
    held: Held | None = None,
    saved: Path | None = None,
    checkpoint: Path | None = None,
) -> tuple[Graph, Json]:
    """Train a graph to do what its teacher does.

    Args:
        material: The original, which teaches where the section names no other network; samples.
        section: How long and how.
        graph: The student.
        held: What the training has to respect.
        saved: Weights to take in place of a training.
        checkpoint: Where an interrupted training is kept.

    Returns:
        The trained graph, and the step's part of the report.

    Raises:
        ModelError: The saved weights do not fit, or teacher and student have other inputs or outputs.
    """
    start = time.monotonic()
    distances = {"before": material.distance(graph)}
    step: Json = {"pass": "distill", **sizes(graph, graph), "notes": [], "saved": None}
    if saved is not None:
        found = load_weights(graph, saved)
        step["saved"] = f"the weights come from {saved.name}"
    else:
        found, trained = _train(material, section, graph, held or Held(), checkpoint)
        step.update(trained)
    step["distance"] = {**distances, "after": material.distance(found)}
    step["seconds"] = time.monotonic() - start
    step["summary"] = (
        step["saved"]
        or f"{len(step['epochs'])} epochs, the best is {step['best_epoch']}: "
        f"distance to the original {distances['before']:.3f} to {step['distance']['after']:.3f}"
    )
    return found, step


def save_weights(graph: Graph, before: Graph, path: Path) -> None:
    """Write the weights that differ from ``before`` as half-precision arrays by name."""
    old = before.model.graph.initializers
    changed = {}
    for name, value in graph.model.graph.initializers.items():
        now, then = array(value), array(old.get(name))
        if (
            now is not None
            and now.dtype == np.float32
            and not (then is not None and np.array_equal(now, then))
        ):
            changed[str(name)] = now.astype(np.float16)
    np.savez_compressed(path, **changed)  # type: ignore[arg-type]


def load_weights(graph: Graph, path: Path) -> Graph:
    """Put weights from :func:`save_weights` into a graph.

    Raises:
        ModelError: The file cannot be read, or a weight is not there or has another shape.
    """
    from edgekit.passes.edit import set_constant

    try:
        with np.load(path) as file:
            weights = {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path)) from error
    found = graph.copy()
    initializers = found.model.graph.initializers
    for name, weight in weights.items():
        now = array(initializers.get(name))
        if now is None or now.shape != weight.shape:
            here = "which is not in the network" if now is None else f"which has shape {now.shape} here"
            raise ModelError(
                f"holds '{name}' of shape {weight.shape}, {here}",
                where=str(path),
                hint="It was saved for another network or another pruning: run with --fresh to train anew",
            )
        set_constant(initializers[name], weight)
    return found.with_change(Change("distill", f"{len(weights)} trained weights from {path.name}"))


def _train(
    material: Material, section: DistillSection, graph: Graph, held: Held, checkpoint: Path | None
) -> tuple[Graph, Json]:
    from edgekit.train.distill import distill

    teacher = material.original
    if section.teacher is not None:
        from edgekit.capture import capture

        teacher = capture(section.teacher, folder=material.folder).graph
    weights = graph.model.graph.initializers
    masks: dict[str, np.ndarray[Any, Any]] = {}
    for name in held.sparse:
        weight = array(weights.get(name))
        if weight is not None:
            masks[name] = weight != 0
    result = distill(
        graph,
        teacher,
        material.samples,
        _options(material, section, held),
        progress=material.reporter.update,
        status=material.reporter.status,
        checkpoint=checkpoint,
        hold=masks or None,
    )
    return result.graph, {
        "kinds": {name: str(kind) for name, kind in result.kinds.items()},
        "epochs": epochs_json(result.history),
        "best_epoch": result.best_epoch,
        "notes": list(result.notes),
    }


def training_options(
    section: DistillSection | QatSection, preprocess: Preprocess | None, folder: Path | None
) -> DistillOptions:
    """What the steps that train have in common; labels are read."""
    from edgekit.measure.classification import read_labels
    from edgekit.train.augment import NONE
    from edgekit.train.options import DistillOptions

    options = DistillOptions(
        epochs=section.epochs,
        seconds=section.seconds,
        rate=section.rate,
        batch=section.batch,
        preprocess=preprocess,
        augment=None if section.augment else NONE,
        labels=None if section.labels is None else read_labels(section.labels, folder),
        seed=section.seed,
    )
    return options if section.box_weight is None else replace(options, box_weight=section.box_weight)


def epochs_json(history: Sequence[EpochStats]) -> list[Json]:
    """A training's epochs as the report has them."""
    return [{"epoch": e.epoch, "loss": e.loss, "held_out": e.held_out, "rate": e.rate} for e in history]


def _options(material: Material, section: DistillSection, held: Held) -> DistillOptions:
    options = replace(
        training_options(section, material.preprocess, material.folder),
        features=None if section.features else 0.0,
        # The plan says which of the original's channels a tensor holds; another teacher has its own.
        plan=held.plan if section.teacher is None else None,
    )
    return options if section.temperature is None else replace(options, temperature=section.temperature)
