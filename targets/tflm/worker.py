"""The process in which TFLite Micro runs: a kernel that meets what it does not expect may abort it.

A job (see :mod:`edgekit.worker`) has ``model``, the path of a ``.tflite``, and ``arena``, the bytes to run it
in; ``measure``, whether the smallest arena is wanted; ``inputs``, arrays as :func:`pack` makes them; and
``outputs``, how many there are. The result has ``arena`` or ``outputs``. What cannot be set up is refused.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.worker import Emit, RefusedError, serve

#: Arenas are tried in steps of this many bytes, to which TFLite Micro aligns them.
ALIGNMENT = 16
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")

Array = np.ndarray[Any, Any]


def main() -> None:
    serve(_do)


def _do(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    from tflite_micro.python.tflite_micro import runtime

    path, arena = job["model"], job["arena"]
    try:
        interpreter = _set_up(runtime, path, arena)
        if "inputs" not in job:
            measured = job["measure"] and smallest_arena(runtime, Path(path).read_bytes(), arena)
            return {"arena": int(measured)}
    except Exception as error:  # whatever it raises, it is the model that it does not take
        raise RefusedError(str(error)) from error
    for index, value in enumerate(job["inputs"]):
        interpreter.set_input(unpack(value), index)
    interpreter.invoke()
    return {"outputs": [pack(interpreter.get_output(index)) for index in range(job["outputs"])]}


@cache
def _set_up(runtime: Any, path: str, arena: int) -> Any:
    return runtime.Interpreter.from_bytes(Path(path).read_bytes(), arena_size=arena)


def smallest_arena(runtime: Any, data: bytes, enough: int) -> int:
    """The least arena in bytes in which the model can be set up and run.

    What the allocator reports is the sum of what stays; setting up needs a little more for a moment. The
    figure that counts on a board is found by bisection, from the reported one upwards.
    """
    low = reported(runtime, data, enough) // ALIGNMENT - 1
    step = 1
    while not works(runtime, data, (low + step) * ALIGNMENT):
        step *= 2
        if (low + step) * ALIGNMENT > enough:
            break
    low, high = low + step // 2, min(low + step, enough // ALIGNMENT)
    while high - low > 1:
        middle = (low + high) // 2
        if works(runtime, data, middle * ALIGNMENT):
            high = middle
        else:
            low = middle
    return high * ALIGNMENT


def works(runtime: Any, data: bytes, arena: int) -> bool:
    """Whether the model can be set up in ``arena`` bytes."""
    try:
        runtime.Interpreter.from_bytes(data, arena_size=arena)
    except RuntimeError:
        return False
    return True


def reported(runtime: Any, data: bytes, arena: int) -> int:
    """What TFLite Micro's recording allocator says it has in use; it can only print it, to stderr."""
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
    kept = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            interpreter.print_allocations()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        found = _TOTAL.search(printed.read().decode(errors="replace"))
    if found is None:
        raise RuntimeError("TFLite Micro did not report the size of its arena")
    return int(found.group(1))


def pack(value: Array) -> list[Any]:
    """An array as JSON holds it."""
    return [str(value.dtype), list(value.shape), base64.b64encode(value.tobytes()).decode()]


def unpack(packed: list[Any]) -> Array:
    """The array that :func:`pack` was given; it cannot be written to."""
    dtype, shape, data = packed
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape)


if __name__ == "__main__":
    main()
