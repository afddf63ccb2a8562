"""The steps that make something: capture, quantize, compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import file_sha256
from edgekit.data.base import Samples
from edgekit.data.preprocess import Preprocess, image_shape
from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, Refusal, TensorSpec
from edgekit.pipeline.job import Job
from edgekit.pipeline.split import Part, Watched, splits
from edgekit.pipeline.state import Product, Store, digest, listing
from edgekit.progress import Reporter
from edgekit.quantize.quantize import Options, QuantizeResult, quantize
from edgekit.recipe import QatSection
from edgekit.target import ChoosesEnds, Prepares

if TYPE_CHECKING:
    from edgekit.quantize.scheme import Scheme
    from edgekit.target import Target

#: Samples that outputs are compared on.
COMPARED = 32
#: What is said of samples that were held back.
UNSEEN = "compared on samples that calibration did not see"


@dataclass
class Context:
    """What every step needs.

    Attributes:
        job: What is asked for.
        store: Products of this and earlier runs.
        reporter: Tells the user.
        fresh: Whether results saved with the recipe are made afresh too.
        warnings: What the report must point out.
    """

    job: Job
    store: Store
    reporter: Reporter
    fresh: bool = False
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


@dataclass(frozen=True)
class Network:
    """The captured network and what identifies it."""

    graph: Graph
    data: dict[str, Any]
    key: str


def full_name(target: Target) -> str:
    """Target and profile: ``ort-cpu:host``."""
    return f"{target.name}:{target.profile.name}"


def capture_step(context: Context) -> Network:
    """Capture the network, or load what an earlier run captured.

    Raises:
        ModelError: The network cannot be used.
        UsageError: The source or a shape has a wrong value.
    """
    job = context.job
    parts = ["capture", job.model, str(job.folder), _fingerprint(job), sorted(job.input_shapes.items())]

    def make(folder: Path) -> dict[str, Any]:
        from edgekit.capture import capture

        captured = capture(job.model, input_shapes=job.input_shapes or None, folder=job.folder)
        captured.graph.save(folder / "float.onnx")
        return {
            "source": captured.source,
            "sha256": captured.sha256,
            "difference": captured.difference.to_json(),
            "history": [change_json(change) for change in captured.graph.history],
        }

    product = run_step(context, "capture", parts, make)
    graph = load_graph(product.folder / "float.onnx", product.data["history"])
    return Network(graph, product.data, digest(product.data["sha256"], graph.sha256()))


def prepare_step(network: Network, target: Target) -> Network:
    """The network in the float form that the target wants to quantize; itself where it wants no other."""
    if not isinstance(target, Prepares):
        return network
    graph = target.prepare(network.graph)
    if len(graph.history) == len(network.graph.history):
        return network
    return replace(network, graph=graph, key=digest(network.key, graph.sha256()))


def quantize_step(
    context: Context, network: Network, scheme: Scheme, options: Options, teacher: Graph | None = None
) -> tuple[Graph, Product]:
    """Quantize for a scheme, and train what came of it where that is asked for; targets that share the scheme
    share the product.

    Args:
        context: Job, store, reporter.
        network: The float network.
        scheme: Number formats.
        options: Of the quantizer.
        teacher: The network before compression, which a training learns from.

    Raises:
        DataError: The samples cannot be used.
        ModelError: The network takes values that are not finite.
    """
    job = context.job
    parts = [
        network.key,
        data_key(job),
        asdict(options),
        scheme.model_dump(mode="json"),
        holds_back(job, network),
        None if job.qat is None else job.qat.model_dump(mode="json"),
        job.qad_seconds,
    ]

    checkpoint = context.store.folder / f".quantize-{digest(parts[:2], parts[3])[:16]}.npz"

    def make(folder: Path) -> dict[str, Any]:
        samples = calibration_samples(job, network.graph.inputs)
        watched = Watched(samples)
        result = quantize(
            network.graph,
            scheme,
            watched,
            options,
            input_ranges=input_ranges(network.graph.inputs, job.preprocess, samples),
            total=samples.count,
            progress=context.reporter.update,
            status=context.reporter.status,
            checkpoint=checkpoint,
        )
        trained = None
        section = job.qat
        if section is None and job.qad_seconds and result.db < options.target_db:
            section = QatSection(seconds=job.qad_seconds)
        if section is not None:
            result, trained = _train(context, network, result, section, teacher, checkpoint)
        result.graph.save(folder / "int8.onnx")
        found = {**quantization_json(result, options, scheme), "data": data_json(watched)}
        return found if trained is None else {**found, "qat": trained}

    product = run_step(context, "quantize", parts, make)
    return load_graph(product.folder / "int8.onnx", product.data["history"]), product


def _train(
    context: Context,
    network: Network,
    result: QuantizeResult,
    section: QatSection,
    teacher: Graph | None,
    checkpoint: Path,
) -> tuple[QuantizeResult, dict[str, Any]]:
    from edgekit.pipeline.qat_step import refine

    job, inputs = context.job, network.graph.inputs
    samples = calibration_samples(job, inputs)
    if section.data is not None or section.limit is not None:
        samples = job.samples(inputs, section.data or job.data, section.limit)
    file = checkpoint.with_suffix(".pt")
    found = refine(
        result,
        teacher or network.graph,
        samples,
        section,
        preprocess=job.preprocess,
        folder=job.folder,
        checkpoint=file,
        reporter=context.reporter,
    )
    file.unlink(missing_ok=True)
    return found


def compile_step(context: Context, target: Target, graphs: Mapping[str, Graph]) -> Product:
    """Write the artifacts of a target.

    Raises:
        OutputError: They cannot be written.
        EdgekitError: The target refuses a graph.
    """
    ends = target.io if isinstance(target, ChoosesEnds) else None
    parts = [full_name(target), ends, {kind: graph.sha256() for kind, graph in graphs.items()}]

    def make(folder: Path) -> dict[str, Any]:
        found = {}
        for kind, graph in graphs.items():
            lowered = target.lower(graph)
            artifact = target.compile(lowered, kind, folder)
            companions = [path.name for path in artifact.companions]
            if artifact.path.suffix != ".onnx":
                # The graph that it was made from is what parity is measured against, in the bundle too.
                companions.append(reference_name(kind))
                lowered.save(folder / companions[-1])
            found[kind] = {
                "path": artifact.path.name,
                "size_bytes": artifact.size_bytes,
                "companions": companions,
                "notes": list(artifact.notes),
            }
        return {"artifacts": found}

    return run_step(context, f"compile for {full_name(target)}", parts, make, name="compile")


def reference_name(kind: str) -> str:
    """File of the ONNX graph that an artifact of another format was made from."""
    return f"{kind}.reference.onnx"


def run_step(
    context: Context, title: str, parts: Any, make: Callable[[Path], dict[str, Any]], *, name: str = ""
) -> Product:
    """One step, announced to the user under ``title``."""
    name = name or title
    if context.store.has(name, parts):
        context.reporter.note(f"{title}: kept from an earlier run")
    else:
        context.reporter.step(title)
    return context.store.step(name, parts, make)


def calibration_samples(job: Job, inputs: tuple[TensorSpec, ...]) -> Samples:
    """The samples to calibrate with; without those held back where the task compares on them."""
    samples = job.samples(inputs, limit=job.limit)
    return Part(samples, held=False) if _wants_part(job) and splits(samples) else samples


def comparison_samples(job: Job, inputs: tuple[TensorSpec, ...]) -> tuple[Samples, str]:
    """The samples to compare int8 with float on, and what the reader must know about them."""
    section = job.evaluate
    if section.images is not None:
        limit = min(section.limit or COMPARED, COMPARED)
        return job.samples(inputs, section.images, limit), ""
    samples = job.samples(inputs, limit=job.limit)
    limit = min(section.limit or COMPARED, COMPARED)
    if splits(samples):
        return Part(samples, held=True, limit=limit), UNSEEN
    again = job.samples(inputs, limit=min(limit, job.limit or limit))
    return again, "compared on the calibration samples themselves: there are too few to hold any back"


def check_task(job: Job) -> None:
    """Refuse a wrong decoder or unusable annotations before any work.

    Raises:
        InputError: The recipe's ``[evaluate]`` cannot be used.
    """
    section = job.evaluate
    if section.labels is not None:
        from edgekit.objects import load_callable

        load_callable(section.labels, job.folder)
    if section.task != "detection":
        return
    from edgekit.measure.annotations import read_annotations
    from edgekit.measure.decode import decoder
    from edgekit.objects import is_object_name, load_callable

    decoder(str(section.decode), folder=job.folder)
    source = str(section.annotations)
    if is_object_name(source):
        load_callable(source, job.folder)  # calling it may take long
    else:
        read_annotations(source, job.folder)


def check_samples(job: Job, inputs: tuple[TensorSpec, ...]) -> None:
    """Open all samples, without decoding any, so that a wrong path is refused before calibration.

    Raises:
        DataError: A source is missing, empty or does not fit the inputs.
    """
    job.samples(inputs, limit=job.limit)
    if job.evaluate.images is not None:
        job.samples(inputs, job.evaluate.images, job.evaluate.limit)


def assumes_preprocessing(job: Job, inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether nobody said how images become inputs, and there are inputs that take images."""
    layout = job.preprocess.layout
    return job.assumed and any(image_shape(spec.shape, layout) is not None for spec in inputs)


