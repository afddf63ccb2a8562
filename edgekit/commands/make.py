"""``run``, ``export`` and ``quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekit.commands.shell import (
    Answer,
    Biases,
    CalibratorName,
    Data,
    Equalize,
    Fresh,
    InputShapes,
    Limit,
    MaxRaised,
    Model,
    Percentile,
    PreprocessText,
    Reconstruct,
    Runs,
    Shell,
    TargetDb,
    columns,
    command,
    file_out,
    read_shapes,
)
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.pipeline.line import Outcome
    from edgekit.quantize.quantize import Options, QuantizeResult
    from edgekit.target import Target

_RESUME = "The finished steps are kept: run the same command again to go on from there"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "run", "A recipe, from the model to the measured bundle.")(run)
    command(app, "export", "A model and samples to a bundle, no recipe needed.")(export)
    command(app, "quantize", "A model and samples to one int8 .onnx file.")(quantize)
    command(app, "qat", "Quantize, then train what came of it; no labels.")(qat)


def run(
    shell: Shell,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")],
    target: Annotated[
        list[str] | None, typer.Option("--target", metavar="T", help="In place of the recipe's; repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The bundle; build/<recipe's name> by default."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Set a key of the recipe; repeatable.")
    ] = None,
    runs: Runs = 100,
    fresh: Fresh = False,
) -> Answer:
    """Run a recipe: capture, quantize, compile, measure, report.

    Each finished step is kept in .edgekit/ beside the bundle, and done again only when something it depends
    on has changed: an interrupted run goes on where it stopped. The folder holds the captured and the
    quantized network; it can be deleted at any time. Exit code 1 when a budget of the recipe is missed.
    """
    from edgekit import api

    shell.on_interrupt = _RESUME
    with shell.reporter() as reporter:
        outcome = api.run(
            recipe,
            out,
            targets=target or (),
            overrides=set_ or (),
            runs=runs,
            fresh=fresh,
            command=shell.command,
            reporter=reporter,
        )
    return _answer(shell, outcome)


def export(
    shell: Shell,
    model: Model,
    data: Data,
    target: Annotated[
        list[str], typer.Option("--target", metavar="T", help="See edgekit targets; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The bundle's folder.")],
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Take task, budget and quantization from this recipe."),
    ] = None,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    io: Annotated[
        Literal["quantized", "float"] | None,
        typer.Option("--io", metavar="IO", help="What int8 files take and return: quantized or float."),
    ] = None,
    calibrator: CalibratorName = None,
    percentile: Percentile = None,
    max_raised: MaxRaised = None,
    target_db: TargetDb = None,
    reconstruct: Reconstruct = None,
    equalize: Equalize = True,
    correct_biases: Biases = True,
    runs: Runs = 100,
    fresh: Fresh = False,
) -> Answer:
    """Make a bundle from a model and samples; no recipe and no labels are needed.

    Of 40 samples or more every fifth is held back from calibration, and float and int8 are compared on those.
    Finished steps are kept in .edgekit/ beside the bundle, as with edgekit run.
    """
    from edgekit import api

    shell.on_interrupt = _RESUME
    with shell.reporter() as reporter:
        outcome = api.export(
            model,
            data,
            target,
            out=out,
            recipe=recipe,
            preprocess=preprocess,
            input_shapes=read_shapes(input_shape),
            limit=limit,
            io=io,
            runs=runs,
            fresh=fresh,
            command=shell.command,
            reporter=reporter,
            **_options(calibrator, percentile, max_raised, target_db, reconstruct, equalize, correct_biases),
        )
    return _answer(shell, outcome)


def quantize(
    shell: Shell,
    model: Model,
    data: Data,
    target: Annotated[
        str, typer.Option("--target", metavar="T", help="Whose number formats are used.")
    ] = "ort-cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The .onnx file; <model>.int8.onnx by default."),
    ] = None,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    calibrator: CalibratorName = None,
    percentile: Percentile = None,
    max_raised: MaxRaised = None,
    target_db: TargetDb = None,
    reconstruct: Reconstruct = None,
    equalize: Equalize = True,
    correct_biases: Biases = True,
) -> Answer:
    """Calibrate and quantize a model to one .onnx file; nothing is measured but the outputs' error."""
    from edgekit import api
    from edgekit.pipeline.job import make_options, read_preprocess

    path, chosen = _quantized_out(model, "int8", out, target)
    options = _options(calibrator, percentile, max_raised, target_db, reconstruct, equalize, correct_biases)
    checked = make_options(**options)
    how, note, assumed = read_preprocess(preprocess, "given with the command")
    with shell.reporter() as reporter:
        if assumed:
            reporter.note(f"Preprocessing {note}")
        reporter.step("capture")
        graph = api.load(model, read_shapes(input_shape))
        reporter.step("quantize")
        result = api.quantize(graph, data, target, preprocess=how, limit=limit, reporter=reporter, **options)
    return _quantized(result, checked, chosen, path, len(graph.history), note)


