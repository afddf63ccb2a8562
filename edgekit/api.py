"""The functions of ``import edgekit``: the command line's commands as Python calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import UsageError
from edgekit.progress import Reporter

if TYPE_CHECKING:
    import torch

    from edgekit.graph import Graph
    from edgekit.measure.latency import LatencyResult
    from edgekit.pipeline.job import Job, PreprocessLike
    from edgekit.pipeline.line import Outcome
    from edgekit.pipeline.smaller import Request, Smaller
    from edgekit.prune.plan import PruningPlan
    from edgekit.quantize.quantize import QuantizeResult

Shapes = Mapping[str, tuple[int, ...]]


def load(source: str | Path, input_shapes: Shapes | None = None, *, fold: bool = True) -> Graph:
    """Capture a network: ``.onnx``, ``.pt2`` or ``package.module:callable`` returning an ``nn.Module``.

    Args:
        source: The network.
        input_shapes: Shapes of inputs that it leaves open, by name.
        fold: Fold batch normalizations into the layers before them; without it they stay and can train.

    Raises:
        UsageError: ``source`` or a shape has a wrong value.
        ModelError: The network cannot be used.
    """
    from edgekit.capture import capture

    return capture(str(source), input_shapes=input_shapes, fold=fold).graph


def quantize(
    graph: Graph,
    data: Any,
    target: str = "ort-cpu",
    *,
    preprocess: PreprocessLike = None,
    limit: int | None = None,
    threads: int = 0,
    reporter: Reporter | None = None,
    **options: Any,
) -> QuantizeResult:
    """Quantize a captured graph for a target.

    Args:
        graph: From :func:`load`; stays as it is.
        data: Image folder, ``.npz`` file, callable or its name.
        target: Whose number formats are used.
        preprocess: How images become inputs; RGB / 255, letterboxed by default.
        limit: Most samples.
        threads: Samples that run at the same time; 0 is one per core.
        reporter: Tells how far it is.
        options: Fields of :class:`edgekit.quantize.quantize.Options`: ``calibrator``, ``max_raised`` …

    Returns:
        The quantized ``graph``, what was found and raised, and the outputs' signal-to-noise ratio ``db``.

    Raises:
        UsageError: The target does not quantize, or an option has a wrong value.
        DataError: The samples cannot be used.
        ModelError: The network takes values that are not finite.
    """
    from edgekit.data.samples import open_samples
    from edgekit.pipeline.job import make_options, read_preprocess
    from edgekit.pipeline.split import Watched
    from edgekit.pipeline.steps import input_ranges
    from edgekit.quantize.quantize import quantize as run_quantizer
    from edgekit.registry import load_target
    from edgekit.target import Prepares

    place = load_target(target)
    scheme = place.scheme
    if scheme is None:
        raise UsageError(f"'{target}' does not quantize: it runs float only", where="target")
    if isinstance(place, Prepares):
        graph = place.prepare(graph)
    chosen = make_options(**options)
    how, _, _ = read_preprocess(preprocess, "given")
    samples = open_samples(data, graph.inputs, how, limit=limit)
    return run_quantizer(
        graph,
        scheme,
        Watched(samples),
        chosen,
        input_ranges=input_ranges(graph.inputs, how, samples),
        threads=threads,
        total=samples.count,
        progress=reporter.update if reporter is not None else None,
        status=reporter.status if reporter is not None else None,
    )


def qat(
    graph: Graph,
    data: Any,
    target: str = "ort-cpu",
    *,
    teacher: Graph | str | Path | None = None,
    training: Mapping[str, Any] | None = None,
    preprocess: PreprocessLike = None,
    limit: int | None = None,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> QuantizeResult:
    """Quantize a captured graph and train the result to answer as its float original does.

    No labels are needed (quantization-aware distillation); they can be mixed in.

    Args:
        graph: From :func:`load`; stays as it is.
        data: See :func:`quantize`.
        target: See :func:`quantize`.
        teacher: What is learned from, where it is not ``graph``: the network before it was pruned.
        training: Keys of a recipe's ``qat`` step: ``epochs``, ``seconds``, ``rate``, ``labels`` …
        preprocess: See :func:`quantize`.
        limit: See :func:`quantize`.
        checkpoint: A file where the training is kept while it runs, and goes on from.
        reporter: Tells how far it is.
        options: See :func:`quantize`.

    Raises:
        UsageError: The target does not quantize, or an option has a wrong value.
        DataError: The samples cannot be used.
        ModelError: A node cannot be trained through.
    """
    from edgekit.data.samples import open_samples
    from edgekit.pipeline.job import make_options, read_preprocess
    from edgekit.pipeline.qat_step import refine
    from edgekit.recipe import QatSection
    from edgekit.recipe_file import read_step

    section = read_step({"pass": "qat", **(training or {})})
    assert isinstance(section, QatSection)  # what read_step makes of "qat"
    how, _, _ = read_preprocess(preprocess, "given")
    # Training makes up for what blocks would learn.
    options.setdefault("reconstruct_seconds", 0.0)
    result = quantize(graph, data, target, preprocess=how, limit=limit, reporter=reporter, **options)
    taught = load(teacher) if isinstance(teacher, (str, Path)) else teacher or graph
    samples = open_samples(data, graph.inputs, how, limit=limit)
    if reporter is not None:
        reporter.step("qat")
    found, _ = refine(
        result,
        taught,
        samples,
        section,
        make_options(**options),
        preprocess=how,
        checkpoint=checkpoint,
        reporter=reporter,
    )
    return found


def prune(
    graph: Graph,
    data: Any,
    target: str = "ort-cpu",
    *,
    plan: str | Path | None = None,
    recover: str = "refit",
    training: Mapping[str, Any] | None = None,
    preprocess: PreprocessLike = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Smaller:
    """Remove channels and blocks from a captured graph; no labels are needed.

    Args:
        graph: From :func:`load`; stays as it is.
        data: Samples: image folder, ``.npz`` file, callable or its name.
        target: Whose alignment and latency count.
        plan: A plan from an earlier run, applied in place of a search.
        recover: What follows: ``none``; ``refit``, least squares towards the original; ``distill``, that and
            a training.
        training: Keys of a recipe's ``distill`` step, for ``recover="distill"``.
        preprocess: How images become inputs; RGB / 255, letterboxed by default.
        limit: Most samples.
        reporter: Tells how far it is.
        options: Keys of a recipe's ``prune`` step: ``keep``, ``macs``, ``latency``, ``align`` …

    Returns:
        The smaller ``graph``, the ``plan``, what the report says of each of the ``steps``, and the latency.

    Raises:
        UsageError: An option has a wrong value, or the aim cannot be reached.
        DataError: The samples cannot be used.
        ModelError: The plan is another network's.
    """
    from edgekit.pipeline.smaller import prune_model

    return prune_model(
        graph, _request(data, target, preprocess, limit, recover, training, reporter), plan, options
    )


def sparsify(
    graph: Graph,
    data: Any,
    target: str = "ort-cpu",
    *,
    recover: str = "refit",
    training: Mapping[str, Any] | None = None,
    preprocess: PreprocessLike = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Smaller:
    """Set single weights of a captured graph to zero.

    Args:
        graph: From :func:`load`; stays as it is.
        data: Samples, see :func:`prune`.
        target: What it buys is said for this target.
        recover: See :func:`prune`.
        training: See :func:`prune`.
        preprocess: See :func:`prune`.
        limit: Most samples.
        reporter: Tells how far it is.
        options: Keys of a recipe's ``sparsify`` step: ``sparsity``, ``pattern``, ``scope`` …

    Raises:
        UsageError: An option has a wrong value.
        DataError: The samples cannot be used.
    """
    from edgekit.pipeline.smaller import sparsify_model

    return sparsify_model(
        graph, _request(data, target, preprocess, limit, recover, training, reporter), options
    )


def distill(
    graph: Graph,
    teacher: Graph | str | Path,
    data: Any,
    *,
    plan: PruningPlan | str | Path | None = None,
    preprocess: PreprocessLike = None,
    limit: int | None = None,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Smaller:
    """Train a captured graph to give what its teacher gives; no labels are needed.

    Args:
        graph: The student; stays as it is.
        teacher: Another captured graph, or a source for :func:`load`.
        data: Samples, see :func:`prune`.
        plan: How the student was cut from the teacher, so that inner tensors are compared channel by channel.
        preprocess: See :func:`prune`.
        limit: Most samples.
        checkpoint: A file where the training is kept while it runs, and goes on from.
        reporter: Tells how far it is.
        options: Keys of a recipe's ``distill`` step: ``epochs``, ``seconds``, ``rate`` …

    Raises:
        UsageError: An option has a wrong value.
        DataError: The samples cannot be used.
        ModelError: Student and teacher have other inputs or outputs.
    """
    from edgekit.pipeline.smaller import distill_model

    taught = load(teacher) if isinstance(teacher, (str, Path)) else teacher
    request = _request(data, "ort-cpu", preprocess, limit, "distill", None, reporter)
    return distill_model(graph, taught, request, _plan(plan), checkpoint, options)


def torch_module(graph: Graph) -> torch.nn.Module:
    """The graph as a module to train in a loop of your own.

    It takes the inputs in the graph's order and returns the output, or a tuple of them; ``to_graph()`` gives
    the graph with the trained weights.

    Raises:
        ModelError: An operator cannot be trained through; the message lists them all.
    """
    from edgekit.train.executor import torch_module as make

    return make(graph)


def apply_plan(module: torch.nn.Module, plan: PruningPlan | str | Path) -> torch.nn.Module:
    """Cut a module by a plan that was made on the graph exported from it.

    Args:
        module: The module; stays as it is.
        plan: From :func:`prune`, or its file.

    Returns:
        A smaller copy, by parameter name.

    Raises:
        ModelError: The plan and the module do not belong together.
    """
    from edgekit.prune.module import apply_plan as cut

    read = _plan(plan)
    assert read is not None  # only None reads as None
    return cut(module, read)


def export(
    model: str | Path,
    data: str | Path,
    target: str | Sequence[str] = "ort-cpu",
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    preprocess: PreprocessLike = None,
    input_shapes: Shapes | None = None,
    limit: int | None = None,
    io: Literal["quantized", "float"] | None = None,
    runs: int = 100,
    fresh: bool = False,
    command: str = "edgekit.export",
    reporter: Reporter | None = None,
    **options: Any,
) -> Outcome:
    """Make a bundle from a model and samples.

    Args:
        model: ``.onnx``, ``.pt2`` or ``package.module:callable``.
        data: Image folder, ``.npz`` file or ``package.module:callable``.
        target: One target or several.
        out: The bundle's folder.
        recipe: Everything else comes from this recipe: task, budget, quantization, preprocessing.
        preprocess: How images become inputs; the recipe's, else RGB / 255, letterboxed.
        input_shapes: Shapes of inputs that the network leaves open.
        limit: Most calibration samples.
        io: What int8 artifacts take and return, ``quantized`` or ``float``; None is the target's own way.
        runs: Timed calls.
        fresh: Forget what earlier runs into ``out`` made.
        command: For the report.
        reporter: Tells how far it is.
        options: Of the quantizer, see :func:`quantize`.

    Raises:
        EdgekitError: Anything that can go wrong; a bundle that was there before stays.
    """
    from edgekit.pipeline.job import Job, make_options, read_preprocess
    from edgekit.pipeline.line import run_line

    targets = (target,) if isinstance(target, str) else tuple(target)
    if recipe is not None:
        job = _recipe_job(recipe, model, data, targets, runs, command)
    else:
        job = Job(model=str(model), data=str(data), targets=targets, runs=runs, command=command)
    job = replace(
        job,
        options=make_options(job.options, **options),
        limit=limit or job.limit,
        input_shapes=input_shapes or job.input_shapes,
        io=io or job.io,
    )
    if preprocess is not None or recipe is None:
        how, note, assumed = read_preprocess(preprocess, "given with the command")
        job = replace(job, preprocess=how, preprocess_note=note, assumed=assumed)
    return run_line(job, Path(out), fresh=fresh, reporter=reporter)


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    targets: Sequence[str] = (),
    overrides: Sequence[str] = (),
    runs: int = 100,
    fresh: bool = False,
    command: str = "edgekit.run",
    reporter: Reporter | None = None,
) -> Outcome:
    """Run a recipe.

    Args:
        recipe: The TOML file.
        out: The bundle's folder; ``build/<name of the recipe>`` by default.
        targets: In place of the recipe's.
        overrides: ``section.key=value``.
        runs: Timed calls.
        fresh: Forget what earlier runs into ``out`` made.
        command: For the report.
        reporter: Tells how far it is.

    Raises:
        EdgekitError: Anything that can go wrong; a missed budget is no error, see ``Outcome.missed``.
    """
    from edgekit.pipeline.job import from_recipe
    from edgekit.pipeline.line import run_line
    from edgekit.recipe_file import load_recipe

    extra = [f"deploy.targets={json.dumps(list(targets))}"] if targets else []
    loaded = load_recipe(Path(recipe), [*overrides, *extra])
    job = from_recipe(loaded, runs=runs, command=command)
    return run_line(job, Path(out or default_out(recipe)), fresh=fresh, reporter=reporter)


def default_out(recipe: str | Path) -> Path:
    """``build/<name>``; a file called ``recipe.toml`` goes by its folder's name."""
    path = Path(recipe).absolute()
    return Path("build") / (path.parent.name if path.stem == "recipe" else path.stem)


