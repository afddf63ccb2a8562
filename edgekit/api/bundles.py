"""From a recipe or a model to a measured bundle, and looking at one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.api.networks import Shapes
from edgekit.progress import Reporter

if TYPE_CHECKING:
    from edgekit.measure.latency import LatencyResult
    from edgekit.pipeline.job import Job, PreprocessLike
    from edgekit.pipeline.line import Outcome


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
