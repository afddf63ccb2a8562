"""The process in which Vela's compiler core runs: native code that crashes on some broken files.

A job (see :mod:`edgekit.worker`) has ``arch``, ``system`` and ``options`` as
:mod:`edgekit.targets.ethos_u.process` makes them, ``model`` (base64) and ``keep`` (whether the compiled
model is wanted).
"""

from __future__ import annotations

import base64
from typing import Any

from edgekit.worker import Emit, RefusedError, serve


def main() -> None:
    serve(_do)


def _do(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    try:
        return _compile(job)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise RefusedError(str(error)) from error


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
