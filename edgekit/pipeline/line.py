"""The whole line, from a job to a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import edgekit
from edgekit.bundle import (
    ArtifactEntry,
    DecoderEntry,
    Manifest,
    ModelEntry,
    Provenance,
    SampleEntry,
    check_out,
    folder_name,
    write_manifest,
)
from edgekit.describe import describe_artifact
from edgekit.errors import UsageError
from edgekit.files import whole_folder
from edgekit.pipeline.assess import (
    artifact_notes,
    artifacts,
    companion_names,
    latency_step,
    parity_step,
    placement_step,
    task_step,
)
from edgekit.pipeline.compress import Compressed, compress
from edgekit.pipeline.job import Job
from edgekit.pipeline.report_json import TargetProducts, build_report, drop
from edgekit.pipeline.state import Product, Store
from edgekit.pipeline.steps import (
    Context,
    Network,
    assumes_preprocessing,
    capture_step,
    check_samples,
    check_task,
    comparison_samples,
    compile_step,
    data_key,
    full_name,
    prepare_step,
    quantize_step,
)
from edgekit.pipeline.unit_steps import coverage_step, emulation_step
from edgekit.progress import Reporter
from edgekit.registry import load_target
from edgekit.report.html import render
from edgekit.target import ChoosesEnds

if TYPE_CHECKING:
    from edgekit.graph import Graph
    from edgekit.target import Target

#: Samples stored in a bundle with the outputs they give.
STORED = 2
#: Further tries, and what each adds to ``target_db``, while the task metric loses more than ``max_drop``.
TRIES, MORE_DB = 2, 6.0
_PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "torch", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What a run made.

    Attributes:
        bundle: The bundle's folder.
        report: The report, as in ``report.json``.
    """

    bundle: Path
    report: dict[str, Any]

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the budgets that were missed."""
        return tuple(line["name"] for line in self.report["budget"] if not line["ok"])


def state_folder(out: Path) -> Path:
    """Where the products of a run into ``out`` are kept: beside it, in ``.edgekit``."""
    out = out.absolute()
    return out.parent / ".edgekit" / out.name


def run_line(job: Job, out: Path, *, fresh: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Run the line and write the bundle; steps that an earlier run finished are not done again.

    Args:
        job: What is asked for.
        out: The bundle's folder; an earlier bundle there is replaced at the very end.
        fresh: Forget what earlier runs made.
        reporter: Tells the user.

    Raises:
        EdgekitError: Anything that can go wrong; no bundle is left half-made.
    """
    check_out(out)
    targets = _targets(job)
    context = Context(job, Store(state_folder(out), fresh=fresh), reporter or Reporter(), fresh)
    check_task(job)
    network = capture_step(context)
    if assumes_preprocessing(job, network.graph.inputs):
        context.reporter.note(f"Preprocessing {job.preprocess_note}")
    check_samples(job, network.graph.inputs)
    compressed = compress(context, network, targets[0])
    made = [_line(context, network, compressed.network, target) for target in targets]
    context.reporter.step("report")
    report = build_report(context, network, compressed, made)
    with whole_folder(out) as folder:
        _write_bundle(folder, context, compressed, {target.name: target for target in made}, report)
    context.store.prune()
    context.reporter.close()
    return Outcome(out, report)


def _targets(job: Job) -> tuple[Target, ...]:
    found = tuple(_with_io(load_target(name), job.io) for name in job.targets)
    names = [full_name(target) for target in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"the target {twice[0]} is named twice", where="targets")
    if not found:
        raise UsageError("no target is named", where="targets")
    return found


def _with_io(target: Target, io: Literal["quantized", "float"] | None) -> Target:
    if io is None:
        return target
    if not isinstance(target, ChoosesEnds):
        raise UsageError(
            f"'{target.name}' has no choice: its artifacts take and return float",
            where="io",
            hint="litert, ethos-u and tflm take both",
        )
    return target.with_io(io)


def _line(context: Context, original: Network, network: Network, target: Target) -> TargetProducts:
    name = full_name(target)
    compressed = network is not original
    original, network = prepare_step(original, target), prepare_step(network, target)
    products = TargetProducts(name, target.title, folder_name(name), target.profile.host)
    inputs = network.graph.inputs
    before = _original_products(context, original, target) if compressed else {}
    graphs = _graphs(context, network, target, products, before, original.graph)
    compiled = products.products["compile"]
    products.products["placement"] = placement_step(context, target, compiled)
    products.products["latency"] = latency_step(context, target, compiled, inputs, before)
    if "int8" in graphs:
        products.products["parity"] = parity_step(context, target, compiled, graphs)
    products.products["task"] = task_step(context, target, compiled, inputs, before)
    for name, product in (
        ("coverage", coverage_step(context, target, compiled)),
        ("emulation", emulation_step(context, target, compiled, inputs)),
    ):
        if product is not None:
            products.products[name] = product
    products.before = before
    return products


def _original_products(context: Context, original: Network, target: Target) -> dict[str, Product]:
    """The artifacts of the network before compression that are to be compared with, by their kind's label."""
    found: dict[str, Product] = {}
    job = context.job
    if "float" in job.compare:
        found["original"] = compile_step(context, target, {"float": original.graph})
    if "int8" in job.compare and job.quantize and target.scheme is not None:
        graph, _ = quantize_step(context, original, target.scheme, job.options)
        found["original_int8"] = compile_step(context, target, {"int8": graph})
    return found


