"""The process in which TFLite Micro runs: ``python worker.py MODEL ARENA_BYTES MEASURE``.

A kernel of TFLite Micro that meets what it does not expect may abort the process; this one can be spared. It
imports nothing of edgekit and is started by :mod:`edgekit.targets.tflm.engine`.

A message is a JSON line followed by the bytes of the arrays that its ``arrays`` lists as ``[dtype, shape]``.
The first answer is ``{"ready": true, "arena": …}`` or ``{"error": …}``, then comes one for each request.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

#: Arenas are tried in steps of this many bytes, to which TFLite Micro aligns them.
ALIGNMENT = 16
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")

Array = np.ndarray[Any, Any]


def main(arguments: Sequence[str]) -> int:
    path, arena, measure = arguments[0], int(arguments[1]), arguments[2] == "measure"
    # Native code prints to file descriptor 1; from here on that is stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        send(answers, {"missing": str(error)})
        return 1
    with open(path, "rb") as stream:  # noqa: PTH123  (pathlib would be one more import)
        data = stream.read()
    try:
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
        used = smallest_arena(runtime, data, arena) if measure else 0
    except Exception as error:  # the process is the boundary: the caller gets whatever went wrong as text
        send(answers, {"error": f"{error}"})
        return 1
    send(answers, {"ready": True, "arena": used})
    serve(interpreter, sys.stdin.buffer, answers)
    return 0


def serve(interpreter: Any, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the other side closes."""
    while (received := receive(requests)) is not None:
        header, arrays = received
        try:
            for index, value in enumerate(arrays):
                interpreter.set_input(value, index)
            interpreter.invoke()
            outputs = [interpreter.get_output(index) for index in range(header["outputs"])]
        except Exception as error:  # as in main
            send(answers, {"error": f"{error}"})
            continue
        send(answers, {}, outputs)


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


def send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write one message."""
    header = {**header, "arrays": [[str(a.dtype), list(a.shape)] for a in arrays]}
    stream.write(json.dumps(header).encode() + b"\n")
    for value in arrays:
        stream.write(np.ascontiguousarray(value).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]] | None:
    """Read one message; None where the other side has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    arrays = []
    for dtype, shape in header["arrays"]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        data = stream.read(size)
        if len(data) < size:
            return None
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return header, arrays


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
