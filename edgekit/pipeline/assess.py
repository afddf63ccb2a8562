"""The steps that look at the artifacts: placement, latency, parity, task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.measure.decode import Detections
from edgekit.pipeline.layers import without_rescaled
from edgekit.pipeline.split import Watched
from edgekit.pipeline.state import Product, listing
from edgekit.pipeline.steps import (
    COMPARED,
    Context,
    change_json,
    comparison_samples,
    data_json,
    data_key,
    full_name,
    run_step,
)
from edgekit.target import ComparesRuntimes, Estimates

if TYPE_CHECKING:
    from edgekit.data.base import Sample
    from edgekit.graph import Graph, TensorSpec
    from edgekit.measure.detection import DetectionResult
    from edgekit.recipe import EvaluateSection
    from edgekit.session import Runner
    from edgekit.target import Target

Progress = Callable[[int, int | None], None]

#: Samples that layers are compared on.
LAYER_SAMPLES = 4
#: Images that detections are drawn on.
OVERLAYS = 4


def placement_step(context: Context, target: Target, compiled: Product) -> Product:
    """Ask the runtime what it made of each artifact."""

    def make(folder: Path) -> dict[str, Any]:
        return {kind: asdict(target.placement(path)) for kind, path in artifacts(compiled).items()}

    return run_step(context, f"placement on {full_name(target)}", compiled.key, make, name="placement")


def latency_step(
    context: Context,
    target: Target,
    compiled: Product,
    inputs: tuple[TensorSpec, ...],
    before: Mapping[str, Product],
) -> Product:
    """Time the artifacts against each other; on one thread too where the profile uses several.

    Args:
        context: Job, store, reporter.
        target: Where they run.
        compiled: The artifacts.
        inputs: Of the network.
        before: Artifacts of the network before compression, by label.

    Raises:
        ToolError: The measuring process failed.
    """
    from edgekit.measure.machine import machine

    job = context.job
    keys = [product.key for product in (compiled, *before.values())]
    parts = [keys, data_key(job), job.runs, asdict(target.profile), machine()]

    def make(folder: Path) -> dict[str, Any]:
        from edgekit.measure.latency import measure_latency

        paths = _with_before(compiled, before)
        if isinstance(target, Estimates):
            return _estimated(target, paths)
        if not runs_optimized(target, next(iter(paths.values()))):
            return {
                "unmeasured": "the target runs with its optimizations off, so that its speed means nothing"
            }
        feeds = next(iter(job.samples(inputs, limit=1))).feeds
        profile = target.profile
        found = measure_latency(
            paths, feeds, runs=job.runs, profile=profile, progress=context.reporter.update
        )
        data: dict[str, Any] = {"latency": found.to_json()}
        if found.threads != 1:
            context.reporter.step(f"latency on {full_name(target)}, 1 thread")
            single = measure_latency(
                paths,
                feeds,
                threads=1,
                runs=job.runs,
                profile=profile,
                memory=False,
                progress=context.reporter.update,
            )
            data["latency_1t"] = single.to_json()
        return data

    return run_step(context, f"latency on {full_name(target)}", parts, make, name="latency")


def _estimated(target: Estimates, paths: Mapping[str, Path]) -> dict[str, Any]:
    """What the compiler says of the int8 artifacts; the float ones do not run on the unit."""
    found = {kind: target.estimate(path) for kind, path in paths.items() if kind.endswith("int8")}
    latency: dict[str, Any] = {
        kind: item.latency.to_json() for kind, item in found.items() if item.latency is not None
    }
    data: dict[str, Any] = {"estimate": {kind: asdict(item) for kind, item in found.items()}}
    for entry, item in zip(data["estimate"].values(), found.values(), strict=True):
        entry["latency"] = None if item.latency is None else item.latency.to_json()
    if latency:
        data["latency"] = {**latency, "notes": []}  # what must be known stands beside the estimate
    if "int8" in found and found["int8"].latency is None:
        data["unmeasured"] = found["int8"].unmeasured or (
            "the compiler's estimate leaves out operators that do not run on the unit"
        )
    elif not found:
        data["unmeasured"] = "the unit runs int8 only, and nothing was quantized"
    return data


def parity_step(context: Context, target: Target, compiled: Product, graphs: Mapping[str, Graph]) -> Product:
    """Compare the int8 network's outputs and layers with float's."""
    job = context.job
    inputs = graphs["float"].inputs

    def make(folder: Path) -> dict[str, Any]:
        from edgekit.measure.parity import compare_layers

        samples, note = comparison_samples(job, inputs)
        watched = Watched(samples)
        found = compare_layers(
            target.lower(graphs["float"]),
            target.lower(graphs["int8"]),
            watched(),
            limit=COMPARED,
            layer_limit=LAYER_SAMPLES,
            progress=context.reporter.update,
        )
        history = [change_json(change) for change in graphs["int8"].history]
        content = without_rescaled(found.to_json(), graphs["float"], history)
        data = {"parity": {**content, "method": "host", "note": note}, "data": data_json(watched)}
        if isinstance(target, ComparesRuntimes):
            feeds = [sample.feeds for sample, _ in zip(samples, range(LAYER_SAMPLES), strict=False)]
            between = target.compare_runtimes(
                artifacts(compiled)["int8"], target.lower(graphs["int8"]), feeds
            )
            if between is not None:
                data["runtimes"] = {**asdict(between), "ok": between.ok}
        return data

    parts = [compiled.key, evaluation_key(context)]
    return run_step(context, f"parity on {full_name(target)}", parts, make, name="parity")


def task_step(
    context: Context,
    target: Target,
    compiled: Product,
    inputs: tuple[TensorSpec, ...],
    before: Mapping[str, Product],
) -> Product:
    """Measure the task metric of every artifact, those of the network before compression too."""

    def make(folder: Path) -> dict[str, Any]:
        paths = _with_before(compiled, before)
        runners = {kind: target.open(path) for kind, path in paths.items()}
        return _task(context, runners, inputs, context.job.evaluate, folder)

    keys = [product.key for product in (compiled, *before.values())]
    parts = [keys, full_name(target), evaluation_key(context)]
    title = f"{context.job.evaluate.task} on {full_name(target)}"
    return run_step(context, title, parts, make, name="task")


def measure_task(
    context: Context,
    runners: Mapping[str, Runner],
    inputs: tuple[TensorSpec, ...],
    section: EvaluateSection,
) -> dict[str, Any]:
    """The ``task`` part of a report for any networks, by label; the first one is the reference."""
    return dict(_task(context, runners, inputs, section, None)["task"])


def _task(
    context: Context,
    runners: Mapping[str, Runner],
    inputs: tuple[TensorSpec, ...],
    section: EvaluateSection,
    folder: Path | None,
) -> dict[str, Any]:
    if section.task == "detection":
        return _detection(context, runners, inputs, section, folder)
    if section.task == "outputs":
        return _outputs(context, runners, inputs, section)
    return _scores(context, runners, inputs, section)


def artifacts(compiled: Product) -> dict[str, Path]:
    """Files of the artifacts by kind, float first."""
    return {kind: compiled.folder / entry["path"] for kind, entry in compiled.data["artifacts"].items()}


def companion_names(compiled: Product, kind: str) -> tuple[str, ...]:
    """Files that belong to an artifact."""
    return tuple(compiled.data["artifacts"][kind].get("companions", ()))


def artifact_notes(compiled: Product, kind: str) -> tuple[str, ...]:
    """What who loads an artifact must know."""
    return tuple(compiled.data["artifacts"][kind].get("notes", ()))


def _with_before(compiled: Product, before: Mapping[str, Product]) -> dict[str, Path]:
    """Files by kind; of the network before compression under ``original`` and ``original_int8``."""
    found = artifacts(compiled)
    for label, product in before.items():
        found[label] = next(iter(artifacts(product).values()))
    return found


def runs_optimized(target: Target, path: Path) -> bool:
    """Whether the target runs an artifact as its runtime would by default, which is what is timed."""
    return bool(getattr(target.open(path), "optimized", False))


def evaluation_key(context: Context) -> list[Any]:
    """What the result of an evaluation depends on, beside the network."""
    job, section = context.job, context.job.evaluate
    sources = [
        source
        for source in (section.images, section.annotations, section.decode, section.labels)
        if source is not None
    ]
    listed = [listing(source, job.folder) for source in sources]
    return [section.model_dump(mode="json"), listed, data_key(job)]


def _outputs(
    context: Context,
    runners: Mapping[str, Runner],
    inputs: tuple[TensorSpec, ...],
    section: EvaluateSection,
) -> dict[str, Any]:
    from edgekit.measure.outputs import compare_outputs

    reference = "original" if "original" in runners else "float"
    others = [kind for kind in runners if kind != reference]
    if not others:
        return {}
    samples, note = comparison_samples(replace(context.job, evaluate=section), inputs)
    task: dict[str, Any] = {"name": "outputs", "reference": reference}
    notes = [note]
    for index, kind in enumerate(others):
        update = _part(context.reporter.update, index * (samples.count or 0), len(others))
        found = compare_outputs(runners[reference], runners[kind], samples, progress=update)
        task["images"] = found.samples
        task[kind] = {name: figure.to_json() for name, figure in found.measurements().items()}
        if kind == others[0] or kind == "int8":
            task["outputs"] = [asdict(entry) for entry in found.outputs]
        notes += found.notes
    task["note"] = "; ".join(dict.fromkeys(filter(None, notes)))
    skipped = [{"name": item.name, "reason": item.reason} for item in samples.skipped]
    return {"task": task, "skipped": skipped}


def _scores(
    context: Context,
    runners: Mapping[str, Runner],
    inputs: tuple[TensorSpec, ...],
    section: EvaluateSection,
) -> dict[str, Any]:
    """Verification or classification of every network."""
    from edgekit.measure.classification import ClassificationResult, evaluate_classification, read_labels
    from edgekit.measure.verification import VerificationResult, evaluate_verification

    job = context.job
    labels = None if section.labels is None else read_labels(section.labels, job.folder)
    task: dict[str, Any] = {"name": section.task, "note": ""}
    skipped: list[dict[str, str]] = []
    for index, (kind, runner) in enumerate(runners.items()):
        context.reporter.status(kind)
        samples = job.samples(inputs, section.images, section.limit)
        update = _part(context.reporter.update, index * (samples.count or 0), len(runners))
        found: VerificationResult | ClassificationResult
        if section.task == "verification":
            found = evaluate_verification(runner, samples, progress=update)
            task["images"] = found.images
        else:
            found = evaluate_classification(runner, samples, labels, progress=update)
            task["images"] = found.samples
        task[kind] = {name: figure.to_json() for name, figure in found.measurements().items()}
        skipped = [{"name": item.name, "reason": item.reason} for item in samples.skipped]
    return {"task": task, "skipped": skipped}


def _detection(
    context: Context,
    runners: Mapping[str, Runner],
    inputs: tuple[TensorSpec, ...],
    section: EvaluateSection,
    folder: Path | None,
) -> dict[str, Any]:
    from edgekit.measure.decode import decoder
    from edgekit.measure.detection import evaluate_detection

    job = context.job
    decode = decoder(str(section.decode), folder=job.folder)
    task: dict[str, Any] = {"name": "detection"}
    results: dict[str, DetectionResult] = {}
    skipped: list[dict[str, str]] = []
    finished = 0
    for kind, runner in runners.items():
        context.reporter.status(kind)
        samples = job.samples(inputs, section.images, section.limit)
        found = evaluate_detection(
            runner,
            samples,
            str(section.annotations),
            decode,
            progress=_part(context.reporter.update, finished, len(runners)),
            keep=0 if folder is None else OVERLAYS,
            folder=job.folder,
        )
        results[kind] = found
        finished += found.images
        task[kind] = {name: figure.to_json() for name, figure in found.measurements().items()}
        task["images"] = found.images
        task["note"] = "; ".join(found.notes)
        task.setdefault("per_class", {})[kind] = found.per_class
        skipped = [{"name": item.name, "reason": item.reason} for item in samples.skipped]
    first = next(iter(results.values()))
    return {
        "task": task,
        "skipped": skipped,
        "unannotated": list(first.unannotated),
        "classes": list(first.names),
        "overlays": [] if folder is None else _draw(results, first.names, folder),
    }


def _part(progress: Progress, finished: int, parts: int) -> Progress:
    """Progress of one of several equal parts of a step, of which so many samples are finished."""

    def update(done: int, total: int | None) -> None:
        progress(finished + done, None if total is None else total * parts)

    return update


def _draw(results: Mapping[str, DetectionResult], names: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """Pictures of what each network found; empty where the samples are no images."""
    from edgekit.measure.overlay import draw_detections, save_jpeg

    found = []
    kept: dict[str, tuple[tuple[Sample, Detections], ...]] = {kind: r.kept for kind, r in results.items()}
    for index, (sample, _) in enumerate(next(iter(kept.values()))):
        if sample.image is None:
            continue
        entry = {"name": sample.name}
        stem = f"{index}-{PurePosixPath(sample.name).stem}"
        for kind, pairs in kept.items():
            entry[kind] = f"{stem}-{kind}.jpg"
            save_jpeg(draw_detections(sample.image, pairs[index][1], names), folder / entry[kind])
        found.append(entry)
    return found