def holds_back(job: Job, network: Network) -> bool:
    """Whether some samples are held back from calibration."""
    return _wants_part(job) and splits(job.samples(network.graph.inputs, limit=job.limit))


def _wants_part(job: Job) -> bool:
    return job.evaluate.images is None


def data_key(job: Job) -> str:
    """Hash of the calibration samples and of how they are read."""
    return digest(job.data, listing(job.data, job.folder), job.limit, job.preprocess.model_dump(mode="json"))


def input_ranges(
    inputs: tuple[TensorSpec, ...], preprocess: Preprocess, samples: Samples
) -> dict[str, tuple[float, float]]:
    """The exact range of an input that images are fed to: what 0 and 255 become in every channel."""
    if len(inputs) != 1 or not np.issubdtype(inputs[0].dtype, np.floating):
        return {}
    if image_shape(inputs[0].shape, preprocess.layout) is None or not _are_images(samples):
        return {}
    ends = [
        (level / preprocess.divide - mean) / std
        for mean, std in zip(preprocess.mean, preprocess.std, strict=True)
        for level in (0, 255)
    ]
    return {inputs[0].name: (min(ends), max(ends))}


def _are_images(samples: Samples) -> bool:
    return next(iter(samples)).image is not None


def quantization_json(result: QuantizeResult, options: Options, scheme: Scheme) -> dict[str, Any]:
    """The ``quantization`` part of a report, with more that the pipeline needs."""
    limit = scheme.max_raised if options.max_raised is None else options.max_raised
    return {
        "calibrator": str(result.calibrator),
        "seconds": dict(result.seconds),
        "tensors_8bit": len(result.plan.tensors),
        "history": [change_json(change) for change in result.graph.history],
        "raised": [asdict(item) for item in result.raised],
        "findings": [{**asdict(item), "kind": str(item.kind)} for item in result.findings],
        "db": result.db,
        "target_db": options.target_db,
        "raised_limit": limit,
        "rungs": [{"label": label, "db": db} for label, db in result.rungs],
        "ladder": [asdict(rung) for rung in result.ladder],
        "float_nodes": [{"node": node, "reason": why} for node, why in result.plan.float_nodes.items()],
    }


