"""What all commands share: their common options, how they answer, how text is laid out."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.progress import Reporter


class InterruptError(EdgekitError):
    """The user pressed Ctrl-C."""

    exit_code = 130


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        document: For ``--json``.
        text: For a person.
        code: The process's exit code.
    """

    document: dict[str, Any]
    text: str
    code: int = 0


@dataclass
class Shell:
    """How one command was called.

    Attributes:
        json: The answer is printed as one JSON document.
        quiet: Nothing but the answer and errors is shown.
        command: The command line, for reports.
        on_interrupt: What is said after Ctrl-C.
    """

    json: bool = False
    quiet: bool = False
    command: str = ""
    on_interrupt: str = "Nothing was written"

    def reporter(self) -> Reporter:
        """Shows progress on stderr."""
        from edgekit.progress import reporter

        return reporter(quiet=self.quiet)

    @property
    def colour(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


@dataclass
class _Call:
    """The command line of this process, set by ``edgekit.cli.main``."""

    text: str = "edgekit"
    extra: list[str] = field(default_factory=list)


CALL = _Call()

_COMMON = {
    "json_": Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")],
    "debug": Annotated[bool, typer.Option("--debug", hidden=True)],
}


def command(
    app: typer.Typer, name: str, short: str
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function ``(shell, …) -> Answer``; the common options are added to its own.

    Args:
        app: The command line.
        name: The command.
        short: Its line in ``edgekit --help``.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [p for p in inspect.signature(function).parameters.values() if p.name != "shell"]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(annotation=hints[p.name], kind=kind) for p in own]
        parameters += [
            inspect.Parameter(key, kind, default=False, annotation=hint) for key, hint in _COMMON.items()
        ]

        @functools.wraps(function)
        def call(*, json_: bool, quiet: bool, debug: bool, **options: Any) -> Answer:
            shell = Shell(json_, quiet, CALL.text)
            try:
                # Standard output is the answer's alone; what user code and libraries print goes to stderr.
                with redirect_stdout(sys.stderr):
                    return function(shell, **options)
            except KeyboardInterrupt:
                raise InterruptError(f"interrupted. {shell.on_interrupt}") from None

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, short_help=short)(call)
        return function

    return register


def read_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """``name=1,3,416,416`` for each input.

    Raises:
        UsageError: A text has another form.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, equals, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.replace("x", ",").split(",")]
        if not equals or not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(f"'{text}'", where="--input-shape", valid=("name=1,3,416,416",))
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def file_out(model: str, step: str, out: Path | None) -> Path:
    """The file to write, ``<model>.<step>.onnx`` where none is named; checked before any work."""
    from edgekit.bundle import check_file_out

    path = out or Path(f"{Path(model.rpartition(':')[2]).stem}.{step}.onnx")
    check_file_out(path)
    return path


def columns(rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), indent: str = "") -> list[str]:
    """Rows as aligned lines; the columns ``right`` are aligned to the right."""
    cells = [[_printable(str(cell)) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(parts)).rstrip())
    return lines


def shape_text(shape: Sequence[int]) -> str:
    """``1x3x416x416``."""
    return "x".join(map(str, shape)) or "scalar"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help=".onnx or .pt2 file, or package.module:callable returning a module."
    ),
]
Data = Annotated[
    str, typer.Option("--data", metavar="DIR", help="Image folder, .npz file, or package.module:callable.")
]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Image folder, .npz file, or package.module:callable."),
]
PreprocessText = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="KEY=VALUE,…",
        help="How images become inputs: resize= anchor= pad= color= divide= mean= std= layout=. "
        "RGB / 255, letterboxed, when left out.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="NAME=1,3,H,W", help="Size of an input that the model leaves open."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use at most so many samples; all by default."),
]
Runs = Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed calls of each network.")]
CalibratorName = Annotated[
    str | None,
    typer.Option(
        "--calibrator",
        metavar="NAME",
        help="auto (the default: the best of all), minmax, percentile, entropy or mse.",
    ),
]
Percentile = Annotated[
    float | None,
    typer.Option(
        "--percentile",
        metavar="P",
        help="Share of the values, in percent, that the percentile calibrator keeps; 99.99 by default.",
    ),
]
MaxRaised = Annotated[
    int | None,
    typer.Option(
        "--max-raised",
        metavar="N",
        min=0,
        help="Most tensors kept above 8 bits; the target's limit by default.",
    ),
]
Reconstruct = Annotated[
    float | None,
    typer.Option(
        "--reconstruct",
        metavar="S",
        min=0,
        help="Most seconds for learning rounding and ranges where the outputs are worse than --target-db; "
        "120 by default, 0 never does it.",
    ),
]
TargetDb = Annotated[
    float | None,
    typer.Option(
        "--target-db",
        metavar="DB",
        help="Signal-to-noise ratio of the outputs, in dB, below which costlier ways are tried; "
        "13 by default.",
    ),
]
Equalize = Annotated[bool, typer.Option("--equalize/--no-equalize", help="Balance channels between layers.")]
Biases = Annotated[
    bool, typer.Option("--correct-biases/--no-correct-biases", help="Make up for mean weight errors.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs into the same folder made.")]