def bench(
    what: str | Path,
    against: str | Path | None = None,
    *,
    target: str | None = None,
    threads: int = 0,
    runs: int = 100,
    reporter: Reporter | None = None,
) -> LatencyResult:
    """Time a bundle, float against int8, or a model; see :func:`edgekit.pipeline.check.bench`."""
    from edgekit.pipeline import check

    return check.bench(
        str(what),
        against=None if against is None else str(against),
        target=target,
        threads=threads,
        runs=runs,
        reporter=reporter,
    )


def parity(
    bundle: str | Path,
    data: Any = None,
    *,
    target: str | None = None,
    layers: bool = False,
    limit: int = 32,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compare a bundle's int8 with its float network, and replay its samples; see
    :func:`edgekit.pipeline.check.parity`.
    """
    from edgekit.pipeline import check

    return check.parity(bundle, data, target=target, layers=layers, limit=limit, reporter=reporter)


def inspect(
    model: str | Path,
    target: str | None = None,
    *,
    data: Any = None,
    preprocess: PreprocessLike = None,
    input_shapes: Shapes | None = None,
    limit: int | None = 32,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Describe a network; see :func:`edgekit.pipeline.check.inspect`."""
    from edgekit.pipeline import check
    from edgekit.pipeline.job import read_preprocess

    how, _, _ = read_preprocess(preprocess, "given")
    return check.inspect(
        str(model),
        input_shapes=input_shapes,
        target=target,
        data=data,
        preprocess=how,
        limit=limit,
        reporter=reporter,
    )


def debug(
    what: str | Path,
    data: Any,
    target: str | None = None,
    *,
    float_model: str | Path | None = None,
    against: Any = None,
    preprocess: PreprocessLike = None,
    input_shapes: Shapes | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Explain what an int8 network loses, and where; with ``out``, repair it and write it there.

    Args:
        what: Float model, QDQ ``.onnx`` file, or a bundle's folder.
        data: Samples: image folder, ``.npz`` file, callable or its name.
        target: Whose number formats are used; the bundle's, or ``ort-cpu``, by default.
        float_model: The float model that a QDQ file was made from.
        against: Samples like those that are evaluated.
        preprocess: How images become inputs; the bundle's, else RGB / 255, letterboxed, by default.
        input_shapes: Shapes of inputs that a float model leaves open.
        limit: Most samples; 96 by default.
        out: File or folder for the repaired QDQ graph.
        reporter: Tells how far it is.

    Returns:
        JSON-ready: ``summary``, ``findings`` (worst first), ``layers``, ``db`` …, and ``fix``.

    Raises:
        InputError: The network, the samples or the options cannot be used.
    """
    from edgekit.bundle import check_file_out
    from edgekit.explain.case import open_case
    from edgekit.explain.run import out_file
    from edgekit.explain.run import run as explain
    from edgekit.pipeline.job import read_preprocess
    from edgekit.pipeline.state import plain
    from edgekit.registry import load_target

    path = out_file(Path(out)) if out is not None else None
    if path is not None:
        check_file_out(path)
    case = open_case(
        str(what),
        data,
        load_target,
        target=target,
        float_model=None if float_model is None else str(float_model),
        against=against,
        preprocess=None if preprocess is None else read_preprocess(preprocess, "given")[0],
        input_shapes=input_shapes,
        limit=limit,
    )
    found = explain(case, fix=path is not None, reporter=reporter)
    content = found.to_json()
    if path is not None and found.repair is not None:
        found.repair.graph.save(path)
        content["fix"]["out"] = str(path)
    return dict(plain(content))


def _plan(given: PruningPlan | str | Path | None) -> PruningPlan | None:
    from edgekit.prune.plan import PruningPlan

    return PruningPlan.load(Path(given)) if isinstance(given, (str, Path)) else given


def _request(
    data: Any,
    target: str,
    preprocess: PreprocessLike,
    limit: int | None,
    recover: str,
    training: Mapping[str, Any] | None,
    reporter: Reporter | None,
) -> Request:
    from edgekit.pipeline.job import read_preprocess
    from edgekit.pipeline.smaller import Request

    how, _, _ = read_preprocess(preprocess, "given")
    return Request(data, target, how, limit, recover, training, reporter)


def _recipe_job(
    recipe: str | Path, model: str | Path, data: str | Path, targets: tuple[str, ...], runs: int, command: str
) -> Job:
    """The recipe's job with another model, other samples and other targets."""
    from edgekit.objects import is_object_name
    from edgekit.pipeline.job import from_recipe
    from edgekit.recipe_file import load_recipe

    def absolute(source: str | Path) -> str:
        text = str(source)
        return text if is_object_name(text) and not Path(text).exists() else str(Path(text).absolute())

    values = {
        "model.source": absolute(model),
        "data.calibrate": absolute(data),
        "deploy.targets": list(targets),
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return from_recipe(load_recipe(Path(recipe), overrides), runs=runs, command=command)
