"""The command line. Commands answer; this module prints the answer or the error and gives the exit code.

Exit codes: 0 done, 1 failed (including a missed budget), 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import typer

from edgekit.commands import about, check, compress, debug, make
from edgekit.commands.shell import CALL, Answer
from edgekit.errors import EdgekitError

app = typer.Typer(
    name="edgekit",
    help="From a trained network to a proven int8 deployment on an edge chip.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _module in (make, compress, check, debug, about):
    _module.register(app)

# What the parser raises for a wrong command line; typer brings it, under a name of its own.
_ParserError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version."),
) -> Answer | None:
    import edgekit

    return Answer({"edgekit": edgekit.__version__}, f"edgekit {edgekit.__version__}") if version else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    CALL.text = shlex.join(["edgekit", *arguments])
    try:
        answer = app(arguments, prog_name="edgekit", standalone_mode=False)
    except EdgekitError as error:
        return _fail(error, as_json)
    except _ParserError as error:
        return _misused(error, as_json)
    except (
        Exception
    ) as error:  # a fault of edgekit's own, of whatever kind: the user gets a line, not a trace
        if "--debug" in arguments:
            raise
        text = f"{type(error).__name__}: {error}"
        hint = "This is a fault in edgekit. Run the command again with --debug for a report to send"
        _print_error({"type": "InternalError", "message": text, "hint": hint}, f"{text}. {hint}", as_json)
        return 1
    if isinstance(answer, Answer):
        _print(json.dumps(answer.document, indent=1, allow_nan=False) if as_json else answer.text)
        return answer.code
    return answer if isinstance(answer, int) else 0


def _fail(error: EdgekitError, as_json: bool) -> int:
    content = {
        "type": type(error).__name__,
        "message": str(error),
        "what": error.what,
        "where": error.where,
        "valid": list(error.valid),
        "hint": error.hint,
    }
    _print_error(content, str(error), as_json)
    return error.exit_code


def _misused(error: Any, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if message.startswith("Usage:"):  # no arguments at all: the message is the help
        print(message, file=sys.stderr)
        return int(error.exit_code)
    hint = f". See {context.command_path} --help" if context is not None else ""
    content = {
        "type": "UsageError",
        "message": message,
        "what": message,
        "where": "",
        "valid": [],
        "hint": "",
    }
    _print_error(content, message.rstrip(".") + hint, as_json)
    return int(error.exit_code)


def _print_error(content: dict[str, Any], text: str, as_json: bool) -> None:
    print(f"error: {text}", file=sys.stderr)
    if as_json:
        _print(json.dumps({"error": content}, indent=1))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
