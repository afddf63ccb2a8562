"""The side of a worker in a process of its own; :mod:`edgekit.child` is the one that asks.

A job is one JSON line on the worker's stdin. Its answers are JSON lines on its stdout:
``{"progress": [done, total]}`` any number of times, then ``{"result": {…}}``, ``{"refused": "…"}`` where it
was handed something that it does not take, or ``{"error": "…"}``. What libraries print goes to stderr, whole
before the answer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]


class RefusedError(Exception):
    """Raised in a worker: it was handed something that it does not take."""


def serve(do: Callable[[Any, Emit], dict[str, Any]]) -> None:
    """The worker's side: answer jobs until stdin ends.

    From here on file descriptor 1, to which native code prints, is stderr.

    Args:
        do: Gets a job and a function that writes a progress message; what it returns is the result, what it
            raises the error, or the refusal where it is a :class:`RefusedError`.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def emit(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"result": do(json.loads(line), emit)}
        except RefusedError as error:
            answer = {"refused": str(error)}
        except Exception as error:  # the process is the boundary: the one who asked gets whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        _flush()
        emit(answer)


def _flush() -> None:
    sys.stderr.flush()
    if os.name == "posix":
        import ctypes  # here: the one who asks does not need it

        # Native code prints through the C library's streams.
        ctypes.CDLL(None).fflush(None)
