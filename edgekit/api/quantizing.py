"""From float to int8, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.api.networks import Shapes, load
from edgekit.errors import UsageError
from edgekit.progress import Reporter

if TYPE_CHECKING:
    from edgekit.graph import Graph
    from edgekit.pipeline.job import PreprocessLike
    from edgekit.quantize.quantize import QuantizeResult


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
    from edgekit.pipeline.job import read_preprocess
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
        preprocess=how,
        checkpoint=checkpoint,
        reporter=reporter,
    )
    return found


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
