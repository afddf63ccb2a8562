"""The process in which Vela's compiler core runs: native code that crashes on some broken files.

Reads one JSON object a line from stdin: ``arch``, ``system`` and ``options`` as
:mod:`edgekit.targets.ethos_u.process` makes them, ``model`` (base64) and ``keep`` (whether the compiled
model is wanted). Answers each with one line on stdout: ``{"result": {…}}`` or ``{"error": "…"}``. What the
core prints goes to stderr, whole before the answer.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import sys
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"result": _compile(json.loads(line))}
        except (RuntimeError, ValueError, MemoryError) as error:
            answer = {"error": str(error)}
        sys.stdout.flush()
        # The core prints through C++ streams, which are those of the C library.
        ctypes.CDLL(None).fflush(None)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    from ethosu import regor

    model = base64.b64decode(job["model"])
    done = regor.compile(job["arch"], model, "TFLITE", job["system"], options=job["options"], verbose=True)
    report = done.perf_report
    tables = done.opt_database.tables
    return {
        "model": base64.b64encode(bytes(done.model)).decode() if job["keep"] else "",
        "total_cycles": int(report.totalCycles),
        "npu_cycles": int(report.npuCycles),
        "macs": int(report.macCount),
        "weight_bytes": int(report.readOnlyPeakUsage),
        "memories": {name: int(memory.peakUsage) for name, memory in report.memories.items()},
        "tables": {
            name: {"header": list(tables[name].header), "rows": [list(row) for row in tables[name].data]}
            for name in ("source", "perf", "queue", "group")
            if name in tables
        },
    }


if __name__ == "__main__":
    main()
