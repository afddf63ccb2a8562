"""Compression outside a recipe: one network, one step, and what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data.samples import open_samples
from edgekit.errors import UsageError
from edgekit.graph import Graph
from edgekit.pipeline.distill_step import distill_graph
from edgekit.pipeline.material import JUDGED, Held, Material
from edgekit.pipeline.prune_step import prune_graph
from edgekit.pipeline.sparsify_step import sparsify_graph
from edgekit.pipeline.split import Part, splits
from edgekit.progress import Reporter
from edgekit.recipe import DistillSection, PruneSection, SparsifySection
from edgekit.recipe_file import read_step
from edgekit.registry import load_target

if TYPE_CHECKING:
    from edgekit.data.preprocess import Preprocess
    from edgekit.prune.plan import PruningPlan
    from edgekit.target import Target

RECOVERIES = ("none", "refit", "distill")


@dataclass(frozen=True)
class Smaller:
    """A compressed network.

    Attributes:
        graph: The network.
        steps: What the report says of each step, JSON-ready.
        plan: Which channels and blocks stayed; None where nothing was pruned.
        latency: The ``latency`` part of a report, ``original`` against ``compressed`` on one thread; None
            where the target does not run on this machine.
    """

    graph: Graph
    steps: tuple[dict[str, Any], ...]
    plan: PruningPlan | None = None
    latency: dict[str, Any] | None = None

    @property
    def latency_text(self) -> str:
        """One line on how much faster it is, or that it is slower."""
        if self.latency is None:
            return "Latency was not measured: the target does not run on this machine."
        before, after = (self.latency[kind]["value"] for kind in ("original", "compressed"))
        times = self.latency["speedup"]
        verdict = f"{times:.2f} times as fast" if times >= 1 else f"SLOWER, {1 / times:.2f} times as long"
        return f"Latency on 1 thread of this machine: {before:.2f} to {after:.2f} ms, {verdict}"


@dataclass(frozen=True)
class Request:
    """What all steps share.

    Attributes:
        data: Samples: image folder, ``.npz`` file, callable or its name.
        target: Whose alignment, latency and kernels count.
        preprocess: How images become inputs.
        limit: Most samples.
        recover: What follows: ``none``, ``refit``, or ``distill``, which is both.
        training: Keys of a ``distill`` step, for ``recover="distill"``.
        reporter: Tells the user.
    """

    data: Any
    target: str
    preprocess: Preprocess
    limit: int | None = None
    recover: str = "refit"
    training: Mapping[str, Any] | None = None
    reporter: Reporter | None = None


def prune_model(
    graph: Graph, request: Request, plan: str | Path | None, options: Mapping[str, Any]
) -> Smaller:
    """See :func:`edgekit.api.prune`."""
    if plan is not None:
        given = [
            aim for aim in ("keep", "macs", "params", "bytes", "latency") if options.get(aim) is not None
        ]
        if given:
            raise UsageError(f"{given[0]} has no meaning beside a plan, which says what stays", where="plan")
        if not Path(plan).is_file():
            raise UsageError("there is no such file", where=str(plan))
        options = {**options, "saved": str(plan)}
    section = _section(request, {"pass": "prune", "recover": _first_recovery(request), **options})
    assert isinstance(section, PruneSection)  # what read_step makes of "prune"
    material = _material(graph, request)
    material.reporter.step("prune")
    pruned, made, step = prune_graph(material, section, graph, saved=None if plan is None else Path(plan))
    steps = [step]
    if request.recover == "distill":
        pruned, trained = _distill(material, request, pruned, Held(plan=made))
        steps.append(trained)
    return Smaller(pruned, tuple(steps), made, _latency(material, pruned))


def sparsify_model(graph: Graph, request: Request, options: Mapping[str, Any]) -> Smaller:
    """See :func:`edgekit.api.sparsify`."""
    section = _section(request, {"pass": "sparsify", "recover": _first_recovery(request), **options})
    assert isinstance(section, SparsifySection)  # what read_step makes of "sparsify"
    material = _material(graph, request)
    material.reporter.step("sparsify")
    sparse, names, step = sparsify_graph(material, section, graph)
    steps = [step]
    if request.recover == "distill":
        sparse, trained = _distill(material, request, sparse, Held(sparse=names))
        steps.append(trained)
    return Smaller(sparse, tuple(steps), None, _latency(material, sparse))


def distill_model(
    graph: Graph,
    teacher: Graph,
    request: Request,
    plan: PruningPlan | None,
    checkpoint: Path | None,
    options: Mapping[str, Any],
) -> Smaller:
    """See :func:`edgekit.api.distill`."""
    section = read_step({"pass": "distill", **options})
    assert isinstance(section, DistillSection)  # what read_step makes of "distill"
    material = _material(teacher, request)
    material.reporter.step("distill")
    trained, step = distill_graph(material, section, graph, Held(plan=plan), checkpoint=checkpoint)
    return Smaller(trained, (step,), None, _latency(material, trained))


def _section(request: Request, values: Mapping[str, Any]) -> Any:
    if request.recover not in RECOVERIES:
        raise UsageError(f"there is no '{request.recover}'", where="recover", valid=RECOVERIES)
    if request.recover == "distill":
        read_step({"pass": "distill", **(request.training or {})})  # refused before any work
    return read_step(values)


def _first_recovery(request: Request) -> str:
    return "none" if request.recover == "none" else "refit"


def _distill(material: Material, request: Request, graph: Graph, held: Held) -> tuple[Graph, dict[str, Any]]:
    section = read_step({"pass": "distill", **(request.training or {})})
    assert isinstance(section, DistillSection)  # what read_step makes of "distill"
    material.reporter.step("distill")
    return distill_graph(material, section, graph, held)


def _material(original: Graph, request: Request) -> Material:
    """Of many samples every fifth is held back, and the outputs are compared on those."""
    samples = open_samples(request.data, original.inputs, request.preprocess, limit=request.limit)
    training, judged = samples, samples
    if splits(samples):
        training, judged = Part(samples, held=False), Part(samples, held=True, limit=JUDGED)
    return Material(
        original=original,
        samples=training,
        judged=[sample.feeds for sample in islice(judged, JUDGED)],
        target=load_target(request.target),
        reporter=request.reporter or Reporter(),
        preprocess=request.preprocess,
    )


def _latency(material: Material, graph: Graph) -> dict[str, Any] | None:
    """Original and compressed network timed in turn on one thread."""
    from edgekit.measure.latency import measure_latency

    target: Target | None = material.target
    if target is None or not target.profile.host:
        return None
    material.reporter.step("latency")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        paths = {}
        for label, each in (("original", material.original), ("compressed", graph)):
            (Path(folder) / label).mkdir()
            paths[label] = target.compile(target.lower(each), "float", Path(folder) / label).path
        found = measure_latency(
            paths, material.judged[0], threads=1, memory=False, progress=material.reporter.update
        )
    return found.to_json()
