"""The compress steps of a line: prune, sparsify, substitute, distill, in the order of the recipe.

Every step takes the graph that the one before it made. What a step recovers towards is the captured network,
or the teacher that a ``distill`` step names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import file_sha256
from edgekit.graph import Graph
from edgekit.pipeline.distill_step import distill_graph, save_weights
from edgekit.pipeline.material import JUDGED, Held, Material, size_json
from edgekit.pipeline.prune_step import prune_graph
from edgekit.pipeline.sparsify_step import sparsify_graph
from edgekit.pipeline.state import Product, digest, listing
from edgekit.pipeline.steps import (
    Context,
    Network,
    calibration_samples,
    change_json,
    comparison_samples,
    data_key,
    full_name,
    load_graph,
    run_step,
)
from edgekit.pipeline.substitute_step import substitute_graph
from edgekit.recipe import DistillSection, PruneSection, SparsifySection, SubstituteSection

if TYPE_CHECKING:
    from edgekit.prune.plan import PruningPlan
    from edgekit.target import Target


@dataclass(frozen=True)
class Compressed:
    """What the compress steps made.

    Attributes:
        network: The compressed network; the captured one where there is no step.
        products: One for each step, in order.
    """

    network: Network
    products: tuple[Product, ...] = ()


@dataclass
class _State:
    """Where the steps stand: the graph, how it was cut from the original, which weights stay zero."""

    graph: Graph
    plan: PruningPlan | None = None
    sparse: tuple[str, ...] = ()
    products: list[Product] = field(default_factory=list)


def compress(context: Context, network: Network, target: Target) -> Compressed:
    """Run the steps of ``context.job.compress``.

    Args:
        context: Job, store, reporter.
        network: As captured.
        target: The first target: alignment and latency are its own.

    Raises:
        UsageError: A step cannot do what it is asked.
        ModelError: A saved result does not fit the network.
    """
    sections = context.job.compress
    if not sections:
        return Compressed(network)
    state = _State(network.graph)
    for number, section in enumerate(sections, start=1):
        if isinstance(section, PruneSection):
            _prune(context, network, target, section, state, number)
        elif isinstance(section, SparsifySection):
            _sparsify(context, network, target, section, state, number)
        elif isinstance(section, SubstituteSection):
            _substitute(context, network, target, section, state, number)
        elif isinstance(section, DistillSection):
            _distill(context, network, target, section, state, number)
    data = {**network.data, "history": [change_json(change) for change in state.graph.history]}
    key = digest(network.key, state.graph.sha256())
    return Compressed(Network(state.graph, data, key), tuple(state.products))


def compress_json(compressed: Compressed, original: Graph) -> dict[str, Any] | None:
    """The ``compress`` part of a report; None where nothing was compressed."""
    if not compressed.products:
        return None
    return {
        "original": size_json(original),
        "final": size_json(compressed.network.graph),
        "steps": [product.data["step"] for product in compressed.products],
    }


def _material(context: Context, network: Network, target: Target) -> Material:
    job, inputs = context.job, network.graph.inputs
    judged, _ = comparison_samples(job, inputs)
    return Material(
        original=network.graph,
        samples=calibration_samples(job, inputs),
        judged=[sample.feeds for sample in islice(judged, JUDGED)],
        target=target,
        reporter=context.reporter,
        preprocess=job.preprocess,
        folder=job.folder,
    )


def _prune(
    context: Context, network: Network, target: Target, section: PruneSection, state: _State, number: int
) -> None:
    from edgekit.prune.plan import PruningPlan, compose

    before = state.graph
    saved = _saved(context, section.saved)
    parts = [
        *(number, network.key, before.sha256(), section.model_dump(mode="json"), data_key(context.job)),
        *(full_name(target), saved and file_sha256(saved), state.plan is not None),
    ]

    def make(folder: Path) -> dict[str, Any]:
        material = _material(context, network, target)
        graph, plan, step = prune_graph(material, section, before, state.plan, saved)
        graph.save(folder / "graph.onnx")
        plan.save(folder / "plan.json")
        return {"step": step, "history": [change_json(change) for change in graph.history]}

    product = run_step(context, "prune", parts, make)
    plan = PruningPlan.load(product.folder / "plan.json")
    state.plan = plan if state.plan is None else compose(state.plan, plan)
    state.graph = load_graph(product.folder / "graph.onnx", product.data["history"])
    state.products.append(product)


def _sparsify(
    context: Context, network: Network, target: Target, section: SparsifySection, state: _State, number: int
) -> None:
    before = state.graph
    parts = [
        *(number, network.key, before.sha256(), section.model_dump(mode="json"), data_key(context.job)),
        full_name(target),
    ]

    def make(folder: Path) -> dict[str, Any]:
        material = _material(context, network, target)
        graph, names, step = sparsify_graph(material, section, before, state.plan)
        graph.save(folder / "graph.onnx")
        history = [change_json(change) for change in graph.history]
        return {"step": step, "history": history, "sparse": list(names)}

    product = run_step(context, "sparsify", parts, make)
    state.sparse = tuple(dict.fromkeys((*state.sparse, *product.data["sparse"])))
    state.graph = load_graph(product.folder / "graph.onnx", product.data["history"])
    state.products.append(product)


def _substitute(
    context: Context, network: Network, target: Target, section: SubstituteSection, state: _State, number: int
) -> None:
    before = state.graph
    parts = [number, network.key, before.sha256(), section.model_dump(mode="json"), data_key(context.job)]

    def make(folder: Path) -> dict[str, Any]:
        graph, step = substitute_graph(_material(context, network, target), section, before)
        graph.save(folder / "graph.onnx")
        return {"step": step, "history": [change_json(change) for change in graph.history]}

    product = run_step(context, "substitute", parts, make)
    state.graph = load_graph(product.folder / "graph.onnx", product.data["history"])
    state.products.append(product)


def _distill(
    context: Context, network: Network, target: Target, section: DistillSection, state: _State, number: int
) -> None:
    before = state.graph
    saved = _saved(context, section.saved)
    teacher = (
        file_sha256(Path(section.teacher)) if section.teacher and Path(section.teacher).is_file() else None
    )
    parts = [
        *(number, network.key, before.sha256(), section.model_dump(mode="json"), data_key(context.job)),
        *(saved and file_sha256(saved), teacher, state.sparse, _listings(context, section)),
    ]
    checkpoint = context.store.folder / f".distill-{digest(parts)[:16]}.pt"

    def make(folder: Path) -> dict[str, Any]:
        material = _material(context, network, target)
        if section.data is not None:
            samples = context.job.samples(network.graph.inputs, section.data, section.limit)
            material = replace(material, samples=samples)
        held = Held(state.plan, state.sparse)
        graph, step = distill_graph(material, section, before, held, saved, checkpoint)
        graph.save(folder / "graph.onnx")
        save_weights(graph, before, folder / "weights.npz")
        checkpoint.unlink(missing_ok=True)
        return {"step": step, "history": [change_json(change) for change in graph.history]}

    product = run_step(context, "distill", parts, make)
    state.graph = load_graph(product.folder / "graph.onnx", product.data["history"])
    state.products.append(product)


def _listings(context: Context, section: DistillSection) -> list[Any]:
    """What identifies the samples and labels of a training."""
    sources = [source for source in (section.data, section.labels) if source is not None]
    return [listing(source, context.job.folder) for source in sources]


def _saved(context: Context, path: str | None) -> Path | None:
    """The file of a saved result, where it is to be used."""
    if path is None or context.fresh:
        return None
    if not Path(path).is_file():
        context.warn(f"There is no saved result {Path(path).name} yet: the step was run.")
        return None
    return Path(path)