def data_json(watched: Watched) -> dict[str, Any]:
    """The part of a report's ``data`` that only a pass over the samples can tell."""
    return {
        "count": watched.used,
        "skipped": [{"name": name, "reason": reason} for name, reason in sorted(watched.skipped.items())],
        "notes": list(watched.samples.notes),
    }


def change_json(change: Change) -> dict[str, Any]:
    """A change as the report has it."""
    return asdict(change)


def load_graph(path: Path, history: Any) -> Graph:
    """A graph that an earlier step saved.

    Raises:
        ModelError: The file cannot be read.
    """
    import onnx
    import onnx_ir as ir

    try:
        model = ir.from_proto(onnx.load(path))
    except Exception as error:  # OSError, or the DecodeError of protobuf, which has no typed import
        raise ModelError(f"cannot be read: {error}", where=str(path), hint="Run with --fresh") from error
    changes = []
    for entry in history:
        refused = tuple(Refusal(**item) for item in entry["refused"])
        changes.append(replace(Change(**{**entry, "refused": ()}), refused=refused))
    return Graph(model, tuple(changes))


def _fingerprint(job: Job) -> Any:
    """The model file's hash and the files beside it, which may hold its weights; of a callable, its code."""
    path = (job.folder or Path.cwd()) / Path(job.model).expanduser()
    if not path.is_file():
        return listing(job.model, job.folder)
    beside = sorted(p.name for p in path.parent.iterdir() if p.is_file() and p.suffix != ".onnx")
    return [file_sha256(path), [listing(str(path.parent / name)) for name in beside[:200]]]