def _graphs(
    context: Context,
    network: Network,
    target: Target,
    products: TargetProducts,
    before: Mapping[str, Product],
    teacher: Graph,
) -> dict[str, Graph]:
    """Quantize and compile; again with a higher aim while the task metric loses more than it may."""
    job = context.job
    graphs = {"float": network.graph}
    if target.scheme is None or not job.quantize:
        products.products["compile"] = compile_step(context, target, graphs)
        return graphs
    options = job.options
    for attempt in range(TRIES + 1):
        graph, quantized = quantize_step(context, network, target.scheme, options, teacher)
        graphs["int8"] = graph
        compiled = compile_step(context, target, graphs)
        products.products.update({"quantize": quantized, "compile": compiled})
        if job.max_drop is None:
            break
        task = task_step(context, target, compiled, network.graph.inputs, before)
        lost = drop({"task": task.data.get("task")})
        if lost is None or lost <= job.max_drop:
            break
        text = f"int8 loses {lost:.4f}, more than quantize.max_drop = {job.max_drop:g}"
        if attempt == TRIES or len(quantized.data["raised"]) >= quantized.data["raised_limit"]:
            context.warn(f"{products.name}: {text}; all repairs are used up")
            break
        context.reporter.note(f"{text}: trying again")
        options = replace(options, target_db=options.target_db + MORE_DB)
    return graphs


def _write_bundle(
    folder: Path,
    context: Context,
    compressed: Compressed,
    made: Mapping[str, TargetProducts],
    report: dict[str, Any],
) -> None:
    network = compressed.network
    details: dict[str, ArtifactEntry] = {}
    paths: dict[str, dict[str, str]] = {}
    for name, target in made.items():
        (folder / target.folder).mkdir()
        paths[name] = {}
        compiled = target.products["compile"]
        for kind, file in artifacts(compiled).items():
            companions = [f"{target.folder}/{name}" for name in companion_names(compiled, kind)]
            relative = f"{target.folder}/{file.name}"
            for path in (relative, *companions):
                shutil.copyfile(compiled.folder / Path(path).name, folder / path)
            paths[name][kind] = relative
            described = describe_artifact(folder / relative, context.job.preprocess.layout)
            more = {"companions": tuple(companions), "notes": artifact_notes(compiled, kind)}
            details[relative] = described.model_copy(update=more)
        _copy_overlays(folder, target)
    _copy_compression(folder, compressed)
    manifest = Manifest(
        model=ModelEntry(
            name=_model_name(context.job.model), source=network.data["source"], sha256=network.data["sha256"]
        ),
        preprocess=context.job.preprocess.model_dump(mode="json"),
        preprocess_note=context.job.preprocess_note,
        artifacts=paths,
        details=details,
        decoder=_decoder(context.job, next(iter(made.values()))),
        samples=_store_samples(folder, context, network, paths),
        provenance=_provenance(context.job, report),
    )
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report, folder), encoding="utf-8")
    write_manifest(folder, manifest)


def _copy_overlays(folder: Path, target: TargetProducts) -> None:
    for item in target.data("task", "overlays", []):
        (folder / "overlays").mkdir(exist_ok=True)
        for kind, name in item.items():
            if kind != "name":
                source = target.products["task"].folder / name
                shutil.copyfile(source, folder / "overlays" / f"{target.folder}-{name}")


def _copy_compression(folder: Path, compressed: Compressed) -> None:
    """Plans and trained weights: to cut the user's own module, and to save a later run the work."""
    for number, product in enumerate(compressed.products, start=1):
        for name in ("plan.json", "weights.npz"):
            if (product.folder / name).is_file():
                (folder / "compress").mkdir(exist_ok=True)
                shutil.copyfile(
                    product.folder / name, folder / "compress" / f"{number}-{product.name}-{name}"
                )


def _store_samples(
    folder: Path, context: Context, network: Network, paths: Mapping[str, Mapping[str, str]]
) -> tuple[SampleEntry, ...]:
    """Write a few inputs with what every artifact makes of them."""
    (folder / "samples").mkdir()
    inputs = network.graph.inputs
    samples, _ = comparison_samples(context.job, inputs)
    runners = {
        (name, kind): load_target(name).open(folder / path)
        for name, kinds in paths.items()
        for kind, path in kinds.items()
    }
    entries = []
    for index, sample in enumerate(samples):
        if index == STORED:
            break
        arrays = {f"input.{i}": sample.feeds[spec.name] for i, spec in enumerate(inputs)}
        for (name, kind), runner in runners.items():
            found = runner.run(sample.feeds)
            for i, spec in enumerate(network.graph.outputs):
                arrays[f"{folder_name(name)}.{kind}.{i}"] = found[spec.name]
        path = f"samples/{index}.npz"
        np.savez_compressed(folder / path, **arrays)  # type: ignore[arg-type]
        entries.append(SampleEntry(name=sample.name, path=path))
    return tuple(entries)


def _decoder(job: Job, target: TargetProducts) -> DecoderEntry | None:
    if job.evaluate.task != "detection" or job.evaluate.decode is None:
        return None
    return DecoderEntry(name=job.evaluate.decode, classes=tuple(target.data("task", "classes", [])))


def _provenance(job: Job, report: dict[str, Any]) -> Provenance:
    return Provenance(
        edgekit=edgekit.__version__,
        command=job.command,
        created=report["created"],
        versions={name: metadata.version(name) for name in _PACKAGES},
        data_sha256=data_key(job),
    )


def _model_name(source: str) -> str:
    if ":" in source and not Path(source).exists():
        return source.partition(":")[0].rpartition(".")[2]
    return Path(source).stem
