"""``debug``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.commands.shell import (
    Answer,
    Data,
    InputShapes,
    Limit,
    PreprocessText,
    Shell,
    columns,
    command,
    read_shapes,
)
from edgekit.errors import UsageError

#: Findings that the screen shows; --json has all.
SHOWN = 15


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    command(app, "debug", "Why int8 answers differently, and what to do.")(debug)


def debug(
    shell: Shell,
    what: Annotated[
        str,
        typer.Argument(metavar="MODEL|BUNDLE", help="A float model, a QDQ .onnx file, or a bundle's folder."),
    ],
    data: Data,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="T", help="Target, or target:profile; ort-cpu by default."),
    ] = None,
    float_model: Annotated[
        str | None,
        typer.Option("--float", metavar="FILE", help="The float model that a QDQ file was made from."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="DIR", help="Samples like those that are evaluated; --data then calibrates."
        ),
    ] = None,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = 96,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be; needs --out.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE|DIR", help="Where the repaired QDQ file goes.")
    ] = None,
) -> Answer:
    """Rank the layers by what 8 bits in them do to the outputs, name the causes and say what to do.

    A float model is quantized as a standard converter does it; of a QDQ file or a bundle, what is in it is
    explained.
    """
    from edgekit import api

    if fix and out is None:
        raise UsageError("needs a place for what it makes", where="--fix", hint="Add --out FILE.onnx")
    if out is not None and not fix:
        raise UsageError("is where --fix writes", where="--out", hint="Add --fix")
    with shell.reporter() as reporter:
        found = api.debug(
            what,
            data,
            target,
            float_model=float_model,
            against=against,
            preprocess=preprocess,
            input_shapes=read_shapes(input_shape),
            limit=limit,
            out=out,
            reporter=reporter,
        )
    return Answer(found, "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['model']} on {found['target']}, {found['samples']} samples"
    yield f"preprocessing {found['preprocess']}"
    yield ""
    rows = [
        (f["where"], f["op"], _db(f["alone_db"]), _db(f["effect_db"], sign=True), f["cause"], f["remedy"])
        for f in found["findings"][:SHOWN]
    ]
    if rows:
        head = ("layer", "op", "alone", "gain", "cause", "what to do")
        yield from columns([head, *rows], right=(2, 3))
        yield "  alone: signal to noise of the outputs with 8 bits in this layer only; gain: with it in float"
        yield ""
        for number, f in enumerate(found["findings"][:SHOWN], 1):
            yield f"{number}. {f['where']}: {f['text']}"
        if len(found["findings"]) > SHOWN:
            yield f"  … and {len(found['findings']) - SHOWN} more, see --json"
        yield ""
    yield found["summary"]
    yield (
        f"outputs: {found['db']:.1f} dB, cosine {found['cosine']:.4f} (worst {found['cosine_min']:.4f}); "
        f"with float weights {found['db_activations']:.1f} dB"
        + (
            f", with float activations {found['db_weights']:.1f} dB"
            if found["db_weights"] is not None
            else ""
        )
    )
    if found["fix"]:
        yield from _fix_lines(found["fix"])


def _fix_lines(fix: dict[str, Any]) -> Iterator[str]:
    yield ""
    if fix["preprocess"]:
        yield f"preprocessing: {fix['preprocess']}"
    rows = [
        (
            s["where"],
            s["fix"],
            f"{s['gain_db']:+.1f} dB",
            f"{s['db']:.1f} dB",
            "" if s["kept"] else "not kept",
        )
        for s in fix["steps"]
    ]
    if rows:
        yield from columns([("where", "repair", "gain", "outputs", ""), *rows], right=(2, 3))
    yield (
        f"outputs: {fix['db_before']:.1f} dB before, {fix['db_after']:.1f} dB after; "
        f"cosine {fix['cosine_before']:.4f} (worst {fix['cosine_min_before']:.4f}) before, "
        f"{fix['cosine_after']:.4f} (worst {fix['cosine_min_after']:.4f}) after"
    )
    yield f"written to {fix['out']}"


def _db(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.1f} dB" if sign else f"{value:.1f} dB"
