"""Smaller networks: pruning, sparsity, distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.api.networks import load, read_plan
from edgekit.progress import Reporter

if TYPE_CHECKING:
    from edgekit.graph import Graph
    from edgekit.pipeline.job import PreprocessLike
    from edgekit.pipeline.smaller import Request, Smaller
    from edgekit.prune.plan import PruningPlan


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
    return distill_model(graph, taught, request, read_plan(plan), checkpoint, options)


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