def _quantized_out(model: str, kind: str, out: Path | None, target: str) -> tuple[Path, Target]:
    """Where the file goes, and the target."""
    from edgekit.registry import load_target

    path = file_out(model, kind, out)
    chosen = load_target(target)
    if chosen.scheme is None:
        raise UsageError(f"'{target}' does not quantize: it runs float only", where="--target")
    return path, chosen


def _quantized(
    result: QuantizeResult, options: Options, target: Target, path: Path, known: int, note: str
) -> Answer:
    """Write the file and say what is in it; the first ``known`` changes were made before."""
    from edgekit.pipeline.state import plain
    from edgekit.pipeline.steps import quantization_json

    size = target.lower(result.graph).save(path)
    assert target.scheme is not None  # or it would not have been quantized
    details = quantization_json(result, options, target.scheme)
    details["history"] = details["history"][known:]
    document = {"out": str(path), "size_bytes": size, "preprocess_note": note, **details}
    return Answer(plain(document), _quantize_text(document))


def qat(
    shell: Shell,
    model: Model,
    data: Data,
    target: Annotated[
        str, typer.Option("--target", metavar="T", help="Whose number formats are used.")
    ] = "ort-cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The .onnx file; <model>.qat.onnx by default."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="The network before it was pruned; else MODEL."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="S", min=1, help="Most time for the training; 120 by default."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="Most passes over the samples.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", help="Peak learning rate, relative to the weights."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="CALLABLE", help="package.module:callable, the samples' classes."),
    ] = None,
    learn_scales: Annotated[
        bool, typer.Option("--learn-scales/--keep-scales", help="Whether scales are trained too.")
    ] = True,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    max_raised: MaxRaised = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of all that is drawn.")] = 0,
) -> Answer:
    """Quantize a model and fine-tune it with its rounding, against its float original.

    Unlabelled samples suffice. The file never answers worse on held-out samples than before the training. An
    interrupted training goes on where it stopped.
    """
    from edgekit import api
    from edgekit.pipeline.job import make_options, read_preprocess

    path, chosen = _quantized_out(model, "qat", out, target)
    given = {"epochs": epochs, "seconds": seconds, "rate": rate, "labels": labels}
    training = {key: value for key, value in given.items() if value is not None}
    options: dict[str, Any] = {} if max_raised is None else {"max_raised": max_raised}
    how, note, assumed = read_preprocess(preprocess, "given with the command")
    checkpoint = path.with_name(f".{path.name}.checkpoint")
    shell.on_interrupt = "Run the same command again to go on from there"
    with shell.reporter() as reporter:
        if assumed:
            reporter.note(f"Preprocessing {note}")
        reporter.step("capture")
        graph = api.load(model, read_shapes(input_shape))
        reporter.step("quantize")
        result = api.qat(
            graph,
            data,
            target,
            teacher=teacher,
            training={**training, "learn_scales": learn_scales, "seed": seed},
            preprocess=how,
            limit=limit,
            checkpoint=checkpoint,
            reporter=reporter,
            **options,
        )
    checkpoint.unlink(missing_ok=True)
    return _quantized(result, make_options(**options), chosen, path, len(graph.history), note)


def _options(
    calibrator: str | None,
    percentile: float | None,
    max_raised: int | None,
    target_db: float | None,
    reconstruct: float | None,
    equalize: bool,
    correct_biases: bool,
) -> dict[str, Any]:
    """Options of the quantizer that the user gave; the others stay as they are."""
    given: dict[str, Any] = {
        "calibrator": calibrator,
        "percentile": percentile,
        "max_raised": max_raised,
        "target_db": target_db,
        "reconstruct_seconds": reconstruct,
    }
    # The switches are on by default; a recipe that turns one off is not overruled by its absence here.
    if not equalize:
        given["equalize"] = False
    if not correct_biases:
        given["correct_biases"] = False
    return given


def _answer(shell: Shell, outcome: Outcome) -> Answer:
    from edgekit.report.terminal import summary

    document = {
        "bundle": str(outcome.bundle),
        "ok": not outcome.missed,
        "missed": list(outcome.missed),
        "report": outcome.report,
    }
    text = summary(outcome.report, report_path=outcome.bundle / "report.html", colour=shell.colour)
    return Answer(document, text, 1 if outcome.missed else 0)


def _quantize_text(document: dict[str, Any]) -> str:
    from edgekit.report.terminal import quantization_lines

    db = document["db"]
    quality = "exact" if db is None else f"{db:.1f} dB"
    lines = [
        f"{document['out']}: {document['size_bytes'] / 1e6:.2f} MB",
        f"{document['tensors_8bit']} tensors in 8 bits, ranges by {document['calibrator']}; "
        f"signal to noise of the outputs {quality}, measured on calibration samples",
    ]
    tried = [
        (rung["label"], "" if rung["db"] is None else f"{rung['db']:.1f} dB") for rung in document["rungs"]
    ]
    lines += ["", "Tried", *columns(tried, right=(1,), indent="  ")]
    return "\n".join([*lines, *quantization_lines(document, rest="with --json")])
